"""What a benchmark's report says of one private set, and what each method took: from the rows."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hyperdp.eval.bench_reading import LABELS, read_gains
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.bench_table import METRICS
from hyperdp.eval.cells import Cell
from hyperdp.eval.curves import Curve, Level, curve_chart
from hyperdp.eval.features import EfficientNetLite0
from hyperdp.eval.kept_pictures import Pictures
from hyperdp.eval.metrics.fid import metric_title
from hyperdp.eval.page import CHART_WIDTHS
from hyperdp.eval.reading import Sentence
from hyperdp.eval.results import Row, mean_std

KINDS = {
    "base": "control", "public_mean": "control", "other_task": "control", "lora": "mark",
    "floor": "floor",
}  # fmt: skip
NO_RECORDS = ("base", "public_mean", "other_task", "shared")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table: one method at one n and ε, over seeds.

    Attributes:
        method, n, epsilon: which; seeds: how many there are.
        figures: metric → mean ± std, as text.
    """

    method: str
    n: int | None
    epsilon: float | None
    seeds: int
    figures: dict[str, str]

    @property
    def label(self) -> str:
        """What the page calls the method."""
        return LABELS.get(self.method, self.method)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of one cell's images.

    Attributes:
        title, caption: above and below it, "" for nothing below. source: a `data:` address.
        private: whether these are private records, or were drawn by what is not private.
    """

    title: str
    caption: str
    source: str = field(repr=False)
    private: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method took.

    Attributes:
        method: which. hardware: that it was measured on. cells: measured.
        seconds: of one cell, the mean. total: of all, in seconds.
        peak_rss_mb: the largest, of the process that measured it.
        privacy: what one cell spent of the private records' budget, in words.
    """

    method: str
    hardware: str
    cells: int
    seconds: float
    total: float
    peak_rss_mb: float
    privacy: str

    @property
    def label(self) -> str:
        """What the page calls the method."""
        return LABELS.get(self.method, self.method)


@dataclass(frozen=True, kw_only=True)
class SetPart:
    """What the page says of one private set.

    Attributes:
        name: of the set.
        charts: (title, width name → SVG).
        lines: the table. reading: it in sentences.
        references, by_size: pictures of what depends on no ε, and for each n of each ε.
    """

    name: str
    charts: list[tuple[str, dict[str, Markup]]]
    lines: list[Line]
    reading: list[Sentence]
    references: list[Shown]
    by_size: list[tuple[str, list[Shown]]]


def set_part(config: BenchConfig, rows: list[Row], name: str, pictures: Pictures | None) -> SetPart:
    """Curves, table, sentences and pictures of one private set.

    Args:
        config: the recipe.
        rows: of this set.
        name: of the set.
        pictures: that the bench kept; None for none.
    """
    charts = []
    for metric, title in (
        ("recovered_gain", "Recovered gain, larger is better"),
        ("fid", metric_title("fid", EfficientNetLite0.name) + ", smaller is closer"),
    ):
        svg = {
            width_name: _curves(rows, metric, width, f"{name} {metric} {width}")
            for width_name, width in CHART_WIDTHS.items()
        }
        charts.append((title, {key: Markup(text) for key, text in svg.items() if text}))  # noqa: S704 - escaped by matplotlib
    references, by_size = ([], []) if pictures is None else _shown(config, name, pictures)
    return SetPart(
        name=name,
        charts=[(title, svg) for title, svg in charts if svg],
        lines=_lines(rows),
        reading=read_gains(rows),
        references=references,
        by_size=by_size,
    )


