"""A folder that appears with all of its files, or not at all."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which goes away on an error; it must be moved from there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Lend a draft that takes the place of a folder when it is done, and goes away on an error.

    It lies beside the folder, so that a place which cannot be written is found before any work.

    Args:
        target: must not exist, or be an empty folder.

    Yields:
        The draft, to be written to.
    """
    target = target.expanduser().resolve()
    with _draft_of(target) as draft:
        yield draft
        draft.chmod(0o755)
        draft.rename(target)


@contextmanager
def replaced_folder(target: Path, *, mark: str, kept: Collection[str] = ()) -> Iterator[Path]:
    """Lend a draft that takes the place of a folder when it is done; on an error all stays.

    What lay there is removed if it is empty, or holds `mark` and none of `kept`; else it moves
    aside, as `NAME.1`, `NAME.2` and so on. A kill between the two renames leaves it there, and the
    draft.

    Args:
        target: need not exist.
        mark: a file that says that the folder is one that may be made anew.
        kept: names of files that took long to make.

    Yields:
        The draft, to be written to.
    """
    target, aside = target.expanduser().resolve(), None
    with _draft_of(target) as draft:
        yield draft
        draft.chmod(0o755)
        if target.exists():
            aside = next(
                free
                for number in itertools.count(1)
                if not (free := target.with_name(f"{target.name}.{number}")).exists()
            )
            target.rename(aside)
        draft.rename(target)
    if aside is None:
        return
    ours = (aside / mark).is_file() and not any((aside / name).exists() for name in kept)
    if ours or not any(aside.iterdir()):
        shutil.rmtree(aside)
