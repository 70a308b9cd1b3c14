"""A folder of images, flat or with one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hyperdp.errors import DataError
from hyperdp.private.readers.rows import Columns, Row, pick

FOLDER_COLUMN = "folder"


class FolderRows:
    """Every file under a folder is a record, but for hidden ones.

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
            folder = relative.parts[0] if len(relative.parts) > 1 else None
            yield Row(
                where=f"the file '{relative}'",
                image=path,
                label=folder if self._columns.label else None,
                unit=folder if self._columns.unit else None,
            )


def list_files(root: Path) -> list[Path]:
    """List the files under a folder, links followed, hidden ones and loops left out.

    Args:
        root: the folder.

    Returns:
        Their paths in sorted order.

    Raises:
        DataError: a folder may not be listed.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(
        expected=f"the folder '{error.filename}' to be readable",
        found=error.strerror or type(error).__name__,
        todo="Change its permissions, or move it elsewhere.",
    ) from error
