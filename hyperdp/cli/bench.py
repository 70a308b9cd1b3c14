"""`hyperdp bench`: the table of methods, private sets, n, ε and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hyperdp.cli._theory import bench_theory


def bench_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a TOML file, a shipped name, or theory.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSONL; eval/results/BENCH.jsonl by default.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Also write the table between its marks in this Markdown page."),
    ] = None,
    private_set: Annotated[
        list[str] | None, typer.Option(help="Only this private set; may be repeated.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be repeated.")
    ] = None,
) -> None:
    """Measure every cell of a recipe that is not measured yet, and print the table.

    Killed and started again, it loses at most the cell it was in.

    Example: hyperdp bench glyphs-gain
    """
    if recipe == "theory":
        bench_theory(out, into)
        return
    from hyperdp.eval.bench import run_bench
    from hyperdp.eval.bench_recipe import Cell, read_bench_recipe
    from hyperdp.eval.results import RESULTS, render_into, to_markdown
    from hyperdp.eval.tuning import choices

    config = read_bench_recipe(recipe, private_set, method)
    path = out if out is not None else RESULTS / f"{config.bench}.jsonl"
    console = Console(stderr=True)

    def on_cell(cell: Cell, number: int, total: int) -> Callable[[int, int], None]:
        size = "" if cell.n is None else f" n={cell.n}"
        size += "" if cell.epsilon is None else f" ε={cell.epsilon:g}"
        title = f"{number + 1}/{total} {cell.private_set} {cell.method}{size} seed {cell.seed}"
        console.print(title)
        last = time.monotonic()

        def progress(done: int, count: int) -> None:
            nonlocal last
            if time.monotonic() - last > 30:
                last = time.monotonic()
                console.print(f"   {done}/{count}")

        return progress

    rows = run_bench(config, path, on_cell=on_cell)
    classes = sorted({row.metric for row in rows if row.metric.startswith("accuracy_")})
    metrics = ("accuracy", *classes) if config.labelled else ("fid", "kid", "recovered_gain")
    if not config.sampling.count and not config.labelled:
        metrics = ("loss",)
    table = to_markdown(rows, metrics)
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, config.bench, table)
    for best in choices(config, rows):
        place = "" if best.n is None else f" at n={best.n}"
        place += "" if best.epsilon is None else f", ε={best.epsilon:g}"
        console.print(f"best of {best.of} variants of {best.method}{place}: {best.variant}")
    console.print(f"rows in {path}; measured on private data: not differentially private")
