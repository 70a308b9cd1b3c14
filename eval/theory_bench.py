"""`hyperdp bench theory`: four private estimators in the linear world, over n and ε."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hyperdp.errors import DataError
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.theory import (
    Array,
    Clip,
    LinearWorld,
    best_clip,
    descend,
    learn_subspace,
    one_shot,
    predicted,
    public_clips,
    slope,
    subspace_error,
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
_COLOURS = ("#1f5fd6", "#0b7a58", "#a04a05", "#777777")
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
        append_rows(path, found_rows)
        rows += found_rows
    return rows


def means(rows: list[Row]) -> dict[tuple[str, int, float], tuple[float, float]]:
    """(method, n, ε) → mean relative error and its standard error over repeats."""
    groups: dict[tuple[str, int, float], list[float]] = {}
    for row in rows:
        if row.n is not None and row.epsilon is not None and row.metric == METRIC:
            groups.setdefault((row.method, row.n, row.epsilon), []).append(row.value)
    return {
        key: (float(np.mean(v)), float(np.std(v, ddof=1) / np.sqrt(len(v))))
        for key, v in groups.items()
        if len(v) > 1
    }


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """One measured slope beside the predicted one.

    Attributes:
        method: a key of `METHODS`.
        regime: `privacy` (its error is at least nine tenths of the prediction) or `sampling`.
        quantity: `n` or `epsilon`.
        at: the value of the other quantity.
        measured, predicted: exponents.
        points: the values of the quantity that it was measured over.
    """

    method: str
    regime: str
    quantity: str
    at: float
    measured: float
    predicted: float
    points: tuple[float, ...]


def exponents(run: TheoryRun, rows: list[Row]) -> list[Exponent]:
    """Slopes of the one-shot estimators where the prediction says that one rate holds alone.

    A regime is chosen by the prediction, never by what was measured: one part is at least nine
    tenths of the error, the error is at most 0.3, and the subspace's own error is at most a
    twentieth of it. At least two points are needed.
    """
    found = []
    averages = means(rows)
    for method in ("one_shot_subspace", "one_shot"):
        for quantity, regime, expected in (
            ("n", "privacy", -2.0), ("n", "sampling", -1.0), ("epsilon", "privacy", -2.0),
        ):  # fmt: skip
            lines: dict[float, list[tuple[float, float]]] = {}
            for (name, n, epsilon), (error, _) in averages.items():
                if name == method and _in_regime(run, method, n, epsilon, regime):
                    at, position = (epsilon, n) if quantity == "n" else (n, epsilon)
                    lines.setdefault(float(at), []).append((float(position), error))
            for at, points in sorted(lines.items()):
                if len(points) < 2:
                    continue
                xs, ys = map(list, zip(*sorted(points), strict=True))
                found.append(
                    Exponent(
                        method=method, regime=regime, quantity=quantity, at=at,
                        measured=slope(xs, ys), predicted=expected, points=tuple(xs),
                    )
                )  # fmt: skip
    return found


def prediction(run: TheoryRun, method: str, n: int, epsilon: float) -> tuple[float, float]:
    """Predicted sampling and privacy error of a one-shot method, unshrunk."""
    inside = method.endswith("_subspace")
    world = run.config.world
    dim, multiplier = (world.k if inside else world.d), world.multiplier(epsilon)
    clip = best_clip(run.clips[inside], dim=dim, n=n, multiplier=multiplier)
    return predicted(clip, dim=dim, n=n, multiplier=multiplier)


def _in_regime(run: TheoryRun, method: str, n: int, epsilon: float, regime: str) -> bool:
    sampling, privacy = prediction(run, method, n, epsilon)
    total = sampling + privacy
    part = privacy if regime == "privacy" else sampling
    known = subspace_error(run.basis, run.learned) if method.endswith("_subspace") else 0.0
    return part >= 0.9 * total and total / (1 + total) <= 0.3 and known <= total / 20


def to_tables(run: TheoryRun, rows: list[Row]) -> str:
    """Markdown: mean error ± standard error by method, n and ε; then the exponents.

    Raises:
        DataError: there are no rows.
    """
    averages = means(rows)
    if not averages:
        raise DataError(
            expected="rows of the bench", found="none", todo="Run `hyperdp bench theory` first."
        )
    lines = ["| n | ε | " + " | ".join(METHODS.values()) + " |", "|---" * 6 + "|"]
    for n, epsilon in sorted({key[1:] for key in averages}):
        cells = [averages.get((method, n, epsilon)) for method in METHODS]
        words = ["–" if c is None else f"{c[0]:.2g} ± {c[1]:.1g}" for c in cells]
        lines.append(f"| {n:,} | {epsilon:g} | " + " | ".join(words) + " |")
    lines += [
        "",
        "| method | error is mostly | exponent of | over | at | measured | predicted |",
        "|---" * 7 + "|",
    ]
    for e in exponents(run, rows):
        symbol, other = ("n", "ε") if e.quantity == "n" else ("ε", "n")
        span = f"{min(e.points):,g} to {max(e.points):,g}"
        lines.append(
            f"| {METHODS[e.method]} | {e.regime} | {symbol} | {span} | {other} = {e.at:,g} | "
            f"{e.measured:.2f} | {e.predicted:g} |"
        )
    return "\n".join(lines) + "\n"


def draw_picture(run: TheoryRun, rows: list[Row], path: Path) -> None:
    """Error against n for three ε, and against ε at the largest n, with predictions drawn in.

    Args:
        run: the public side, for the predictions.
        rows: of the bench.
        path: PNG.
    """
    averages = means(rows)
    config = run.config
    largest = max(config.n)
    panels = [("n", e) for e in config.epsilon] + [("epsilon", float(largest))]
    figure = Figure(figsize=(4.2 * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (quantity, at) in zip(axes, panels, strict=True):
        for (method, label), colour in zip(METHODS.items(), _COLOURS, strict=True):
            points = sorted(
                (n if quantity == "n" else epsilon, *value)
                for (name, n, epsilon), value in averages.items()
                if name == method and at == (epsilon if quantity == "n" else n)
            )
            if not points:
                continue
            xs, ys, bars = zip(*points, strict=True)
            axis.errorbar(xs, ys, yerr=bars, fmt="o", ms=4, color=colour, capsize=2, label=label)
            style = "-" if method.startswith("one_shot") else ":"
            axis.plot(xs, _curve(run, method, quantity, at, xs, ys), style, color=colour, lw=1.2)
        axis.set(xscale="log", yscale="log", ylim=(1e-4, 3), xlabel="n" if quantity == "n" else "ε")
        axis.set_title(f"ε = {at:g}" if quantity == "n" else f"n = {at:,g}")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("relative error ‖θ̂ − θ‖² / ‖θ‖²")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curve(
    run: TheoryRun, method: str, quantity: str, at: float, xs: tuple[float, ...],
    ys: tuple[float, ...],
) -> list[float]:  # fmt: skip
    """The prediction of a one-shot method; of DP-SGD no closed form, its points joined."""
    if not method.startswith("one_shot"):
        return list(ys)
    own = subspace_error(run.basis, run.learned) if method.endswith("_subspace") else 0.0
    curve = []
    for x in xs:
        n, epsilon = (int(x), at) if quantity == "n" else (int(at), x)
        total = sum(prediction(run, method, n, epsilon))
        curve.append(own + (1 - own) * total / (1 + total))
    return curve
