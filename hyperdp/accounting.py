"""Composition: what several private events on one dataset cost together.

The noise multiplier of every event is σ / Δ with the Δ of the account's own adjacency, so one
Gaussian event costs the same under either. Sampled events (DP-SGD) are accepted under add-remove
only: there the noise multiplier is σ over the clip norm, and amplification has its own convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from dp_accounting import dp_event, get_epsilon_gaussian
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError

Event: TypeAlias = dp_event.DpEvent

_SLACK = 1e-6  # in ε: the error of one privacy loss distribution, and what is called nothing


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the ledger knows of one dataset.

    Attributes:
        cap: the most that may be spent, with the one adjacency and unit of this dataset.
        events: every event reserved, each with its noise multiplier relative to its sensitivity.
        delta_discretisation: Σ of what their lattices cost.
    """

    cap: PrivacyBudget
    events: tuple[Event, ...] = ()
    delta_discretisation: float = 0.0

    @property
    def spent_epsilon(self) -> float:
        """ε of all events together, at the δ of the cap."""
        return epsilon(list(self.events), self.cap.delta - self.delta_discretisation)

    @property
    def remaining_epsilon(self) -> float:
        """The largest ε, at the δ of the cap, that one more Gaussian release can have."""
        return remaining_epsilon(
            list(self.events),
            cap_epsilon=self.cap.epsilon,
            delta=self.cap.delta - self.delta_discretisation,
        )

    def after(self, event: Event, delta_discretisation: float) -> Account:
        """The account as it will be with one more event."""
        return Account(
            cap=self.cap,
            events=(*self.events, event),
            delta_discretisation=self.delta_discretisation + delta_discretisation,
        )

    def check_kind(self, budget: PrivacyBudget) -> None:
        """Refuse a budget of another adjacency or unit than this dataset's.

        Raises:
            UsageError: one of them differs.
        """
        cap = self.cap
        if (cap.adjacency, cap.unit) != (budget.adjacency, budget.unit):
            raise UsageError(
                expected=f"adjacency={cap.adjacency!r} and unit={cap.unit!r}, as spent so far: "
                "budgets of different kinds do not add up",
                found=f"adjacency={budget.adjacency!r} and unit={budget.unit!r}",
                todo="Use the dataset's own adjacency and unit.",
            )


def event_to_json(event: Event) -> dict[str, Any]:
    """Spell an event in plain types, for the ledger and the certificate.

    Args:
        event: a Gaussian, a Poisson-sampled Gaussian, or a repetition or list of these.

    Returns:
        A dictionary that `event_from_json` reads back.

    Raises:
        UsageError: the event is of another type; what cannot be accounted for is not guessed at.
    """
    match event:
        case dp_event.GaussianDpEvent():
            return {"type": "gaussian", "noise_multiplier": float(event.noise_multiplier)}
        case dp_event.PoissonSampledDpEvent():
            return {
                "type": "poisson",
                "probability": float(event.sampling_probability),
                "event": event_to_json(event.event),
            }
        case dp_event.SelfComposedDpEvent():
            return {
                "type": "repeat",
                "count": int(event.count),
                "event": event_to_json(event.event),
            }
        case dp_event.ComposedDpEvent():
            return {"type": "all", "events": [event_to_json(e) for e in event.events]}
    raise UsageError(
        expected="a Gaussian event, a Poisson-sampled one, or a repetition or list of these",
        found=type(event).__name__,
        todo="Express the mechanism with these events.",
    )


def event_from_json(data: Any) -> Event:
    """Read an event that `event_to_json` spelt.

    Raises:
        UsageError: the spelling is not one of `event_to_json`'s.
    """
    try:
        match data:
            case {"type": "gaussian", "noise_multiplier": float(tau), **rest} if not rest:
                if 0 < tau < math.inf:
                    return dp_event.GaussianDpEvent(tau)
            case {"type": "poisson", "probability": float(p), "event": inner, **rest} if not rest:
                if 0 <= p <= 1 and inner.get("type") == "gaussian":
                    return dp_event.PoissonSampledDpEvent(p, event_from_json(inner))
            case {"type": "repeat", "count": int(count), "event": inner, **rest} if not rest:
                if count >= 0:
                    return dp_event.SelfComposedDpEvent(event_from_json(inner), count)
            case {"type": "all", "events": list(events), **rest} if not rest:
                return dp_event.ComposedDpEvent([event_from_json(e) for e in events])
    except (AttributeError, RecursionError):
        pass
    raise UsageError(
        expected="an event as hyperdp writes it",
        found="another spelling",
        todo="Do not edit certificates or ledgers.",
    )