def _curves(rows: list[Row], metric: str, width: int, name: str) -> str:
    values: dict[tuple[str, int], dict[float, list[float]]] = {}
    levels: dict[str, list[float]] = {}
    for row in rows:
        if row.metric != metric:
            continue
        if row.n is not None and row.epsilon is not None:
            values.setdefault((row.method, row.n), {}).setdefault(row.epsilon, []).append(row.value)
        elif row.method in KINDS:
            levels.setdefault(row.method, []).append(row.value)
    if not values:
        return ""
    curves = []
    for (method, n), by_epsilon in values.items():
        points = sorted(by_epsilon.items())
        curves.append(
            Curve(
                label=f"{LABELS.get(method, method)}, n = {n:,}",
                epsilon=[epsilon for epsilon, _ in points],
                value=[sum(v) / len(v) for _, v in points],
                spread=[_std(v) for _, v in points],
            )
        )
    ends = {"base": 0.0, "lora": 1.0} if metric == "recovered_gain" else {}  # what a gain is of
    told = {m: (mean_std(v), sum(v) / len(v)) for m, v in levels.items()}
    told |= {m: (f"{v:g}", v) for m, v in ends.items()}
    lines = [  # in one order, so that a method has the same dashes in every chart of a page
        Level(label=f"{LABELS[m]}: {told[m][0]}", value=told[m][1], kind=kind)
        for m, kind in KINDS.items()
        if m in told
    ]
    return curve_chart(curves, lines, width=width, name=name)


def _std(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))


def _lines(rows: list[Row]) -> list[Line]:
    groups: dict[tuple[str, int | None, float | None], dict[str, list[float]]] = {}
    for row in rows:
        metrics = groups.setdefault((row.method, row.n, row.epsilon), {})
        metrics.setdefault(row.metric, []).append(row.value)
    return [
        Line(
            method=method,
            n=n,
            epsilon=epsilon,
            seeds=max(map(len, metrics.values())),
            figures={m: mean_std(metrics[m]) for m in METRICS if m in metrics},
        )
        for (method, n, epsilon), metrics in groups.items()
    ]


def _shown(
    config: BenchConfig, name: str, pictures: Pictures
) -> tuple[list[Shown], list[tuple[str, list[Shown]]]]:
    """Of the first seed that each has."""
    references, by_size = [], dict[str, dict[float, Shown]]()
    for cell in cells(config):
        png = pictures.find(cell) if cell.private_set == name else None
        if png is None:
            continue
        label = LABELS.get(cell.method, cell.method)
        if cell.n is None or cell.epsilon is None:
            references.append(_picture(cell, label, png))
        else:
            row = by_size.setdefault(f"{label}, n = {cell.n:,}", {})
            row.setdefault(cell.epsilon, _picture(cell, f"ε = {cell.epsilon:g}", png))
    return references, [(title, [row[e] for e in sorted(row)]) for title, row in by_size.items()]


def _picture(cell: Cell, title: str, png: bytes) -> Shown:
    captions = {
        "floor": "real records, which no generated image should repeat",
        "lora": "trained on the records without any privacy",
    }
    return Shown(
        title=title,
        caption=captions.get(cell.method, "") if cell.n is None else "",
        source="data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        private=cell.epsilon is None and cell.method not in NO_RECORDS,
    )


def costs(rows: Sequence[Row]) -> list[Cost]:
    """What each method took on each kind of machine, in the order of the rows.

    Args:
        rows: of all sets.
    """
    by_method: dict[tuple[str, str], dict[tuple[object, ...], Row]] = {}
    for row in rows:
        if row.metric != "recovered_gain":  # reckoned from others, with their seconds
            key = (row.private_set, row.n, row.epsilon, row.seed)
            by_method.setdefault((row.method, row.hardware), {})[key] = row
    return [
        Cost(
            method=method,
            hardware=hardware,
            cells=len(found),
            seconds=sum(r.seconds for r in found.values()) / len(found),
            total=sum(r.seconds for r in found.values()),
            peak_rss_mb=max(r.peak_rss_mb for r in found.values()),
            privacy=_privacy(method, list(found.values())),
        )
        for (method, hardware), found in by_method.items()
    ]


def _privacy(method: str, rows: list[Row]) -> str:
    if method in NO_RECORDS:
        return "no private data"
    spent = sorted({row.epsilon for row in rows if row.epsilon is not None})
    if not spent or any(row.epsilon is None for row in rows):
        return "none: not private"
    return "ε = " + ", ".join(f"{epsilon:g}" for epsilon in spent)
