"""Rows of a small benchmark, made up by a law that is easy to check."""

from __future__ import annotations

from hyperdp.eval.bench import recovered_gains
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.cells import Cell
from hyperdp.eval.results import Row
from hyperdp.eval.study import SamplingConfig

BASE = "tiny-0123abcd"
FIXED = {"floor": 30.0, "base": 300.0, "lora": 100.0, "public_mean": 260.0, "other_task": 400.0}


def quick_config() -> BenchConfig:
    return BenchConfig(
        bench="quick",
        bundle="tiny",
        private_sets=["digits"],
        n=[500, 100],
        epsilon=[0.2, 1.0, 8.0],
        delta=1e-5,
        seeds=[0, 1],
        methods=["floor", "base", "lora", "public_mean", "other_task", "hyper"],
        sampling=SamplingConfig(count=64, steps=2),
    )


def fid_of(cell: Cell) -> float:
    """Falls with n·ε for `hyper`, and a little with the seed."""
    if cell.method in FIXED:
        return FIXED[cell.method]
    assert cell.n is not None and cell.epsilon is not None
    signal = cell.n * cell.epsilon
    return 100.0 + 200.0 / (1 + signal / 300) + 4.0 * cell.seed


def bench_rows(config: BenchConfig, base: str = BASE) -> list[Row]:
    """One row a metric and cell, and the recovered gains."""
    rows = [
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
            commit="c0ffee",
            hardware="a processor, 2 cores",
            seconds=600.0 if cell.method == "lora" else 30.0,
            peak_rss_mb=1000.0,
            command="hyperdp bench quick",
        )
        for cell in cells(config)
        for metric, value in (("fid", fid_of(cell)), ("kid", fid_of(cell) / 100))
    ]
    return rows + recovered_gains(rows)
