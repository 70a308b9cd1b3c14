"""The class names of a labelled release: public, and given beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hyperdp.errors import UsageError

MAX_CLASS_NAME = 200  # characters; a certificate must stay small enough to be read
MAX_CLASS_NAMES = 2**19  # characters of all of them as the certificate spells them


def check_classes(classes: Sequence[str] | None) -> list[str]:
    """The class names as a list, [] for an unlabelled release.

    Raises:
        UsageError: fewer than two, a repeated one, one that is not text or is too long for a
            certificate, or one text in place of a list.
    """
    names = [] if classes is None else list(classes)
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_CLASS_NAME for name in names):
        raise UsageError(
            expected=f"class names that are texts of 1 to {MAX_CLASS_NAME} characters",
            found="another kind of name, an empty or a longer one",
            todo="Name the classes by short texts, for example str(label).",
        )
    if classes is not None and (isinstance(classes, str) or not 2 <= len(set(names)) == len(names)):
        raise UsageError(
            expected="at least two different class names, known without looking at the data",
            found=f"classes={classes!r}",
            todo="List every class that can occur, or leave classes out.",
        )
    if len(json.dumps(names)) > MAX_CLASS_NAMES:
        raise UsageError(
            expected=f"class names of at most {MAX_CLASS_NAMES:,} characters in all, as JSON in "
            "ASCII spells them",
            found=f"{len(json.dumps(names)):,} for {len(names):,} names",
            todo="Shorten the names; letters beyond ASCII take six characters or more each.",
        )
    return names
