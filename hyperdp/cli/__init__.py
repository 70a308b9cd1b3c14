"""The command `hyperdp`: what it offers, and the one place where errors become exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        args: the words after `hyperdp`; by default those the process was started with.
    """
    from hyperdp.cli._app import run

    # What a scheduler sends ends a command as Ctrl-C does: its drafts are taken away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # ε in a terminal of ASCII is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(args))
