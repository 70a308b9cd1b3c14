"""Commands that a command prints, spelt so that they can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hyperdp.cli._options import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle


def command(*words: str | Path) -> str:
    """A command line of `hyperdp`, quoted where a shell wants it.

    Args:
        words: after `hyperdp`; a path that begins with a dash is told from an option.
    """
    plain = (
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
        for word in words
    )
    return shlex.join(["hyperdp", *plain])


def bundle_words(bundle: Bundle | TextBundle) -> list[str]:
    """`--bundle` and what names a bundle; nothing where it is the one that is taken by default."""
    from hyperdp.bundle import SHIPPED

    shipped = bundle.path.resolve().parent == SHIPPED.resolve()
    name = bundle.path.name if shipped else str(bundle.path)
    return [] if shipped and name == DEFAULT_BUNDLE else ["--bundle", name]
