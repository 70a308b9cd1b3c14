"""What `hyperdp plan` says: the gain to expect at each ε, and what a wanted gain takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.forecast import ForecastTable
from hyperdp.mechanism import STEPS_PER_UNIT, MechanismSpec

Float = npt.NDArray[np.float64]

INTERVAL = 0.8
TAIL_PARTS = 10  # either tail holds a tenth, as a whole number
EPSILONS = tuple(float(e) for e in np.geomspace(0.05, 16, 41))
UNITS = tuple(round(float(n)) for n in np.geomspace(16, 1e6, 73))


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What to expect of one release.

    Attributes:
        units: n behind the mean of one class. epsilon: of the release.
        noise_std: of the mean, in the embedding's units.
        gain, gain_low, gain_high: median over public tasks, and the ends of the 80 % interval.
        gains: of each public task, in the table's order.
        figure, figure_low, figure_high: the same of the quantity itself (FID, loss).
        beats_public_mean: share of public tasks on which ρ(z) beats ρ(public mean).
        inside: whether the table reaches to so few units and so much noise; where it does not, the
            nearest cell is told, which is too good. Beyond its most units and least noise the
            nearest cell is told as well: a little more than it is to be had there.
    """

    units: float
    epsilon: float
    noise_std: float
    gain: float
    gain_low: float
    gain_high: float
    gains: list[float]
    figure: float
    figure_low: float
    figure_high: float
    beats_public_mean: float
    inside: bool

    @property
    def drowned(self) -> bool:
        """Whether the measurement is of no use: ρ(public mean) does as well on most tasks."""
        return self.beats_public_mean <= 0.5

    def reached(self, wanted: float) -> str:
        """On how many of the public tasks a gain is reached, as `4 of 9`."""
        return f"{sum(gain >= wanted for gain in self.gains)} of {len(self.gains)}"


def noise_std_of_mean(spec: MechanismSpec, budget: PrivacyBudget, units: float) -> float:
    """Std of the noise on a coordinate of the mean of `units` units, in the embedding's units."""
    return spec.calibrate(budget).sigma / STEPS_PER_UNIT / max(units, 1.0)


def predictive_interval(values: Float) -> tuple[float, float]:
    """The `INTERVAL` interval for one more value, exchangeable with T given ones.

    The order statistics r and T + 1 − r with r = ⌊(T + 1) / 10⌋ hold it with probability at least
    0.8, whatever the distribution (Wilks 1941, tolerance limits). Between two sizes of the table it
    is no longer so: a mean of two draws of one task scatters less than one draw of a new one, and
    where noise makes half of the scatter 0.7 to 0.75 are held.

    Raises:
        UsageError: fewer values than an interval needs.
    """
    rank = (len(values) + 1) // TAIL_PARTS
    if rank < 1:
        raise UsageError(
            expected=f"at least {TAIL_PARTS - 1} public tasks with a gain",
            found=str(len(values)),
            todo="Make the forecast with more: `hyperdp pretrain forecast --tasks 24`.",
        )
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[len(values) - rank])


def look(
    table: ForecastTable, *, spec: MechanismSpec, budget: PrivacyBudget, units: float
) -> Outlook:
    """What one release of n units at one budget can be expected to bring.

    Args:
        table: of the bundle.
        spec: the query; with L classes, each is taken to hold n / L units.
        budget: ε, δ, adjacency and unit.
        units: n, a guess is enough; over all classes.

    Raises:
        UsageError: the table has too few tasks for an interval.
    """
    each = units / spec.num_classes
    std = noise_std_of_mean(spec, budget, each)
    figures = table.figures_at(each, std)
    gains, kept = table.gain(figures), figures[table.kept]
    low, high = predictive_interval(gains)
    figure_low, figure_high = predictive_interval(kept)
    beats = figures < np.array(table.public_mean)
    return Outlook(
        units=each,
        epsilon=budget.epsilon,
        noise_std=std,
        gain=float(np.median(gains)),
        gain_low=low,
        gain_high=high,
        gains=[float(gain) for gain in gains],
        figure=float(np.median(kept)),
        figure_low=figure_low,
        figure_high=figure_high,
        beats_public_mean=float(beats[table.kept].mean()),
        inside=std <= table.noise_std[-1] and each >= table.units[0],
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer of `hyperdp plan`.

    Attributes:
        quantity: that gains are of.
        tasks: public tasks behind the figures.
        outlooks: at the ε asked for.
        curve: over ε from 0.05 to 16.
        public_mean_gain: median gain of ρ(public mean), which needs no private data.
        smallest_epsilon: at which the median gain reaches the wanted one; None up to ε = 16.
        units_needed: smallest n that reaches it, for each ε asked for; None up to a million.
        ceiling: with a million units of each class, at the largest ε of the curve: what ρ does of
            a mean that is as good as exact.
    """

    quantity: str
    tasks: int
    outlooks: list[Outlook]
    curve: list[Outlook]
    public_mean_gain: float
    smallest_epsilon: float | None
    units_needed: list[int | None]
    ceiling: Outlook

    @property
    def out_of_reach(self) -> bool:
        """Whether no ε at this n, and no n at the ε asked for, is expected to give the gain."""
        return self.smallest_epsilon is None and not any(self.units_needed)


def make_plan(
    table: ForecastTable,
    *,
    spec: MechanismSpec,
    budgets: list[PrivacyBudget],
    units: float,
    wanted: float,
) -> Plan:
    """Everything `hyperdp plan` says, from the table alone.

    Args:
        table: of the bundle.
        spec: the query.
        budgets: the budgets asked about, at least one; δ, adjacency and unit of the first hold for
            the curve.
        units: n over all classes, a guess.
        wanted: recovered gain that is wanted.
    """
    if not units >= 1 or not math.isfinite(units) or not math.isfinite(wanted):
        raise UsageError(
            expected="n >= 1 and a finite gain",
            found=f"n={units}, gain={wanted}",
            todo="Correct that; a guess of n is enough.",
        )

    def at(epsilon: float, count: float = units) -> Outlook:
        budget = dataclasses.replace(budgets[0], epsilon=epsilon)
        return look(table, spec=spec, budget=budget, units=count)

    curve = [at(epsilon) for epsilon in EPSILONS]
    reached = [o.epsilon for o in curve if o.gain >= wanted]
    return Plan(
        quantity=table.quantity,
        tasks=int(table.kept.sum()),
        outlooks=[look(table, spec=spec, budget=budget, units=units) for budget in budgets],
        curve=curve,
        public_mean_gain=float(np.median(table.gain(np.array(table.public_mean)))),
        smallest_epsilon=_refine(at, min(reached), wanted) if reached else None,
        units_needed=[_units_needed(table, spec, budget, wanted) for budget in budgets],
        ceiling=at(EPSILONS[-1], UNITS[-1] * spec.num_classes),
    )


def _refine(at: Callable[[float], Outlook], first: float, wanted: float) -> float:
    """The crossing between the first ε of the grid that reaches the gain and the one before it."""
    index = EPSILONS.index(first)
    low, high = EPSILONS[max(index - 1, 0)], first
    for _ in range(8 if index else 0):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle).gain >= wanted else (middle, high)
    return high


def _units_needed(
    table: ForecastTable, spec: MechanismSpec, budget: PrivacyBudget, wanted: float
) -> int | None:
    sigma = spec.calibrate(budget).sigma / STEPS_PER_UNIT
    for units in UNITS:
        each = units / spec.num_classes
        if each < 1:
            continue
        if float(np.median(table.gain(table.figures_at(each, sigma / each)))) >= wanted:
            return units
    return None
