"""`hyperdp evolve`: images that private records have voted for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._bars import steps_bar
from hyperdp.cli._opening import charged_to, check_one_process, check_out, read_once
from hyperdp.cli._words import command

_LOOP_PANEL = "The iterations: public, and chosen before anything of this dataset was released"


def evolve_command(
    data: o.ImageData,
    epsilon: o.Epsilon,
    delta: o.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to be made.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Also write the images there, one file each.", show_default=False),
    ] = None,
    bundle: o.BundleName = "glyphs",
    ledger: o.LedgerFile = None,
    dataset: o.DatasetName = None,
    adjacency: o.AdjacencyName = "add-remove",
    count: Annotated[
        int, typer.Option("-n", "--count", help="Images.", rich_help_panel=_LOOP_PANEL)
    ] = 1000,
    candidates: Annotated[
        int, typer.Option(help="Images that are voted on.", rich_help_panel=_LOOP_PANEL)
    ] = 250,
    iterations: Annotated[
        int, typer.Option(help="Times that votes are asked.", rich_help_panel=_LOOP_PANEL)
    ] = 6,
    strength: Annotated[
        float,
        typer.Option(help="Of the first variations; 1 forgets all.", rich_help_panel=_LOOP_PANEL),
    ] = 0.9,
    last_strength: Annotated[
        float, typer.Option(help="Of the last variations.", rich_help_panel=_LOOP_PANEL)
    ] = 0.6,
    threshold: Annotated[
        float,
        typer.Option(help="Taken off every count, in std of noise.", rich_help_panel=_LOOP_PANEL),
    ] = 1.0,
    lookahead: Annotated[
        int,
        typer.Option(help="Variations that stand for a candidate.", rich_help_panel=_LOOP_PANEL),
    ] = 0,
    seed: Annotated[
        int, typer.Option(help="Of what is drawn; public.", rich_help_panel=_LOOP_PANEL)
    ] = 0,
    image_column: o.ImageColumn = None,
    unit_column: o.UnitColumn = None,
    skip_unreadable: o.SkipUnreadable = False,
    invert: o.Invert = False,
    allow_weak_delta: o.AllowWeakDelta = False,
    as_json: o.AsJson = False,
) -> None:
    """Generate images by Private Evolution: private records vote, with noise; nothing is trained.

    The budget is taken from the ledger first, and stays spent if anything fails.

    Example: hyperdp evolve scans/ --epsilon 1 --delta 1e-5 -o out/evolved --images out/images
    """
    from hyperdp.budget import PrivacyBudget
    from hyperdp.bundle import load_bundle
    from hyperdp.images import save_images
    from hyperdp.ledger import Ledger
    from hyperdp.private.evolution import evolve
    from hyperdp.private.evolution_config import EvolutionConfig
    from hyperdp.private.readers import open_dataset
    from hyperdp.private.release import SignalWarning

    config = EvolutionConfig(
        candidates=candidates,
        iterations=iterations,
        count=count,
        lookahead=lookahead,
        strength=strength,
        last_strength=last_strength,
        threshold=threshold,
        seed=seed,
    )
    unit: Literal["record", "user"] = "record" if unit_column is None else "user"
    budget = PrivacyBudget(epsilon=epsilon, delta=delta, adjacency=adjacency, unit=unit)
    check_one_process("evolve")
    check_out(out, data)
    if images is not None:
        check_out(images, data, option="--images", new=True)
    loaded = load_bundle(bundle)
    opened = open_dataset(
        data,
        image_shape=loaded.config.image_shape,
        image_column=image_column,
        unit_column=unit_column,
        skip_unreadable=skip_unreadable,
        invert=invert,
    )
    read_once(opened)
    with steps_bar("iteration") as bar, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SignalWarning)
        task = bar.add_task("iterations", total=iterations, epsilon=epsilon)
        made = evolve(
            opened.records(),
            bundle=loaded,
            config=config,
            budget=budget,
            ledger=Ledger(ledger or o.default_ledger()),
            out=out,
            dataset=charged_to(opened, dataset),
            allow_weak_delta=allow_weak_delta,
            inverted=invert,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    if images is not None:
        save_images(made.images, images)
    c = made.certificate
    facts = {
        "images": str(out),
        "count": len(made.images),
        "bundle": c.bundle_name,
        "epsilon": c.epsilon,
        "delta": c.delta,
        "adjacency": c.adjacency,
        "unit": c.unit,
        "noise_multiplier": c.noise_multiplier,
        "iterations": c.iterations,
        "candidates": c.candidates,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{len(made.images)} images in {out}")
    typer.echo(f"spent: epsilon {c.epsilon:g}, delta {c.delta:g}, {c.adjacency}, unit {c.unit}")
    typer.echo(f"Next: {command('verify', out)}")
