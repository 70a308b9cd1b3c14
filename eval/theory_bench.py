"""`hyperdp bench theory`: four private estimators in the linear world, over n and ε."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.theory import (
    Array,
    Clip,
    LinearWorld,
    best_clip,
    descend,
    learn_subspace,
    one_shot,
    public_clips,
    tune,
)

BENCH = "theory"
METHODS = {
    "one_shot_subspace": "one shot in the public subspace",
    "dpsgd_subspace": "DP-SGD in the public subspace",
    "dpsgd": "DP-SGD",
    "one_shot": "one shot, no subspace",
}
METRIC = "relative_error"
_TUNE_SEED = 1_000_000  # seeds from here on are for tuning and are never measured


@dataclass(frozen=True, kw_only=True)
class TheoryConfig:
    """What is swept.

    Attributes:
        world: the law.
        n: records, for every ε of `epsilon`.
        epsilon: budgets, for every n.
        more_epsilon: further budgets at the largest n alone: the sweep over ε.
        repeats: tasks, each with its own records and noise; seeds 0, 1, ….
        tune_draws: separate tasks that DP-SGD's T, rate and clip are chosen on.
        public_tasks, public_records: what the subspace is learned from.
        clip_records: public records that clip norms are judged on.
    """

    world: LinearWorld = field(default_factory=LinearWorld)
    n: tuple[int, ...] = (125, 500, 1000, 2000, 4000, 8000, 32000)
    epsilon: tuple[float, ...] = (0.05, 0.2, 1.0, 8.0)
    more_epsilon: tuple[float, ...] = (0.01, 0.02, 0.5)
    repeats: int = 20
    tune_draws: int = 3
    public_tasks: int = 4000
    public_records: int = 1000
    clip_records: int = 100_000

    @property
    def cells(self) -> list[tuple[int, float]]:
        """(n, ε) in the order they are measured."""
        grid = [(n, e) for n in self.n for e in self.epsilon]
        return grid + [(max(self.n), e) for e in self.more_epsilon]

    @property
    def base(self) -> str:
        """How rows name the world."""
        w = self.world
        return f"linear d={w.d} k={w.k} noise={w.noise_std:g}"


class TheoryRun:
    """The public side of a config, made once: U, Û and what public records say of clips."""

    def __init__(self, config: TheoryConfig) -> None:
        self.config = config
        self._rng = np.random.default_rng(7)
        self.basis = config.world.basis(self._rng)

    @cached_property
    def learned(self) -> Array:
        """Û, float32 [d, k]."""
        c = self.config
        return learn_subspace(
            c.world,
            self.basis,
            tasks=c.public_tasks,
            records=c.public_records,
            rng=np.random.default_rng(8),
        )

    @cached_property
    def clips(self) -> dict[bool, list[Clip]]:
        """Clip norms and their moments; True: in the subspace."""
        c, rng = self.config, np.random.default_rng(9)
        return {
            inside: public_clips(c.world, dim, records=c.clip_records, rng=rng)
            for inside, dim in ((True, c.world.k), (False, c.world.d))
        }

    def cell(self, n: int, epsilon: float) -> dict[str, list[float]]:
        """Relative squared errors ‖θ̂ − θ‖² / ‖θ‖² of every method, one for each repeat."""
        c, multiplier = self.config, self.config.world.multiplier(epsilon)
        tuned = {}
        draws = [self._draw(_TUNE_SEED + i, n) for i in range(c.tune_draws)]
        for inside in (True, False):
            projected = [self._inside(*draw) if inside else draw for draw in draws]
            tuned[inside] = tune(
                projected,
                gradient_norm=self._gradient_norm(inside),
                multiplier=multiplier,
                rng=np.random.default_rng(_TUNE_SEED),
            )
        errors: dict[str, list[float]] = {name: [] for name in METHODS}
        for seed in range(c.repeats):
            x, y, theta = self._draw(seed, n)
            rng = np.random.default_rng([seed, n, round(epsilon * 1e6)])
            for inside in (True, False):
                z = x @ self.learned if inside else x
                clip = best_clip(self.clips[inside], dim=z.shape[1], n=n, multiplier=multiplier)
                shot = one_shot(z, y, clip, multiplier, rng)
                steps = descend(
                    z,
                    y,
                    [tuned[inside]],
                    gradient_norm=self._gradient_norm(inside),
                    multiplier=multiplier,
                    rng=rng,
                )[:, 0]
                ending = "_subspace" if inside else ""
                for name, found in (("one_shot", shot), ("dpsgd", steps)):
                    whole = self.learned @ found if inside else found
                    errors[name + ending].append(float(np.square(whole - theta).sum()))
        return errors

    def _draw(self, seed: int, n: int) -> tuple[Array, Array, Array]:
        """X [n, d], y [n] and θ [d] of one task."""
        rng = np.random.default_rng([seed, 11])
        theta = self.config.world.task(self.basis, rng)
        return (*self.config.world.records(theta, n, rng), theta)

    def _inside(self, x: Array, y: Array, theta: Array) -> tuple[Array, Array, Array]:
        return x @ self.learned, y, self.learned.T @ theta

    def _gradient_norm(self, inside: bool) -> float:
        """Median norm of the gradients at 0 on public records: ‖φ‖ at quantile 0.5."""
        return self.clips[inside][3].norm


def run_theory(
    config: TheoryConfig, path: Path, *, on_cell: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Measures every cell that is not in `path` yet and appends its rows.

    Args:
        config: see `TheoryConfig`.
        path: JSONL.
        on_cell: called with (cells done, cells) before each cell.

    Returns:
        All rows of this bench in `path`.
    """
    rows = [row for row in read_rows(path) if (row.bench, row.base) == (BENCH, config.base)]
    have = {(row.n, row.epsilon) for row in rows}
    run, source = TheoryRun(config), provenance()
    for number, (n, epsilon) in enumerate(config.cells):
        if on_cell is not None:
            on_cell(number, len(config.cells))
        if (n, epsilon) in have:
            continue
        start = time.monotonic()
        found = run.cell(n, epsilon)
        found_rows = [
            Row(
                bench=BENCH, base=config.base, private_set="synthetic", method=method, n=n,
                epsilon=epsilon, delta=config.world.delta, seed=seed, metric=METRIC, value=value,
                seconds=round((time.monotonic() - start) / len(METHODS) / config.repeats, 4),
                peak_rss_mb=peak_rss_mb(), **source,
            )
            for method, values in found.items()
            for seed, value in enumerate(values)
        ]  # fmt: skip
        append_rows(path, found_rows, once=True)
        rows += found_rows
    return rows