def check_declared(event: Event, budget: PrivacyBudget, delta_discretisation: float) -> None:
    """Refuse an event that costs more than its budget declares, or whose cost is not known here.

    Args:
        event: the mechanism.
        budget: what it is declared to cost.
        delta_discretisation: what its lattice costs.

    Raises:
        UsageError: a sampled event under replace-one adjacency, or a cost beyond the budget.
    """
    event = event_from_json(event_to_json(event))  # refuses what no mechanism can be
    if not 0 <= delta_discretisation < budget.delta:
        raise UsageError(
            expected=f"0 <= delta_discretisation < {budget.delta:g}",
            found=f"delta_discretisation={delta_discretisation!r}",
            todo="Use the value of the mechanism's own calibration.",
        )
    if budget.adjacency == "replace-one" and _gaussian_precision(event) is None:
        raise UsageError(
            expected="Gaussian events only under replace-one adjacency",
            found="a sampled event",
            todo="Account for DP-SGD under add-remove adjacency.",
        )
    cost = epsilon([event], budget.delta - delta_discretisation)
    if not cost <= budget.epsilon + _SLACK:
        raise UsageError(
            expected=f"an event that costs at most epsilon={budget.epsilon:g}",
            found=f"epsilon={cost:.6g} at delta={budget.delta:g}",
            todo="Declare what the event costs.",
        )


def epsilon(events: list[Event], delta: float) -> float:
    """ε of the events together, at `delta`.

    Gaussian events compose to one Gaussian, exactly: 1/τ² adds up (Dong, Roth & Su 2022, corollary
    3.3), and its ε is the closed form of Balle & Wang 2018. The rest goes through `pld_epsilon`.

    Args:
        events: may be empty.
        delta: 0 <= δ < 1.

    Returns:
        ε >= 0; infinity where `delta` is not positive and something was spent.
    """
    precisions = [_gaussian_precision(event) for event in events]
    known = [p for p in precisions if p is not None]
    if len(known) < len(precisions):
        return pld_epsilon(events, delta)
    total = math.fsum(known)
    if total == 0:
        return 0.0
    if delta <= 0:
        return math.inf
    return float(get_epsilon_gaussian(1 / math.sqrt(total), delta))


def pld_epsilon(events: list[Event], delta: float, *, interval: float = 1e-4) -> float:
    """ε of the events together by privacy loss distributions, a way independent of the closed form.

    Args:
        events: may be empty.
        delta: 0 <= δ < 1.
        interval: width in which privacy losses are counted, in ε.

    Returns:
        An upper bound on ε, within 1e-6 of the exact value for one Gaussian of ε <= 16 at 1e-4.
    """
    if delta <= 0:
        return math.inf if events else 0.0
    accountant = PLDAccountant(value_discretization_interval=interval)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def remaining_epsilon(events: list[Event], *, cap_epsilon: float, delta: float) -> float:
    """The largest ε that one more Gaussian release can have under the cap.

    Args:
        events: what was spent.
        cap_epsilon: the cap on ε.
        delta: the δ of the cap, less what discretisation has taken.

    Returns:
        ε at `delta`, 0 where nothing is left.
    """
    low, high = 0.0, cap_epsilon  # in units of ε of the one more release, searched by its τ
    if delta <= 0 or epsilon(events, delta) >= cap_epsilon:
        return 0.0
    while high - low > max(_SLACK, 1e-4 * cap_epsilon):
        middle = (low + high) / 2
        fits = epsilon([*events, _gaussian_of(middle, delta)], delta) <= cap_epsilon
        low, high = (middle, high) if fits else (low, middle)
    return low


def _gaussian_of(target: float, delta: float) -> Event:
    return dp_event.GaussianDpEvent(noise_multiplier(target, delta))


def _gaussian_precision(event: Event) -> float | None:
    """Σ 1/τ² of an event made of Gaussians alone, or None."""
    match event:
        case dp_event.GaussianDpEvent():
            return float(event.noise_multiplier) ** -2
        case dp_event.SelfComposedDpEvent():
            inner = _gaussian_precision(event.event)
            return None if inner is None else inner * event.count
        case dp_event.ComposedDpEvent():
            parts = [_gaussian_precision(e) for e in event.events]
            return None if None in parts else math.fsum(p for p in parts if p is not None)
    return None
