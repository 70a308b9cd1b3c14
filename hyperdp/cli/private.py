"""`hyperdp private`: release and emit in one go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._releasing import ReleaseRequest, describe, make_release, tell
from hyperdp.errors import UsageError


def private_command(
    data: o.Data,
    epsilon: o.Epsilon,
    delta: o.Delta,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to be made: release/ and adapter/ in it.")
    ],
    bundle: o.BundleName = "glyphs",
    ledger: o.LedgerFile = None,
    dataset: o.DatasetName = None,
    adjacency: o.AdjacencyName = "add-remove",
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    unit_column: o.UnitColumn = None,
    classes: o.Classes = None,
    skip_unreadable: o.SkipUnreadable = False,
    invert: o.Invert = False,
    allow_weak_delta: o.AllowWeakDelta = False,
    as_json: o.AsJson = False,
) -> None:
    """Release and emit in one go: a private dataset becomes a LoRA adapter.

    The same as `hyperdp release` and then `hyperdp emit`; only the first spends anything.

    Example: hyperdp private scans/ --epsilon 1 --delta 1e-5 -o out/scans
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.private.emit import emit_adapter

    request = ReleaseRequest(
        data=data,
        epsilon=epsilon,
        delta=delta,
        out=out / "release",
        ledger=ledger,
        dataset=dataset,
        adjacency=adjacency,
        image_column=image_column,
        label_column=label_column,
        unit_column=unit_column,
        classes=classes,
        skip_unreadable=skip_unreadable,
        invert=invert,
        allow_weak_delta=allow_weak_delta,
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="an empty or new folder to write to",
            found=f"'{out}', which holds something",
            todo="Choose another --out; nothing has been spent.",
        )
    loaded = load_bundle(bundle)
    facts = describe(make_release(request, loaded), request.out)
    adapters = [str(folder) for folder in emit_adapter(request.out, loaded, out / "adapter")]
    if as_json:
        typer.echo(json.dumps(facts | {"adapters": adapters}))
        return
    tell(facts)
    for adapter in adapters:
        typer.echo(f"adapter in {adapter}")
    typer.echo(f"Next: hyperdp sample {out / 'adapter'} -o IMAGES")
