"""The benchmark's table from the rows that there are; it measures nothing."""

from __future__ import annotations

from pathlib import Path

from hyperdp.bundle import load_bundle
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.results import Row, read_rows, to_markdown

METRICS = ("fid", "kid", "recovered_gain")


def stored_rows(config: BenchConfig, path: Path) -> list[Row]:
    """The rows of a recipe's bundle as it is now, in the order of the recipe.

    Args:
        config: the recipe.
        path: JSONL.

    Returns:
        Rows; [] where nothing is measured yet.
    """
    bundle = load_bundle(config.bundle)
    base = f"{bundle.name}-{bundle.hash[:8]}"
    return in_order(
        config, [r for r in read_rows(path) if (r.bench, r.base) == (config.bench, base)]
    )


def in_order(config: BenchConfig, rows: list[Row]) -> list[Row]:
    """Rows in the order of the recipe's cells, whatever the order they were measured in.

    So the table of a run that was broken off, or that began with some of the methods, is that of an
    unbroken one. Rows of no cell of the recipe come last, as they are.
    """
    place = {
        (c.private_set, c.method, c.n, c.epsilon, c.seed): i for i, c in enumerate(cells(config))
    }
    last = len(place)

    def rank(row: Row) -> int:
        return place.get((row.private_set, row.method, row.n, row.epsilon, row.seed), last)

    return sorted(rows, key=rank)


def bench_table(config: BenchConfig, rows: list[Row]) -> str:
    """The Markdown table of a recipe.

    Args:
        config: the recipe; it says which columns and which order.
        rows: of `run_bench` or `stored_rows`.
    """
    classes = sorted({row.metric for row in rows if row.metric.startswith("accuracy_")})
    metrics = ("accuracy", *classes) if config.labelled else METRICS
    if not config.sampling.count and not config.labelled:
        metrics = ("loss",)
    return to_markdown(in_order(config, rows), metrics)
