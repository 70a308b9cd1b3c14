"""The report of a run: one HTML page that needs nothing beside itself, and its facts as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from hyperdp.errors import DataError
from hyperdp.eval.flags import Flag
from hyperdp.eval.foretold import ForetoldLine
from hyperdp.eval.measure import NOT_PRIVATE
from hyperdp.eval.metrics.fid import metric_title
from hyperdp.eval.page import CHART_WIDTHS, PRIVATE_PICTURES, environment
from hyperdp.eval.pictures import Bar, bar_chart, inline_png
from hyperdp.eval.reading import MetricRow, Sentence, number, read_rows, verdict
from hyperdp.eval.release_facts import ReleaseFacts, composed_epsilon
from hyperdp.eval.reveal import Reveal, reveal

GRID_COLUMNS = 8
FORETOLD_NOTE = (
    "From held-out public tasks alone, at the noise and the noisy count of each release. A gain is "
    "measured by hyperdp bench, which also trains the non-private reference."
)
GRID_IMAGES = GRID_COLUMNS**2


@dataclass(frozen=True, kw_only=True, eq=False)
class GridPanel:
    """One grid of images.

    Attributes:
        title, caption: above and below it.
        images: float [N, C, H, W] in [-1, 1]; the first 64 are shown.
        private: whether these are private records themselves.
    """

    title: str
    caption: str
    images: Tensor = field(repr=False)
    private: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """All that a report says.

    Attributes:
        title: of the page.
        private_about: what was private, in a sentence or two.
        releases: what was spent, release by release.
        grids: what the page shows, in this order.
        rows: the metric table, in this order; at least one.
        floor_fid, floor_kid: real images against other real images, at the same sizes.
        extractor: name of the feature extractor behind FID and KID.
        samples, reference: numbers of images on either side.
        stages: (what, seconds).
        flags: tests for failures that a good FID hides, raised or not.
        guard: whether each release is foreign to the bundle; () where the bundle cannot tell.
        foretold: what the bundle's forecast said of each release; () where it has none.
        checks: pictures to these: closest pairs, failures; with `private` where they show records.
        floor: precision, recall, density and coverage of real images, in this order; None where
            not measured.
        command, hardware, version: how to make it again; version is hyperdp's.
        seed: of the draw of records and of the starting noise; the noise of a release has none.
        created: ISO 8601, UTC.

    Raises:
        DataError: no row, or a metric that is not a finite number.
    """

    title: str
    private_about: str
    releases: Sequence[ReleaseFacts]
    grids: Sequence[GridPanel] = field(compare=False)
    rows: Sequence[MetricRow]
    floor_fid: float
    floor_kid: float
    extractor: str
    samples: int
    reference: int
    stages: Sequence[tuple[str, float]]
    command: str
    hardware: str
    version: str
    flags: Sequence[Flag] = ()
    guard: Sequence[Flag] = ()
    foretold: Sequence[ForetoldLine] = ()
    checks: Sequence[GridPanel] = field(default=(), compare=False)
    floor: tuple[float, float, float, float] | None = None
    seed: int | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        figures = [self.floor_fid, self.floor_kid]
        figures += [value for row in self.rows for value in (row.fid, row.kid)]
        if not self.rows or not all(map(math.isfinite, figures)):
            raise DataError(
                expected="at least one row of metrics, each a finite number",
                found="no row" if not self.rows else "infinity or NaN",
                todo="Measure before reporting; look at the images where a metric is not finite.",
            )


def write_report(report: ReportInput, path: str | Path) -> Path:
    """Writes the page, and beside it its facts as JSON, which hold no image.

    Args:
        report: what it says.
        path: of the page; the facts take its name with the suffix `.json`.

    Returns:
        The page's path.
    """
    page = Path(path)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_report(report), encoding="utf-8")
    facts = json.dumps(report_facts(report), ensure_ascii=False, indent=2, allow_nan=False)
    page.with_suffix(".json").write_text(facts + "\n", encoding="utf-8")
    return page


def report_facts(report: ReportInput) -> dict[str, Any]:
    """All that a report says in plain types, without any image.

    Args:
        report: what it says.

    Returns:
        A dictionary for JSON; `warning` says that it is not private.
    """
    plain = {
        name: getattr(report, name)
        for name in report.__dataclass_fields__
        if name
        not in {"grids", "checks", "flags", "guard", "foretold", "releases", "rows", "stages"}
    }
    return {
        "format": "hyperdp-report/1",
        "warning": f"metrics computed on private data: {NOT_PRIVATE}",
        **plain,
        "releases": [asdict(release) for release in report.releases],
        "rows": [asdict(row) for row in report.rows],
        "flags": [asdict(flag) for flag in report.flags],
        "guard": [asdict(flag) for flag in report.guard],
        "foretold": [asdict(line) for line in report.foretold],
        "stages": [{"stage": name, "seconds": seconds} for name, seconds in report.stages],
        "reading": [sentence.text for sentence in _reading(report)],
    }


def render_report(report: ReportInput) -> str:
    """The page as text.

    Args:
        report: what it says.

    Returns:
        HTML with styles, charts and images in it and no address of anything outside.
    """
    template = environment().get_template("report.html")
    longest = max([seconds for _, seconds in report.stages], default=0.0)
    charts = {name: _chart(report, width) for name, width in CHART_WIDTHS.items()}
    return template.render(
        r=report,
        reading=_reading(report),
        verdict=verdict(report.rows, floor_fid=report.floor_fid),
        composed=composed_epsilon(report.releases),
        charts={name: Markup(svg) for name, svg in charts.items()},  # noqa: S704 - escaped by matplotlib
        grids=_pictures(report.grids),
        checks=_pictures(report.checks),
        reveals=_reveals(report.releases),
        foretold_note=FORETOLD_NOTE,
        columns=len(report.grids) if len(report.grids) <= 5 else math.ceil(len(report.grids) / 2),
        stages=[(name, s, 100 * s / longest if longest else 0) for name, s in report.stages],
        total_seconds=sum(seconds for _, seconds in report.stages),
        fid_title=metric_title("fid", report.extractor),
        kid_title=metric_title("kid", report.extractor),
        not_private=NOT_PRIVATE,
        private_pictures=PRIVATE_PICTURES,
    )


def _pictures(panels: Sequence[GridPanel]) -> list[tuple[GridPanel, str]]:
    return [
        (panel, inline_png(panel.images[:GRID_IMAGES], columns=GRID_COLUMNS)) for panel in panels
    ]


def _reveals(releases: Sequence[ReleaseFacts]) -> list[tuple[str, Reveal]]:
    """What each release reveals; releases of which the same is to be said share one entry."""
    said: dict[Reveal, list[str]] = {}
    for facts in releases:
        said.setdefault(reveal(facts), []).append(facts.name)
    return [(" and ".join(names), found) for found, names in said.items()]


def _reading(report: ReportInput) -> list[Sentence]:
    return read_rows(
        report.rows,
        floor_fid=report.floor_fid,
        extractor=report.extractor,
        samples=report.samples,
        reference=report.reference,
    )


def _chart(report: ReportInput, width: int) -> str:
    bars = [
        Bar(label=row.label, value=row.fid, text=number(row.fid), accent=row.method == "hyper")
        for row in report.rows
    ]
    floor = number(report.floor_fid)
    return bar_chart(
        bars, floor=report.floor_fid, floor_text=f"real/real floor {floor}", width=width
    )
