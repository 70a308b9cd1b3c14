"""`hyperdp verify`: recompute every claim of a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hyperdp.cli import _options as o


def verify_command(
    release: Annotated[
        Path,
        typer.Argument(
            help="The folder of a release, of a fit's adapter, or of a private classifier.",
            metavar="RELEASE",
        ),
    ],
    ledger: Annotated[
        Path | None,
        typer.Option(
            "--ledger",
            "-l",
            help="Hold it to a ledger too: the file itself, or its export.",
            show_default=False,
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            "--public-key",
            help="The signer's ed25519 key in hex, where you know whose it must be.",
            show_default=False,
        ),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Recompute every claim of a release's certificate, each by a second way.

    Needs the release alone: ε comes from a privacy loss distribution, Δ from rationals, the noise
    from OpenDP's own privacy map. One changed byte makes it fail with exit code 2, and so do
    weights that the certificate says nothing of. What the bundle was is the signer's word.

    Example: hyperdp verify out/release --ledger ledger-export.json
    """
    from hyperdp.verification import verify

    claims = verify(release, ledger=ledger, public_key=public_key)
    if as_json:
        typer.echo(json.dumps({"verified": True, "claims": [vars(claim) for claim in claims]}))
        return
    table = Table("claim", "certificate", "recomputed", box=None)
    for claim in claims:
        table.add_row(*map(escape, (claim.name, claim.claimed, claim.recomputed)))
    Console().print(table)
    typer.echo(f"all {len(claims)} claims hold")
    if public_key is None:
        typer.echo("Signed by the key above: ask its owner whether it is theirs (--public-key).")
