"""The benchmark: method × private set × n × ε × seed, resumable cell by cell."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from hyperdp.bundle import load_bundle
from hyperdp.eval.bench_recipe import BenchConfig, Cell, cells
from hyperdp.eval.kept_pictures import Keep
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.study import Progress
from hyperdp.eval.tuning import Tuning
from hyperdp.eval.world import LabelledWorld, World


def run_bench(
    config: BenchConfig,
    out: Path,
    *,
    on_cell: Callable[[Cell, int, int], Progress] | None = None,
    keep: Keep | None = None,
) -> list[Row]:
    """Makes every cell that the results file does not hold yet.

    Args:
        config: the recipe.
        out: JSONL; a run that was killed goes on after its last whole cell.
        on_cell: called with (cell, number, cells in all); returns the cell's own progress callback.
        keep: called with each cell and its images, before its rows are written; see `Pictures`.

    Returns:
        All rows of the bench, old and new, with the recovered gain of each cell.
    """
    bundle = load_bundle(config.bundle)
    base = f"{bundle.name}-{bundle.hash[:8]}"
    rows = [row for row in read_rows(out) if row.bench == config.bench and row.base == base]
    done = {_key(r) for r in rows}
    tuning = Tuning(config.tuning, base)
    world: World | None = None
    todo = list(cells(config))
    for number, cell in enumerate(todo):
        key = (cell.private_set, cell.method, cell.n, cell.epsilon, cell.seed)
        if key in done:
            continue
        if world is None or world.data.name != cell.private_set:
            kind = LabelledWorld if config.labelled else World
            world = kind(config, cell.private_set, bundle, tuning)
            world.keep = keep
        progress = on_cell(cell, number, len(todo)) if on_cell is not None else _silent
        began = time.monotonic()
        figures = world.measure(cell, progress)
        new = [
            Row(
                bench=config.bench,
                base=base,
                private_set=cell.private_set,
                method=cell.method,
                n=cell.n,
                epsilon=cell.epsilon,
                delta=None if cell.epsilon is None else config.delta,
                seed=cell.seed,
                metric=metric,
                value=value,
                seconds=round(time.monotonic() - began, 1),
                peak_rss_mb=peak_rss_mb(),
                **provenance(),
            )
            for metric, value in figures.items()
        ]
        append_rows(out, new)
        rows += new
    gains = recovered_gains(rows)
    append_rows(out, gains)
    return rows + gains


def recovered_gains(rows: list[Row]) -> list[Row]:
    """The recovered gains that a bench's rows do not hold yet, in the order of the rows.

    (FID_base - FID) / (FID_base - FID_LoRA), with the mean over seeds of base and of non-private
    LoRA on all private records. A set without these two, or that LoRA does not bring nearer, has no
    gain; it has one as soon as they are measured, whatever the order of the cells.
    """
    known = {_key(r) for r in rows if r.metric == "recovered_gain"}
    fids = [r for r in rows if r.metric == "fid"]
    gains = []
    for row in fids:
        if row.method in {"floor", "base", "lora"} or _key(row) in known:
            continue
        base, lora = (
            [r.value for r in fids if (r.private_set, r.method) == (row.private_set, name)]
            for name in ("base", "lora")
        )
        if not base or not lora:
            continue
        best, start = sum(lora) / len(lora), sum(base) / len(base)
        if start > best:
            gain = (start - row.value) / (start - best)
            gains.append(dataclasses.replace(row, metric="recovered_gain", value=gain))
    return gains


def _key(row: Row) -> tuple[str, str, int | None, float | None, int]:
    return row.private_set, row.method, row.n, row.epsilon, row.seed


def _silent(done: int, total: int) -> None:
    """No progress."""
