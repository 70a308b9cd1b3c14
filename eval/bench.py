"""The benchmark: method × private set × n × ε × seed, resumable cell by cell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hyperdp.bundle import load_bundle
from hyperdp.compute import usable_device
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.cells import Cell, OnCell, Only, measure_cells
from hyperdp.eval.kept_pictures import Keep
from hyperdp.eval.results import Row, append_rows, read_rows
from hyperdp.eval.reuse import reused_rows
from hyperdp.eval.row_settings import bench_settings, fits
from hyperdp.eval.study import Progress
from hyperdp.eval.tuning import Tuning
from hyperdp.eval.world import LabelledWorld, World


def run_bench(
    config: BenchConfig,
    out: Path,
    *,
    only: Only | None = None,
    on_cell: OnCell | None = None,
    keep: Keep | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Makes every cell that the results file does not hold yet.

    Args:
        config: the recipe.
        out: JSONL; a run that was killed goes on after its last whole cell.
        only: which cells; all when None.
        on_cell: see `OnCell`.
        keep: called with each cell and its images, before its rows are written; see `Pictures`.
        device: of the base model and of the features' network.

    Returns:
        All rows of the bench, old and new, with the recovered gain of each cell.

    Raises:
        UsageError: `only` asks for what the recipe does not have.
    """
    chosen = only if only is not None else Only()
    chosen.check(n=config.n, epsilon=config.epsilon, seeds=config.seeds)
    bundle = load_bundle(config.bundle).to(usable_device(device))
    base = f"{bundle.name}-{bundle.hash[:8]}"
    tuning = Tuning(config.tuning, base)
    append_rows(out, reused_rows(config, base, read_rows(out)), once=True)
    world: World | None = None

    def figures(cell: Cell, progress: Progress) -> dict[str, float]:
        nonlocal world
        if world is None or world.data.name != cell.private_set:
            kind = LabelledWorld if config.labelled else World
            world = kind(config, cell.private_set, bundle, tuning)
            world.keep = keep
        return world.measure(cell, progress)

    measure_cells(
        filter(chosen.keeps, cells(config)), out, bench=config.bench, delta=config.delta,
        base=lambda _: base, figures=figures, on_cell=on_cell, device=bundle.device,
        settings=lambda cell: bench_settings(config, cell),
    )  # fmt: skip
    return current_rows(config, read_rows(out), base)


def current_rows(config: BenchConfig, rows: list[Row], base: str) -> list[Row]:
    """The rows of a recipe and a bundle, with the recovered gains that follow from them.

    Gains are worked out here and never read: a stored one would stay as it was when its reference
    is measured anew.

    Args:
        config: the recipe.
        rows: of any recipes, bundles and settings.
        base: the bundle as rows spell it.
    """
    mine = [
        row
        for row in rows
        if (row.bench, row.base) == (config.bench, base)
        and row.metric != "recovered_gain"
        and fits(row, bench_settings(config, row))
    ]
    return mine + recovered_gains(mine)


def recovered_gains(rows: list[Row]) -> list[Row]:
    """The recovered gains of a bench's rows, in their order.

    (FID_base - FID) / (FID_base - FID_LoRA), with the mean over seeds of base and of non-private
    LoRA on all private records. A set without these two, or that LoRA does not bring nearer, has no
    gain; it has one as soon as they are measured, whatever the order of the cells.
    """
    fids = [r for r in rows if r.metric == "fid"]
    gains = []
    for row in fids:
        if row.method in {"floor", "base", "lora"}:
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
