"""Where data was read from, noted in the operator's config folder: private, and public.

What was released as private must not be read as public later, nor the other way round unseen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from hyperdp import keys


def remember_source(dataset: str, path: Path) -> None:
    """Note, for this account alone, where a dataset was read from.

    Args:
        dataset: keyed fingerprint.
        path: absolute.
    """
    _note(keys.config_dir() / "sources" / dataset, path)


def remember_public(path: Path) -> None:
    """Note, for this account alone, what data was read as public.

    Args:
        path: absolute.
    """
    _note(keys.config_dir() / "public", path)


def public_sources() -> list[Path]:
    """What `remember_public` noted."""
    return sorted(
        Path(os.fsdecode(p.read_bytes())) for p in (keys.config_dir() / "public").glob("*")
    )


def spent_sources() -> list[tuple[Path, str]]:
    """Where data lies that something was reserved for, with its dataset's keyed fingerprint.

    That is a dataset's path where it is known by one, and whatever it was read from. Makes no key.
    """
    found = []
    for name in (keys.config_dir() / "names").glob("*"):
        found.append((Path(os.fsdecode(name.read_bytes())), name.name))
    for source in (keys.config_dir() / "sources").glob("*/*"):
        found.append((Path(os.fsdecode(source.read_bytes())), source.parent.name))
    spent = {(p, d) for p, d in found if p.is_absolute() and keys.known_ledger(d) is not None}
    return sorted(spent)


def linked(folder: Path, apart: Sequence[Path] = ()) -> set[Path]:
    """What symbolic links in a folder lead to, resolved, and what links in there lead to.

    Args:
        folder: absolute; a file has none.
        apart: folders that are not entered.
    """
    found: set[Path] = set()
    entering = [folder]
    while entering:
        for place, folders, names in os.walk(entering.pop()):
            kept = [name for name in folders if Path(place, name) not in apart]
            links = [one for name in (*kept, *names) if (one := Path(place, name)).is_symlink()]
            new = {one.resolve() for one in links} - found
            found |= new
            entering += [one for one in new if one.is_dir()]
            folders[:] = kept
    return found


def overlap(path: Path, other: Path) -> bool:
    """Whether two absolute paths are one, or one lies in the other."""
    return path == other or other in path.parents or path in other.parents


def _note(folder: Path, path: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = os.fsencode(path)
    keys.write_once(folder / hashlib.sha256(place).hexdigest(), place)
