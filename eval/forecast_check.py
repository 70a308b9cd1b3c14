"""Holds a forecast against what the benchmark measured: coverage of the interval, and the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import DataError
from hyperdp.eval.private_sets import SCRIPT_BLOCKS
from hyperdp.eval.results import Row
from hyperdp.forecast import ANY, Forecast
from hyperdp.mechanism import MechanismSpec
from hyperdp.plan import INTERVAL, look

METRICS = {"loss": "loss", "fid": "fid"}
LIKE = {"mnist-5k": "hand", "digits": "hand", **dict.fromkeys(SCRIPT_BLOCKS, "print")}
"""What each private set is called to `hyperdp plan --like`, by what it is and not by what came."""


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """One cell of the benchmark beside its forecast.

    Attributes:
        private_set, n, epsilon, seed: the cell.
        realised: recovered gain that was measured.
        gain, low, high: that were foretold, before.
    """

    private_set: str
    n: int
    epsilon: float
    seed: int
    realised: float
    gain: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.realised <= self.high


@dataclass(frozen=True, kw_only=True)
class ForecastCheck:
    """How well a forecast did.

    Attributes:
        quantity: that gains are of.
        cells: in the rows' order.
        coverage: share of cells inside the interval, which is meant to be 0.8 or more.
        median_absolute_error: of the foretold median gain.
    """

    quantity: str
    cells: list[Foretold]
    coverage: float
    median_absolute_error: float

    def sentence(self) -> str:
        """The finding in a line."""
        return (
            f"{self.coverage:.0%} of {len(self.cells)} measured gains ({self.quantity}) lie in the "
            f"{INTERVAL:.0%} interval; median absolute error {self.median_absolute_error:.2f}."
        )


def kind_of(private_set: str, forecast: Forecast) -> str:
    """The kind of public tasks that a set is foretold by: its own, where the forecast has it."""
    kind = LIKE.get(private_set, ANY)
    return kind if kind in forecast.likes else ANY


def check_forecast(
    forecast: Forecast,
    rows: Sequence[Row],
    *,
    embedding_dim: int,
    clip_norm: float,
    quantity: str | None = None,
) -> ForecastCheck:
    """Compares the realised gains of an unlabelled benchmark with the forecast of its bundle.

    Args:
        forecast: of the bundle.
        rows: of one bench; sets need `base`, `lora` and `hyper` rows of the quantity's metric.
        embedding_dim: k, of the bundle.
        clip_norm: C, of the bundle.
        quantity: `loss` or `fid`; as `Forecast.table` chooses when None.

    Raises:
        DataError: no cell can be compared, or rows are of another bundle.
    """
    metric = METRICS[forecast.table(quantity).quantity]
    base = f"{forecast.bundle}-{forecast.bundle_hash[:8]}"
    if others := sorted({row.base for row in rows} - {base}):
        raise DataError(
            expected=f"rows of {base}, whose forecast it is",
            found=", ".join(others),
            todo="Run the bench with that bundle, or make the forecast of the other one.",
        )
    wanted = [row for row in rows if row.metric == metric]
    marks = {(r.private_set, r.method): r.value for r in wanted if r.method in {"base", "lora"}}
    spec = MechanismSpec(embedding_dim=embedding_dim, clip_norm=clip_norm)
    cells = []
    for row in wanted:
        before, best = (marks.get((row.private_set, m)) for m in ("base", "lora"))
        if row.method != "hyper" or row.n is None or row.epsilon is None or row.delta is None:
            continue
        if before is None or best is None or before <= best:
            continue
        budget = PrivacyBudget(epsilon=row.epsilon, delta=row.delta)
        table = forecast.table(quantity, kind_of(row.private_set, forecast))
        told = look(table, spec=spec, budget=budget, units=row.n)
        cells.append(
            Foretold(
                private_set=row.private_set,
                n=row.n,
                epsilon=row.epsilon,
                seed=row.seed,
                realised=(before - row.value) / (before - best),
                gain=told.gain,
                low=told.gain_low,
                high=told.gain_high,
            )
        )
    if not cells:
        raise DataError(
            expected=f"rows of base, lora and hyper with the metric {metric}",
            found="no set with all three",
            todo="Run the bench with the methods base, lora and hyper.",
        )
    errors = [abs(cell.realised - cell.gain) for cell in cells]
    return ForecastCheck(
        quantity=forecast.table(quantity).quantity,
        cells=cells,
        coverage=float(np.mean([cell.inside for cell in cells])),
        median_absolute_error=float(np.median(errors)),
    )
