"""The command `hyperdp`: what it offers, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        args: the words after `hyperdp`; by default those the process was started with.
    """
    from hyperdp.cli._app import run

    sys.exit(run(args))
