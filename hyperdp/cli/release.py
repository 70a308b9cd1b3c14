"""`hyperdp release`: the one private event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._releasing import ReleaseRequest, describe, make_release, tell
from hyperdp.cli._words import bundle_words, command


def release_command(
    data: o.Data,
    epsilon: o.Epsilon,
    delta: o.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to be made for the release.")],
    bundle: o.BundleName = o.DEFAULT_BUNDLE,
    ledger: o.LedgerFile = None,
    dataset: o.DatasetName = None,
    adjacency: o.AdjacencyName = "add-remove",
    image_column: o.ImageColumn = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    unit_column: o.UnitColumn = None,
    classes: o.Classes = None,
    skip_unreadable: o.SkipUnreadable = False,
    invert: o.Invert = False,
    allow_weak_delta: o.AllowWeakDelta = False,
    workers: o.Workers = 1,
    as_json: o.AsJson = False,
) -> None:
    """Measure a private dataset once, with noise: the one DP event.

    The budget is taken from the ledger first, and stays spent if anything fails.
    A dataset that cannot be read is refused before that, and spends nothing.

    Example: hyperdp release scans/ --epsilon 1 --delta 1e-5 -o out/release
    """
    from hyperdp.text_bundle import open_bundle

    request = ReleaseRequest(
        data=data,
        epsilon=epsilon,
        delta=delta,
        out=out,
        ledger=ledger,
        dataset=dataset,
        adjacency=adjacency,
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
        unit_column=unit_column,
        classes=classes,
        skip_unreadable=skip_unreadable,
        invert=invert,
        allow_weak_delta=allow_weak_delta,
        workers=workers,
    )
    loaded = open_bundle(bundle)
    facts = describe(make_release(request, loaded), out)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    tell(facts)
    typer.echo(f"Next: {command('emit', out, *bundle_words(loaded), '-o', 'ADAPTER')}")
