"""`hyperdp labelled`: the table of classifiers, by what they were trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hyperdp.cli._cells import (
    OnlyEpsilons,
    OnlyMethods,
    OnlySeeds,
    OnlySets,
    OnlySizes,
    OtherBundle,
    RowsFile,
    cell_lines,
    only_cells,
)
from hyperdp.cli._device import OnDevice


def labelled_command(
    recipe: Annotated[str, typer.Argument(help="A recipe: a TOML file, or a shipped name.")],
    out: RowsFile = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Also write the table between its marks in this Markdown page."),
    ] = None,
    private_set: OnlySets = None,
    method: OnlyMethods = None,
    size: OnlySizes = None,
    epsilon: OnlyEpsilons = None,
    seed: OnlySeeds = None,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Measure nothing: the table of the rows there are.")
    ] = False,
    bundle: OtherBundle = None,
    device: OnDevice = "cpu",
    microbatch: Annotated[
        int, typer.Option(min=1, help="Examples whose gradients are held at once.")
    ] = 64,
) -> None:
    """Train classifiers with and without privacy, and measure them on real images held out.

    Killed and started again, it loses at most the cell it was in.

    Example: hyperdp labelled labelled-quick
    """
    from hyperdp.compute import usable_device
    from hyperdp.eval.labelled import labelled_caption, run_labelled
    from hyperdp.eval.labelled_recipe import read_labelled_recipe
    from hyperdp.eval.results import RESULTS, render_into, to_markdown
    from hyperdp.private.classifier.training import Speed

    usable_device(device)
    whole = read_labelled_recipe(recipe)
    config = read_labelled_recipe(recipe, private_set, method)
    if bundle is not None:
        whole, config = (dataclasses.replace(one, bundle=bundle) for one in (whole, config))
    path = out if out is not None else RESULTS / f"{config.bench}.jsonl"
    console = Console(stderr=True)
    if not table_only:
        run_labelled(
            config,
            path,
            only=only_cells(size, epsilon, seed),
            speed=Speed(microbatch=microbatch, device=device),
            on_cell=cell_lines(console),
        )
    rows = run_labelled(whole, path, measure=False)
    rows += [r for r in run_labelled(config, path, measure=False) if r not in rows]
    classes = sorted({row.metric for row in rows if row.metric.startswith("accuracy_")})
    table = labelled_caption(whole, path)
    table += to_markdown(rows, ("accuracy", "worst_class_accuracy", *classes))
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, config.bench, table)
    console.print(f"rows in {path}; measured on private data: not differentially private")
