"""A folder of images, flat or with one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from hyperdp.errors import DataError, UsageError
from hyperdp.private.readers.arrow import shards
from hyperdp.private.readers.rows import Columns, Row, as_text, pick

FOLDER_COLUMN = "folder"
HUGGING_FACE = {"state.json", "dataset_info.json"}
LEFT_BY_SYSTEMS = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini"}
)  # in lower case; no records
BESIDE_TABLES = {"README.md", "_SUCCESS", "dataset_infos.json"}  # what tools leave there

FolderKind: TypeAlias = Literal["files", "parquet", "hugging face"]


class FolderRows:
    """Every file under a folder is a record, but for hidden ones and what a file manager leaves.

    The first-level sub-folder's name is the one column there is, `folder`: a class or a user.

    Args:
        root: the folder.
        columns: `label` and `unit` may each be `folder`.
    """

    def __init__(self, root: Path, columns: Columns) -> None:
        for asked, option in (
            (columns.label, "--label-column"),
            (columns.unit, "--unit-column"),
            (columns.image, "--image-column"),
        ):
            if asked is not None:
                pick(asked, [FOLDER_COLUMN], option=option, source="a folder of images")
        self._root = root
        self._columns = columns
        self._files = list_files(root)

    def count(self) -> int:
        """Number of files listed."""
        return len(self._files)

    def rows(self) -> Iterator[Row]:
        """Yield one row a file, in the order of their paths."""
        for path in self._files:
            relative = path.relative_to(self._root)
            folder = as_text(relative.parts[0]) if len(relative.parts) > 1 else None
            yield Row(
                where=f"the file '{relative}'",
                image=path,
                label=folder if self._columns.label else None,
                unit=folder if self._columns.unit else None,
            )


def kind_of(folder: Path, given: Path) -> FolderKind:
    """Tell whether every file of a folder is a record, or which tables it holds.

    A folder of several kinds is refused: else one file, which may be a record, would decide how all
    the others are read.

    Args:
        folder: the folder.
        given: as an error names it.

    Returns:
        The kind.

    Raises:
        UsageError: several kinds of files, or several splits of a Hugging Face dataset.
        DataError: a folder may not be listed.
    """
    if (folder / "dataset_dict.json").exists():
        raise UsageError(
            expected="one split of a Hugging Face dataset",
            found=f"several in '{given}'",
            todo=f"Name one, such as '{given}/train'.",
        )
    tables = set(shards(folder))
    marks = {folder / name for name in HUGGING_FACE}
    saved = all(mark.exists() for mark in marks)
    if not tables and not saved:
        files = list_files(folder)
        if files and all(file.suffix.lower() == ".parquet" for file in files):
            raise UsageError(
                expected=f"Parquet files named *.parquet in '{given}' itself",
                found="some in its sub-folders, or with another spelling of the suffix",
                todo="Name the one file to read, or the folder that holds them; what the names of "
                "folders say, as in year=2024, is not read.",
            )
        return "files"
    own = tables | {folder / name for name in BESIDE_TABLES}
    own |= (marks | set(folder.glob("*.arrow"))) if saved else set()
    present = {
        "a Hugging Face dataset": saved,
        "Parquet files": bool(tables),
        "other files": not own.issuperset(list_files(folder)),
    }
    kinds = [kind for kind, there in present.items() if there]
    if len(kinds) > 1:
        raise UsageError(
            expected=f"records of one kind in '{given}'",
            found=" and ".join(kinds),
            todo="Keep each kind in a folder of its own, or name the one file to read.",
        )
    return "hugging face" if saved else "parquet"


def list_files(root: Path) -> list[Path]:
    """List the files under a folder; hidden ones and loops left out, links to elsewhere followed.

    What a path leads to depends on that path alone, so that no file or link takes the records of
    another path away or gives them to another class or user. A link back into the folder is refused
    for that: what it shows is under two names, and goes when the other one goes.

    Left out are the files of `LEFT_BY_SYSTEMS` too: by their names alone, whatever is in them, so
    that each file is a record or not by itself.

    Args:
        root: the folder.

    Returns:
        Their paths in sorted order.

    Raises:
        DataError: a folder may not be listed, or a link leads back into the folder.
    """
    found: list[Path] = []
    top = Path(os.path.realpath(root))
    entering: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(root, ())]  # and those above it
    while entering:
        folder, above = entering.pop()
        try:
            status = folder.stat()
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            raise _unlisted(folder, error) from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _check_link(path, top)
            if _is_folder(entry):
                entering.append((path, (*above, here)))
            elif _may_be_record(entry.name):
                found.append(path)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a file then, which cannot be read
        return False


def _check_link(path: Path, top: Path) -> None:
    """Refuses a link to what is in the folder anyway, or to a folder around it."""
    target = Path(os.path.realpath(path))
    inside = target.relative_to(top).parts if target.is_relative_to(top) else None
    hidden = inside is not None and any(part.startswith(".") for part in inside)
    if target in top.parents or (inside is not None and not hidden):
        raise DataError(
            expected=f"no links in '{top}' that lead back into it",
            found=f"'{path}'",
            todo="Remove the link, or put a copy in its place: what it shows is listed already.",
        )


def _may_be_record(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LEFT_BY_SYSTEMS


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(
        expected=f"the folder '{folder}' to be readable",
        found=error.strerror or type(error).__name__,
        todo="Change its permissions, or move it elsewhere.",
    )
