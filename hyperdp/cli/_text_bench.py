"""`hyperdp bench` of a recipe of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from hyperdp.cli._cells import cell_lines
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.eval.cells import OnCell, Only
    from hyperdp.eval.results import Row
    from hyperdp.text_bundle import TextBundle


def bench_texts(
    recipe: Path,
    out: Path | None,
    into: Path | None,
    private_sets: list[str] | None,
    methods: list[str] | None,
    only: Only,
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
        only: which cells.
        table_only: measure nothing.
    """
    from hyperdp.eval import text_bench, text_labels, text_recipe
    from hyperdp.eval.results import RESULTS, check_marks, render_into

    measure: Callable[[Path, OnCell, list[str] | None, Only], list[Row]]
    stored: Callable[[Path, TextBundle], list[Row]]
    known: Sequence[str]
    # The table is of the whole recipe, whatever is measured of it now: a page keeps its other sets.
    if text_recipe.recipe_kind(recipe) == text_recipe.LABELS_KIND:
        labels = text_recipe.read_labels_recipe(recipe, private_sets)
        name, bundle, known = labels.bench, labels.bundle, text_labels.METHODS
        measure = partial(text_labels.run_text_labels, labels)
        stored = partial(text_labels.stored_label_rows, text_recipe.read_labels_recipe(recipe))
        render = text_labels.label_table
    else:
        config = text_recipe.read_text_recipe(recipe, private_sets)
        whole = text_recipe.read_text_recipe(recipe)
        name, bundle, known = config.bench, config.bundle, text_bench.methods_of(config)
        measure = partial(text_bench.run_text_bench, config)
        stored = partial(text_bench.stored_text_rows, whole)
        render = partial(text_bench.text_table, whole)
    if unknown := sorted(set(methods or []) - set(known)):
        raise UsageError(
            expected=f"--method out of {', '.join(known)}",
            found=", ".join(unknown),
            todo="Choose out of these; a recipe's own variants are written NAME/VARIANT.",
        )
    if into is not None:
        check_marks(into, name)
    path = out if out is not None else RESULTS / f"{name}.jsonl"
    console = Console(stderr=True)

    if not table_only:
        measure(path, cell_lines(console), methods, only)
    table = render(stored(path, text_bench.open_text_bundle(bundle)))
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, name, table)
    console.print(f"rows in {path}; measured on private data: not differentially private")
