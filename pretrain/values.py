"""From the tables of a recipe to frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from hyperdp.errors import UsageError

T = TypeVar("T")
PLAIN: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
}  # what a TOML value may be, by the type that is wanted


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds a frozen dataclass, nested ones too, from plain types.

    Raises:
        UsageError: a key that the dataclass does not have, one that it misses, or a value that is
            not of its type.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise UsageError(
            expected=f"keys of {cls.__name__}: {', '.join(sorted(known))}",
            found=", ".join(unknown),
            todo="Remove or rename them.",
        )
    built = {}
    for key, value in values.items():
        hint = hints[key]
        if not _fits(hint, value):
            raise UsageError(
                expected=f"{key} of {cls.__name__} to be of the type {hint.__name__}",
                found=repr(value),
                todo="Correct it.",
            )
        built[key] = (
            build(hint, value)
            if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict)
            else value
        )
    try:
        return cls(**built)
    except TypeError as error:
        raise UsageError(
            expected=f"every required key of {cls.__name__}", found=str(error), todo="Add it."
        ) from error


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value is of the type that is wanted; others are left to the dataclass."""
    if hint not in PLAIN:
        return True
    return isinstance(value, PLAIN[hint]) and isinstance(value, bool) == (hint is bool)
