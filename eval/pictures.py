"""What a report draws: a bar chart as inline SVG and grids of images as inline PNG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hyperdp.images import grid_picture

_PIXELS_PER_POINT = 1.39  # a figure as wide as its column then has text of 14 CSS pixels
_FONT = 10.0  # points
# matplotlib wants colours, the page wants variables that follow light and dark: each variable
# travels through matplotlib as a colour that nothing else uses.
_VARIABLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--bar)",
    "#040404": "var(--accent)",
    "#050505": "var(--floor)",
    "#060606": "var(--bad)",
    "#070707": "var(--s1)",
    "#080808": "var(--s2)",
    "#090909": "var(--s3)",
    "#0a0a0a": "var(--s4)",
}
INK, MUTED, BAR, ACCENT, FLOOR, CONTROL, *SERIES = _VARIABLES


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        label: what it is of.
        value: its length, in the metric's unit.
        text: the value as the table prints it.
        accent: drawn in the accent colour.
    """

    label: str
    value: float
    text: str
    accent: bool


def bar_chart(bars: Sequence[Bar], *, floor: float, floor_text: str, width: int) -> str:
    """Horizontal bars with a line at the floor, dashed where it is one.

    Args:
        bars: from top to bottom, at least one.
        floor: where the line stands.
        floor_text: written at the line.
        width: CSS pixels that the chart is made for; below 600 labels stand above their bars.

    Returns:
        An `<svg>` element without width, height or anything external; colours are CSS variables.
    """
    beside = width >= 600
    pitch = 30.0 if beside else 44.0  # CSS pixels a bar
    top, bottom = 30.0, 8.0
    height = top + bottom + pitch * len(bars)
    points = 72 * _PIXELS_PER_POINT
    figure = Figure(figsize=(width / points, height / points))
    longest = max(len(bar.label) for bar in bars)
    left = min(0.4, (longest * 7.2 + 16) / width) if beside else 0.002
    room = 1 - left - 64 / width  # what is right of the longest bar holds its value
    axes = figure.add_axes((left, bottom / height, room, 1 - (top + bottom) / height))
    style: dict[str, Any] = {"fontsize": _FONT, "parse_math": False, "clip_on": False}
    thickness = 0.62 if beside else 0.4
    for index, bar in enumerate(bars):
        y = -index - (0 if beside else 0.22)
        colour = ACCENT if bar.accent else BAR
        axes.barh(y, bar.value, height=thickness, color=colour, linewidth=0)
        weight = "bold" if bar.accent else "normal"
        axes.annotate(
            bar.text, (max(bar.value, 0), y), xytext=(5, 0), textcoords="offset points",
            va="center", color=INK, fontweight=weight, **style,
        )  # fmt: skip
        axes.text(
            0 if not beside else -0.012 / room, y if beside else y + 0.4, bar.label,
            ha="right" if beside else "left", va="center", color=INK, fontweight=weight,
            transform=axes.get_yaxis_transform(), **style,
        )  # fmt: skip
    axes.set_ylim(-len(bars) + 0.5, 0.5)
    axes.set_xlim(0, max([floor, *(bar.value for bar in bars)]) or 1)
    if beside:
        axes.axvline(floor, color=FLOOR, linewidth=1.4, dashes=(3, 2.5), clip_on=False)
    else:  # across the bars alone, since the labels stand between them
        places = np.arange(len(bars)) + 0.22  # [bars]
        axes.vlines([floor] * len(bars), -places - 0.26, -places + 0.26, color=FLOOR, linewidth=1.6)
    axes.annotate(
        floor_text, (floor, 1), xycoords=("data", "axes fraction"), xytext=(0, 6),
        textcoords="offset points", color=FLOOR,
        ha="left" if floor < 0.5 * axes.get_xlim()[1] else "right", **style,
    )  # fmt: skip
    if beside:
        axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_axis_off()
    return to_svg(figure, salt=f"bars-{width}")


def to_svg(figure: Figure, *, salt: str) -> str:
    """A figure as an `<svg>` element that takes its column's width.

    Args:
        figure: in the colours of this module.
        salt: of the ids inside, another one for every chart of a page: where one chart is hidden,
            what another refers to must not lie in it.

    Returns:
        `<svg>` without width, height or anything external; colours are CSS variables.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"hyperdp {salt}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]  # the prolog names a DTD by its address
    opening, inside = svg.split(">", 1)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)  # names that every figure gives its parts
    box = opening[opening.index('viewBox="') :].split('"')[1]
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, variable)
    return f'<svg viewBox="{box}" aria-hidden="true">{inside.strip()}'


def inline_png(images: Tensor, *, columns: int, zoom: int = 3) -> str:
    """A grid of images as a `data:` URI.

    Args:
        images: float [N, C, H, W] in [-1, 1].
        columns: images in a row.
        zoom: whole-number enlargement, so that small images stay crisp on dense screens.
    """
    buffer = io.BytesIO()
    grid_picture(images, columns=columns, zoom=zoom).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
