"""The privacy–utility curve of a benchmark, as inline SVG for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from hyperdp.eval.pictures import CONTROL, FLOOR, INK, MUTED, SERIES, to_svg

_HEIGHT = {"wide": 330.0, "narrow": 260.0}  # CSS pixels of the axes
_LINE = 22.0  # of a line of the legend
_POINTS = 72 * 1.39  # CSS pixels of an inch of the figure, so that 10 points are read as 14 pixels


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method at one n.

    Attributes:
        label: of the legend.
        epsilon: ascending. value: mean over seeds at each. spread: std over seeds, 0 for one seed.
    """

    label: str
    epsilon: Sequence[float]
    value: Sequence[float]
    spread: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A method that no ε changes: a line across the picture.

    Attributes:
        label: of the legend. value: where it stands.
        kind: `control` (saw no private data), `mark` (non-private) or `floor` (real images).
    """

    label: str
    value: float
    kind: str


def curve_chart(curves: Sequence[Curve], levels: Sequence[Level], *, width: int, name: str) -> str:
    """Curves over ε on a log axis, with their std over seeds, and levels across.

    A level far beyond all others would flatten the rest: the axis then ends before it, and the
    legend, which has every value, says so.

    Args:
        curves: at least one.
        levels: controls, the non-private mark and the floor.
        width: CSS pixels that the chart is made for.
        name: of the chart, one of its own on a page.

    Returns:
        An `<svg>` element whose colours are CSS variables; see `to_svg`.
    """
    narrow = width < 600
    columns = 1 if narrow else 2
    entries = len(curves) + len(levels)
    legend = _LINE * -(-entries // columns) + 14
    body = _HEIGHT["narrow" if narrow else "wide"]
    top, axis = 14.0, 52.0
    height = top + body + axis + legend
    figure = Figure(figsize=(width / _POINTS, height / _POINTS))
    left, right = 52.0, 10.0
    axes = figure.add_axes(
        (left / width, (legend + axis) / height, 1 - (left + right) / width, body / height)
    )
    low, high = _limits(curves, levels)
    handles: list[Any] = []  # matplotlib's artists
    for index, curve in enumerate(curves):
        colour = SERIES[index % len(SERIES)]
        drawn = axes.errorbar(
            curve.epsilon, curve.value, yerr=curve.spread, color=colour, linewidth=2.2, marker="o",
            markersize=5, capsize=3, elinewidth=1.2, label=curve.label, clip_on=False,
            linestyle=("-", "--", ":", "-.")[index // len(SERIES) % 4],
        )  # fmt: skip
        handles.append(drawn)
    styles = {
        "control": (CONTROL, (4.0, 3.0)), "mark": (INK, (8.0, 3.0)), "floor": (FLOOR, (1.5, 2.0)),
    }  # fmt: skip
    for order, level in enumerate(levels):
        colour, dashes = styles[level.kind]
        # Levels of one kind differ in their dashes, not by colour alone.
        dashes = (dashes[0] + 3.0 * sum(x.kind == level.kind for x in levels[:order]), dashes[1])
        seen = low <= level.value <= high
        axes.axhline(
            level.value, color=colour, linewidth=1.4, dashes=dashes, clip_on=False, visible=seen
        )
        label = level.label if seen else f"{level.label} (off the picture)"
        handles += axes.plot([], [], color=colour, linewidth=1.4, dashes=dashes, label=label)
    axes.set_xscale("log")
    ticks = sorted({e for curve in curves for e in curve.epsilon})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_ylim(low, high)
    axes.set_xlabel("ε, more privacy to the left", color=INK, fontsize=10, parse_math=False)
    axes.tick_params(labelsize=10, color=MUTED, labelcolor=INK)
    axes.grid(axis="y", color=MUTED, linewidth=0.5, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    shown = figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=columns, frameon=False,
        fontsize=9.5, handlelength=2.6, borderaxespad=0.0, labelspacing=0.45,
    )  # fmt: skip
    for text in shown.get_texts():
        text.set_color(INK)
        text.set_parse_math(False)
    return to_svg(figure, salt=name)


def _limits(curves: Sequence[Curve], levels: Sequence[Level]) -> tuple[float, float]:
    """Of the value axis: all curves, and the levels that are not far beyond them."""
    ends = [
        value + sign * spread
        for curve in curves
        for value, spread in zip(curve.value, curve.spread, strict=True)
        for sign in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    room = max(high - low, 0.5 * max(map(abs, ends)), 1e-9)
    near = [x.value for x in levels if low - 1.5 * room <= x.value <= high + 1.5 * room]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
