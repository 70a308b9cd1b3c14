"""`hyperdp ledger`: what datasets have spent, their caps, and the log behind it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from hyperdp.cli import _options as o
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.accounting import Account
    from hyperdp.ledger import Ledger

app = typer.Typer(
    name="ledger",
    help="Show what has been spent on a dataset, and set its cap.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Dataset = Annotated[
    str,
    typer.Argument(
        help="What the ledger knows the dataset by: its --dataset name, or its path.",
        metavar="DATASET",
        show_default=False,
    ),
]
UnitName = Annotated[Literal["record", "user"], typer.Option("--unit", help="What is protected.")]


@app.command("show")
def show_command(dataset: Dataset, ledger: o.LedgerFile = None, as_json: o.AsJson = False) -> None:
    """Show what a dataset has spent and what is left.

    Example: hyperdp ledger show scans/
    """
    name = _identity(dataset)
    account = _open(ledger, name).account(name)
    if account is None:
        raise UsageError(
            expected="a dataset that this ledger has an entry of",
            found=repr(dataset),
            todo="Give the name or path that it was released under, and the ledger's file with "
            "--ledger; `hyperdp ledger history` lists them all.",
        )
    facts = _account_facts(account)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"adjacency {facts['adjacency']}, unit {facts['unit']}")
    typer.echo(
        f"spent {facts['spent_epsilon']:.4g} of epsilon {facts['cap_epsilon']:g} at delta "
        f"{facts['cap_delta']:g}, in {facts['events']} events"
    )
    typer.echo(f"one more release may have epsilon {facts['remaining_epsilon']:.4g}")


@app.command("set-cap")
def set_cap_command(
    dataset: Dataset,
    epsilon: Annotated[
        float, typer.Option("--epsilon", "-e", help="ε of all releases of the dataset together.")
    ],
    delta: Annotated[float, typer.Option("--delta", "-d", help="δ of all of them together.")],
    adjacency: o.AdjacencyName = "add-remove",
    unit: UnitName = "record",
    ledger: o.LedgerFile = None,
) -> None:
    """Set the most that a dataset may spend, over all its releases together.

    Example: hyperdp ledger set-cap scans/ --epsilon 3 --delta 1e-5
    """
    from hyperdp.budget import PrivacyBudget

    cap = PrivacyBudget(
        epsilon=epsilon,
        delta=delta,
        adjacency=adjacency,
        unit=unit,
    )
    from hyperdp.ledger import Ledger, ledger_file

    name = _identity(dataset)
    # A dataset's own ledger that has gone must not be made anew.
    file = _file(ledger, name)
    new = ledger_file(name) is None and not file.exists()
    kept = Ledger(file) if new else _open(ledger, name)
    known = not new and kept.account(name) is not None
    kept.set_cap(name, cap)
    typer.echo(f"cap of {dataset}: epsilon {epsilon:g} at delta {delta:g}")
    if not known:
        typer.echo(f"{name!r} is new to this ledger: nothing has been released under that name.")


@app.command("history")
def history_command(
    dataset: Annotated[
        str | None, typer.Argument(help="One dataset's entries only.", show_default=False)
    ] = None,
    ledger: o.LedgerFile = None,
    as_json: o.AsJson = False,
) -> None:
    """List what each entry bought; the whole log is checked on the way.

    Example: hyperdp ledger history scans/ --json
    """
    name = None if dataset is None else _identity(dataset)
    rows = [_entry_facts(vars(entry)) for entry in _open(ledger, name).history(name)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("#", "time", "what", "dataset", "bought", box=None)
    for row in rows:
        dataset_name = row["name"] or row["dataset"][:12]
        table.add_row(str(row["seq"]), row["time"], row["kind"], dataset_name, row["bought"])
    Console().print(table)


@app.command("export")
def export_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, signed JSON.")],
    ledger: o.LedgerFile = None,
) -> None:
    """Write the whole ledger as signed JSON, for a third party's `hyperdp verify --ledger`.

    Example: hyperdp ledger export -o ledger-export.json
    """
    from hyperdp.keys import PUBLIC, write_durably

    data = _open(ledger, None).export()
    try:
        write_durably(out, data, mode=PUBLIC)
    except OSError as error:
        raise UsageError(
            expected=f"a file that can be written at {out}",
            found=error.strerror or "a refusal",
            todo="Choose another place.",
        ) from error
    typer.echo(f"ledger in {out}")


def _file(asked: Path | None, dataset: str | None) -> Path:
    """The ledger that was asked for; else the dataset's own; else that of the account."""
    from hyperdp.ledger import ledger_file

    own = None if asked is not None or dataset is None else ledger_file(dataset)
    return asked or own or o.default_ledger()


def _open(asked: Path | None, dataset: str | None) -> Ledger:
    """The ledger, which must exist: looking must not make one."""
    from hyperdp.ledger import Ledger
    from hyperdp.sealed_log import has_header

    found = _file(asked, dataset)
    if not found.is_file():
        raise UsageError(
            expected="a ledger", found=f"nothing at {found}", todo="Name the ledger with --ledger."
        )
    if asked is not None and not has_header(found):
        raise UsageError(
            expected="a ledger",
            found=f"a file that does not begin as one, {found}",
            todo="Name the ledger with --ledger. If this was one, it is damaged: restore it from a "
            "backup.",
        )
    return Ledger(found)


def _identity(dataset: str) -> str:
    """A path as `release` resolves it, or the name as it is.

    Raises:
        UsageError: it is the name of one dataset and the path of another.
    """
    from hyperdp import keys

    path = Path(dataset).expanduser()
    if not path.exists():
        return dataset
    whole = str(path.resolve())
    if os.sep in dataset or not keys.any_ledger():
        return whole
    named, found = (keys.known_ledger(keys.dataset_fingerprint(d)) for d in (dataset, whole))
    if named and found:
        raise UsageError(
            expected="the name of a dataset, or its path",
            found=f"{dataset!r}, which is both: the name of one, and {whole}, another",
            todo=f"Give the path as {whole}, or call the command where no such file lies.",
        )
    return dataset if named else whole


def _account_facts(account: Account) -> dict[str, Any]:
    return {
        "adjacency": account.cap.adjacency,
        "unit": account.cap.unit,
        "cap_epsilon": account.cap.epsilon,
        "cap_delta": account.cap.delta,
        "spent_epsilon": account.spent_epsilon,
        "remaining_epsilon": account.remaining_epsilon,
        "events": len(account.events),
    }


def _entry_facts(entry: dict[str, Any]) -> dict[str, Any]:
    from hyperdp import keys

    body = entry["body"]
    match entry["kind"]:
        case "cap":
            bought = f"may spend epsilon {body['epsilon']:g} at delta {body['delta']:g}"
        case "reserve":
            bought = (
                f"{body['purpose']}: epsilon {body['epsilon']:g}, delta {body['delta']:g}, "
                f"{body['adjacency']}, bundle {body['bundle_hash'][:12]}"
            )
        case "spend":
            bought = f"noise drawn for {body['reservation'][:12]}"
        case _:
            bought = f"certificate {body['certificate_sha256'][:12]}"
    return {**entry, "name": keys.known_name(entry["dataset"]), "bought": bought}
