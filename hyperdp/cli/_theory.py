"""`hyperdp bench theory`: the linear world, its table and its picture."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console


def bench_theory(out: Path | None, into: Path | None) -> None:
    """Measure what is missing, print the tables and draw the picture.

    Args:
        out: JSONL; `eval/results/theory.jsonl` by default.
        into: Markdown page whose table is replaced; the picture then lies in `images/` beside it,
            else beside the JSONL.
    """
    from hyperdp.eval.results import RESULTS, render_into
    from hyperdp.eval.theory_bench import BENCH, TheoryConfig, TheoryRun, run_theory
    from hyperdp.eval.theory_tables import draw_picture, to_tables

    config = TheoryConfig()
    path = out if out is not None else RESULTS / f"{BENCH}.jsonl"
    console = Console(stderr=True)

    def on_cell(done: int, total: int) -> None:
        console.print(f"{done + 1}/{total}")

    rows = run_theory(config, path, on_cell=on_cell)
    run = TheoryRun(config)
    tables = to_tables(run, rows)
    typer.echo(tables, nl=False)
    picture = path.with_suffix(".png")
    if into is not None:
        picture = into.parent / "images" / f"{BENCH}.png"
        render_into(into, BENCH, tables)
    draw_picture(run, rows, picture)
    console.print(f"rows in {path}, picture in {picture}; all data is synthetic")
