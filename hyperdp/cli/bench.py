"""`hyperdp bench`: the table of methods, private sets, n, ε and seeds."""

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
from hyperdp.cli._engine import ENGINE, bench_engine
from hyperdp.cli._guard import bench_guard
from hyperdp.cli._text_bench import bench_texts
from hyperdp.cli._theory import bench_theory
from hyperdp.errors import UsageError


def bench_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: a TOML file or a shipped name; or theory, guard, train-step, "
            "step-time, release, emission, device."
        ),
    ],
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
    pictures: Annotated[
        Path | None,
        typer.Option(help="Keep a picture of each cell's images here, for `hyperdp report`."),
    ] = None,
    bundle: OtherBundle = None,
    table_only: Annotated[
        bool,
        typer.Option(
            "--table-only",
            help="Measure nothing: the table of the rows there are. For recipes and guard.",
        ),
    ] = False,
    device: OnDevice = "cpu",
) -> None:
    """Measure every cell of a recipe that is not measured yet, and print the table.

    Killed and started again, it loses at most the cell it was in. Several processes may measure
    different cells of one recipe into one file.

    Example: hyperdp bench bench-quick --into docs/benchmarks.md
    """
    from hyperdp.eval.text_recipe import text_recipe_path

    texts = text_recipe_path(recipe)
    _check(recipe, bundle, device, texts=texts is not None, table_only=table_only)
    if recipe == "theory":
        bench_theory(out, into)
        return
    if recipe == "guard":
        bench_guard(bundle or "glyphs", out, into, table_only=table_only)
        return
    if recipe in ENGINE:
        bench_engine(recipe, out, into, bundle or "glyphs")
        return
    if texts is not None:
        only = only_cells(size, epsilon, seed)
        bench_texts(texts, out, into, private_set, method, only, table_only=table_only)
        return
    from hyperdp.bundle import load_bundle
    from hyperdp.eval.bench import run_bench
    from hyperdp.eval.bench_recipe import read_bench_recipe
    from hyperdp.eval.bench_table import bench_table, stored_caption, stored_rows
    from hyperdp.eval.earlier import base_name
    from hyperdp.eval.kept_pictures import Pictures
    from hyperdp.eval.results import RESULTS, check_marks, render_into
    from hyperdp.eval.tuning import choices

    whole, config = read_bench_recipe(recipe), read_bench_recipe(recipe, private_set, method)
    if bundle is not None:
        whole, config = (dataclasses.replace(one, bundle=bundle) for one in (whole, config))
    if into is not None:  # before hours of work that could not be rendered
        check_marks(into, config.bench)
    path = out if out is not None else RESULTS / f"{config.bench}.jsonl"
    console = Console(stderr=True)

    if table_only:
        rows = stored_rows(whole, path, earlier=True)
    else:
        name = base_name(load_bundle(config.bundle))  # pictures of another one are other pictures
        keep = None if pictures is None else Pictures(folder=pictures / name).keep
        only = only_cells(size, epsilon, seed)
        rows = run_bench(
            config, path, only=only, on_cell=cell_lines(console), keep=keep, device=device
        )
    above = stored_caption(whole, path) if table_only else ""
    table = above + bench_table(whole, rows)
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, config.bench, table)
    for best in choices(config, rows):
        place = "" if best.n is None else f" at n={best.n}"
        place += "" if best.epsilon is None else f", ε={best.epsilon:g}"
        console.print(f"best of {best.of} variants of {best.method}{place}: {best.variant}")
    console.print(f"rows in {path}; measured on private data: not differentially private")


def _check(recipe: str, bundle: str | None, device: str, *, texts: bool, table_only: bool) -> None:
    """Raises UsageError for options that a recipe, or an engine's bench, has no use for."""
    if bundle is not None and (texts or recipe == "theory"):
        raise UsageError(
            expected=f"--bundle for a recipe of images or an engine's bench, not for {recipe}",
            found=bundle,
            todo="Write the bundle into a copy of the recipe.",
        )
    if device != "cpu" and (texts or recipe in {"theory", "guard", *ENGINE}):
        raise UsageError(
            expected=f"--device for a recipe of images, not for {recipe}",
            found=device,
            todo="Leave --device out: documents are measured on the CPU, and the engine's benches "
            "find a GPU themselves.",
        )
    if table_only and recipe in {"theory", *ENGINE}:
        raise UsageError(
            expected="--table-only for a recipe or for guard",
            found=f"--table-only for {recipe}, whose table is of the run that measures it",
            todo="Leave it out to measure anew; the table that there is stands in docs/.",
        )
