"""The report of a benchmark: curves, tables, pictures and costs from its rows, as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperdp import __version__
from hyperdp.bundle import Bundle
from hyperdp.errors import DataError
from hyperdp.eval.bench_parts import costs, set_part
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.features import EfficientNetLite0
from hyperdp.eval.foretold import ForetoldLine, bundle_forecast, comparable, foretell_rows
from hyperdp.eval.kept_pictures import Pictures
from hyperdp.eval.measure import NOT_PRIVATE
from hyperdp.eval.metrics.fid import metric_title
from hyperdp.eval.page import PRIVATE_PICTURES, environment
from hyperdp.eval.results import Row


def write_bench_report(
    config: BenchConfig,
    rows: Sequence[Row],
    bundle: Bundle,
    path: Path,
    *,
    pictures: Pictures | None = None,
    command: str,
) -> Path:
    """Writes the page.

    Args:
        config: the recipe.
        rows: of `stored_rows`: of this recipe and bundle, in its order.
        bundle: of the rows.
        path: of the page.
        pictures: that the bench kept; None for a page without.
        command: what was typed.

    Returns:
        The page's path.

    Raises:
        DataError: no row, or one that is not finite.
    """
    if config.labelled or not rows or not all(math.isfinite(row.value) for row in rows):
        raise DataError(
            expected="rows of an unlabelled bench with this bundle, each a finite number",
            found="a labelled recipe" if config.labelled else f"{len(rows)} rows, not all of it",
            todo="Run `hyperdp bench` with this recipe first; it goes on where it was.",
        )
    check, foretold = None, list[ForetoldLine]()
    forecast = bundle_forecast(bundle)
    if forecast is not None and comparable(forecast, rows):
        check, foretold = foretell_rows(bundle, rows)
    template = environment().get_template("bench.html")
    found = Facts(config=config, rows=list(rows))
    text = template.render(
        r=found,
        parts=[
            set_part(config, found.of(name), name, pictures)
            for name in config.private_sets
            if found.of(name)
        ],
        foretold=foretold,
        foretold_note=""
        if check is None
        else f"From public tasks alone, before: {check.sentence()}",
        costs=costs(found.rows),
        fid_title=metric_title("fid", EfficientNetLite0.name),
        command=command,
        version=__version__,
        not_private=NOT_PRIVATE,
        private_pictures=PRIVATE_PICTURES,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A recipe and its rows.

    Attributes:
        config: the recipe.
        rows: in its order.
    """

    config: BenchConfig
    rows: list[Row]

    @property
    def title(self) -> str:
        """Of the page."""
        return f"Benchmark {self.config.bench}"

    def of(self, name: str) -> list[Row]:
        """The rows of one set."""
        return [row for row in self.rows if row.private_set == name]

    def unique(self, field_name: str) -> list[str]:
        """The values of a text field, in the order of the rows."""
        return list(dict.fromkeys(str(getattr(row, field_name)) for row in self.rows))

    @property
    def left(self) -> int:
        """Cells of the recipe that are not measured."""
        done = {(r.private_set, r.method, r.n, r.epsilon, r.seed) for r in self.rows}
        todo = [(c.private_set, c.method, c.n, c.epsilon, c.seed) for c in cells(self.config)]
        return len([key for key in todo if key not in done])
