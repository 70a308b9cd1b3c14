"""What the rows of `hyperdp bench theory` say: means, exponents, tables and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hyperdp.errors import DataError
from hyperdp.eval.results import Row
from hyperdp.eval.theory import best_clip, predicted, slope, subspace_error
from hyperdp.eval.theory_bench import METHODS, METRIC, TheoryRun

_COLOURS = ("#1f5fd6", "#0b7a58", "#a04a05", "#777777")


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
