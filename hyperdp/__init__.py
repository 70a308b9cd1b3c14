"""Adapt a generative model to a private dataset with one differentially private measurement.

The names below are loaded when they are first used, so that `import hyperdp` is quick and imports
no other room.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperdp.budget import PrivacyBudget
    from hyperdp.bundle import Bundle, load_bundle
    from hyperdp.certificate import Certificate
    from hyperdp.ledger import Ledger
    from hyperdp.private.emit import emit_adapter
    from hyperdp.private.readers import open_dataset
    from hyperdp.private.release import Release, release
    from hyperdp.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Certificate",
    "Ledger",
    "PrivacyBudget",
    "Release",
    "__version__",
    "emit_adapter",
    "load_bundle",
    "open_dataset",
    "release",
    "verify",
]

_HOMES = {
    "Bundle": "hyperdp.bundle",
    "Certificate": "hyperdp.certificate",
    "Ledger": "hyperdp.ledger",
    "PrivacyBudget": "hyperdp.budget",
    "Release": "hyperdp.private.release",
    "emit_adapter": "hyperdp.private.emit",
    "load_bundle": "hyperdp.bundle",
    "open_dataset": "hyperdp.private.readers",
    "release": "hyperdp.private.release",
    "verify": "hyperdp.verification",
}


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
