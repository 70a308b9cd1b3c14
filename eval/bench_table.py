"""The benchmark's table from the rows that there are; it measures nothing."""

from __future__ import annotations

from pathlib import Path

from hyperdp.bundle import load_bundle
from hyperdp.eval.bench import current_rows
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.earlier import base_name, caption, measured_base
from hyperdp.eval.results import Row, read_rows, to_markdown

METRICS = ("fid", "kid", "recovered_gain")


def stored_rows(config: BenchConfig, path: Path, *, earlier: bool = False) -> list[Row]:
    """The rows of a recipe's bundle as it is now, in the order of the recipe.

    Args:
        config: the recipe.
        path: JSONL.
        earlier: where there are none, those of the bundle before, see `stored_caption`.

    Returns:
        Rows; [] where nothing is measured yet.
    """
    known = read_rows(path)
    base = base_name(load_bundle(config.bundle))
    base = measured_base(known, config.bench, base) if earlier else base
    return in_order(config, current_rows(config, known, base))


def stored_caption(config: BenchConfig, path: Path) -> str:
    """What has to stand above the table of `stored_rows(…, earlier=True)`, see `caption`."""
    base = base_name(load_bundle(config.bundle))
    return caption(measured_base(read_rows(path), config.bench, base), base)


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
