"""What the forecast of a bundle said of releases, beside what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.eval.forecast_check import METRICS, ForecastCheck, check_forecast
from hyperdp.eval.results import Row
from hyperdp.forecast import FORECAST_FILE, Forecast, load_forecast
from hyperdp.plan import look
from hyperdp.private.release import Release


@dataclass(frozen=True, kw_only=True)
class ForetoldLine:
    """One release, or all releases of one (set, n, ε).

    Attributes:
        name: what the report calls it.
        gain, low, high: recovered gain, its median over public tasks and the 80 % interval.
        realised: recovered gains that were measured, one a seed; () where none was.
        remarks: what makes the forecast less than it seems.
    """

    name: str
    gain: float
    low: float
    high: float
    realised: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def inside(self) -> int:
        """How many of the measured gains lie in the interval."""
        return sum(self.low <= value <= self.high for value in self.realised)


def bundle_forecast(bundle: Bundle) -> Forecast | None:
    """The forecast beside a bundle; None where there is none.

    Raises:
        BundleError: it is damaged, or was made for another bundle.
    """
    if not (bundle.path / FORECAST_FILE).is_file():
        return None
    return load_forecast(bundle.path, bundle.hash)


def foretell_releases(
    bundle: Bundle, releases: Sequence[tuple[str, Release]]
) -> list[ForetoldLine]:
    """What the bundle's forecast says of releases, from what these let out; costs no privacy.

    Args:
        bundle: that they were made with.
        releases: (name, release); n is taken to be the noisy count.

    Returns:
        A line for each; [] where the bundle has no forecast.
    """
    forecast = bundle_forecast(bundle)
    if forecast is None:
        return []
    table, lines = forecast.table(), []
    for name, made in releases:
        c = made.certificate
        budget = PrivacyBudget(
            epsilon=c.epsilon,
            delta=c.delta,
            adjacency=c.adjacency,  # type: ignore[arg-type]  # checked by PrivacyBudget
            unit=c.unit,  # type: ignore[arg-type]  # checked by PrivacyBudget
        )
        units = max(1.0, float(made.count().sum()))
        told = look(table, spec=c.spec, budget=budget, units=units)
        remarks = [
            "On most public tasks such a measurement brings nothing over ρ(public mean)."
            if told.drowned
            else "",
            "" if told.inside else "Beyond the forecast's table: its nearest cell, and too good.",
        ]
        lines.append(
            ForetoldLine(
                name=name,
                gain=told.gain,
                low=told.gain_low,
                high=told.gain_high,
                remarks=tuple(filter(None, remarks)),
            )
        )
    return lines


def comparable(forecast: Forecast, rows: Sequence[Row]) -> bool:
    """Whether there is a set with `hyper` on which LoRA is better than the base, by its measure."""
    metric = METRICS[forecast.table().quantity]
    value = {(r.private_set, r.method): r.value for r in rows if r.metric == metric}
    return any(
        (name, "hyper") in value and value.get((name, "lora"), base) < base
        for (name, method), base in value.items()
        if method == "base"
    )


def foretell_rows(bundle: Bundle, rows: Sequence[Row]) -> tuple[ForecastCheck, list[ForetoldLine]]:
    """The bundle's forecast beside a benchmark's gains, a line for each (set, n, ε).

    Args:
        bundle: of the rows; it has a forecast.
        rows: with `base`, `lora` and `hyper` of at least one set.

    Raises:
        BundleError: there is no forecast, or it is another bundle's.
        DataError: no cell can be compared.
    """
    found = check_forecast(
        load_forecast(bundle.path, bundle.hash),
        rows,
        embedding_dim=bundle.config.embed_dim,
        clip_norm=float(bundle.config.clip_norm),
    )
    groups: dict[tuple[str, int, float], list[float]] = {}
    said: dict[tuple[str, int, float], tuple[float, float, float]] = {}
    for cell in found.cells:
        key = (cell.private_set, cell.n, cell.epsilon)
        groups.setdefault(key, []).append(cell.realised)
        said[key] = cell.gain, cell.low, cell.high
    lines = [
        ForetoldLine(
            name=f"{name}, n = {n:,}, ε = {epsilon:g}",
            gain=said[name, n, epsilon][0],
            low=said[name, n, epsilon][1],
            high=said[name, n, epsilon][2],
            realised=tuple(realised),
        )
        for (name, n, epsilon), realised in groups.items()
    ]
    return found, lines
