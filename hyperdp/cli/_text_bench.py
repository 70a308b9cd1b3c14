"""`hyperdp bench` of a recipe of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console


def bench_texts(
    recipe: Path,
    out: Path | None,
    into: Path | None,
    private_sets: list[str] | None,
    methods: list[str] | None,
    *,
    table_only: bool,
) -> None:
    """Measure what is not measured yet of a text recipe, and print the table.

    Args:
        recipe: its file.
        out: JSONL; eval/results/BENCH.jsonl when None.
        into: Markdown page that the table goes into as well.
        private_sets: only these.
        methods: only these.
        table_only: measure nothing.
    """
    from hyperdp.eval.results import RESULTS, check_marks, render_into
    from hyperdp.eval.text_bench import (
        TextCell,
        open_text_bundle,
        run_text_bench,
        stored_text_rows,
        text_table,
    )
    from hyperdp.eval.text_recipe import read_text_recipe

    config = read_text_recipe(recipe, private_sets)
    if into is not None:
        check_marks(into, config.bench)
    path = out if out is not None else RESULTS / f"{config.bench}.jsonl"
    console = Console(stderr=True)

    def on_cell(cell: TextCell, number: int, total: int) -> Callable[[int, int], None]:
        size = "" if cell.n is None else f" n={cell.n}"
        size += "" if cell.epsilon is None else f" ε={cell.epsilon:g}"
        console.print(
            f"{number + 1}/{total} {cell.private_set} {cell.method}{size} seed {cell.seed}"
        )

        def progress(done: int, count: int) -> None:
            if done % 50 == 0:
                console.print(f"   {done}/{count}")

        return progress

    if table_only:
        rows = stored_text_rows(config, path, open_text_bundle(config.bundle))
    else:
        rows = run_text_bench(config, path, on_cell, methods)
    table = text_table(config, rows)
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, config.bench, table)
    console.print(f"rows in {path}; measured on private data: not differentially private")
