"""What the pages of this room share: their templates, and how numbers are written in them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hyperdp.eval.reading import number
from hyperdp.eval.results import mean_std

PRIVATE_PICTURES = "private: do not publish"
CHART_WIDTHS = {"wide": 1000, "narrow": 340}  # CSS pixels; the style sheet chooses
TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Jinja2 with escaping on, and the filters of the templates."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=unbroken,
    )  # fmt: skip
    made.filters.update(number=number, duration=duration, small=small, date=date)
    made.filters["mean_std"] = lambda values: mean_std(list(values))
    return made


def unbroken(value: object) -> object:
    """Of text, no line ends within "ε = 1" or "0.70 ± 0.03": on a phone they did."""
    if type(value) is not str:  # finished HTML, as of a chart, stays as it is
        return value
    return re.sub(r" (±) |(?<=\b[nkεδσ]) (=) (?=\d)", _tied, value)


def _tied(found: re.Match[str]) -> str:
    return f"\u00a0{found[1] or found[2]}\u00a0"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.4 s", "52 s", "3 min 08 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def date(moment: str) -> str:
    """An ISO 8601 moment as "2026-11-22 18:09 UTC"."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def small(value: float) -> str:
    """A number as people write it: "1", "0.5", "1e-5"."""
    return f"{value:g}".replace("e-0", "e-")
