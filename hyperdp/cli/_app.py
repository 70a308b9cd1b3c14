"""The table of commands, and how a run of one ends."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from typer.main import get_command

from hyperdp import __version__
from hyperdp.cli._lazy import LazyCommand, LazyGroup
from hyperdp.errors import HyperdpError, UsageError, printable

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_PLANNED = {
    "demo": ("demo_command", "The whole story on real handwriting; ends with a report."),
    "pretrain": ("app", "Public stage: train a base model or a hypernetwork."),
    "plan": ("plan_command", "What to expect at which epsilon, before anything is spent."),
    "release": ("release_command", "Measure a private dataset once, with noise: the one DP event."),
    "emit": ("emit_command", "Turn a release into a LoRA adapter that PEFT loads."),
    "private": ("private_command", "Release and emit in one go."),
    "fit": ("fit_command", "Train an adapter by many noisy steps: DP-SGD and its relatives."),
    "evolve": ("evolve_command", "Generate images that private records have voted for."),
    "sample": ("sample_command", "Generate images with an adapter."),
    "drift": ("drift_command", "Whether a source has changed between two releases."),
    "verify": ("verify_command", "Recompute every claim of a release's certificate."),
    "ledger": ("app", "Show what has been spent on a dataset, and set its cap."),
    "eval": ("eval_command", "Measure generated images against reference images."),
    "bench": ("bench_command", "Compare methods over sizes and budgets."),
    "labelled": ("labelled_command", "Compare classifiers by what they were trained on."),
    "audit": ("audit_command", "Attack the mechanism as it runs here, and bound ε from below."),
    "report": ("report_command", "Write the report of a run as one HTML page."),
}

COMMANDS: dict[str, LazyCommand] = {
    name: LazyCommand(module=f"hyperdp.cli.{name}", attribute=attribute, help=help_line)
    for name, (attribute, help_line) in _PLANNED.items()
    # A command is offered from the day its module is there.
    if find_spec(f"hyperdp.cli.{name}") is not None
}


class _Commands(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    cls=_Commands,
    name="hyperdp",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a fault of ours, 2 bad arguments or data, 3 budget refused.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Adapt a generative model to a private dataset with one differentially private measurement.

    Start with [bold]hyperdp demo[/bold], then [bold]hyperdp private --help[/bold].
    """
    if version:
        typer.echo(f"hyperdp {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        args: the words after `hyperdp`; by default those the process was started with.

    Returns:
        The exit code: 0 done, 1 a fault of ours, 2 bad arguments or data, 3 budget refused,
        130 interrupted.
    """
    before = _begun()
    try:
        # In this mode typer hands over its own errors, and an exit's code as the value.
        ended = get_command(app).main(args=args, prog_name="hyperdp", standalone_mode=False)
    except HyperdpError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        # A group without a command has shown its help and has nothing more to say.
        return _complain(_usage(error), EXIT_USAGE) if error.format_message() else EXIT_USAGE
    except typer.Abort:
        ended = EXIT_INTERRUPTED
    except OSError as error:
        return _complain(_refused(error), EXIT_USAGE) if _theirs(error) else _own_up(error)
    except Exception as error:  # noqa: BLE001 - the last place where a fault can be told, not hidden
        return _own_up(error)
    if ended == EXIT_INTERRUPTED:
        spent = " The budget that was reserved stays spent." if _begun() > before else ""
        return _complain(f"interrupted.{spent}", EXIT_INTERRUPTED)
    return ended if isinstance(ended, int) else 0


def _begun() -> int:
    """Budgets that were reserved for what is not on disk; a command without a ledger has none."""
    ledger = sys.modules.get("hyperdp.ledger")
    return 0 if ledger is None else int(ledger.begun())


def _usage(error: typer.TyperException) -> str:
    """Say where help on a wrong command line is."""
    context = getattr(error, "ctx", None)
    where = "hyperdp" if context is None else context.command_path
    return f"{error.format_message()}\nTry '{where} --help'."


def _theirs(error: OSError) -> bool:
    """Whether the operating system refused what the caller asked for: a place, not a fault.

    An error of writing, as of a full disk, names no file.
    """
    return error.errno in _FULL or (error.filename is not None and error.errno in _REFUSALS)


def _refused(error: OSError) -> str:
    place = "where it was to be written" if error.filename is None else f"'{error.filename}'"
    return str(
        UsageError(
            expected=f"{place} to be a place that can be read or written",
            found=error.strerror or "a refusal",
            todo="Change its permissions, make room, or name another place. A release that was "
            "made before stays whole, and what it spent stays spent.",
        )
    )


def _own_up(error: Exception) -> int:
    """Report a fault of ours by its type and place alone: its text may hold a private value."""
    if os.environ.get("HYPERDP_DEBUG") == "1":
        traceback.print_exception(error)
    places = [
        f"{frame.f_globals['__name__']}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("hyperdp.")
    ]
    return _complain(
        f"this is a fault of ours: {type(error).__name__} at {places[-1]}.\n"
        "HYPERDP_DEBUG=1 shows where it came from; that text may hold private values, so look "
        "through it before you pass it on.",
        EXIT_FAULT,
    )


def _complain(message: str, code: int) -> int:
    """Print to stderr, in red where that is a terminal, and hand back the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    lines = [printable(line) for line in message.split("\n")]
    console.print("\n".join(lines), markup=False)
    return code
