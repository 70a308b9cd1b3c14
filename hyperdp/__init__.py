"""Adapt a generative model to a private dataset with one differentially private measurement.

The names below are loaded when they are first used, so that `import hyperdp` is quick and imports
no other room.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES: dict[str, str] = {}
"""Public name → module that holds it; a name is listed once its module exists."""

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    """Load a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
