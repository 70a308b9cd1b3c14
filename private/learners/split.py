"""One budget for a release and the steps after it: how it is split, and what each part costs.

A Gaussian of noise multiplier τ has the parameter μ = 1/τ, and μ² adds up under composition (Dong,
Roth & Su 2022, arXiv 1905.02383, corollary 3.3). So the whole budget is worth μ² = 1/τ², the
release gets (1 - f) of it, and the steps get whatever the privacy loss distribution of both events
together leaves. Splitting ε itself would waste what composition gives back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dp_accounting import dp_event, get_epsilon_gaussian

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.learners.calibrate import calibrate, training_event

LEAST_RELEASE = 1e-3  # smallest ε of a release that is worth reading the data for
_NUDGE = 1e-4  # relative, of σ: until the ledger's own, finer, computation agrees


@dataclass(frozen=True, kw_only=True)
class Split:
    """Both events of a hybrid and what each costs by itself. All of it is public.

    Attributes:
        total: what both cost together at most, as the operator asked.
        release: budget of the release alone.
        steps: budget of the steps alone, at the same δ.
        release_event: the Gaussian of the release.
        steps_event: T Poisson-sampled Gaussians.
        release_lattice: the δ that the release's lattice costs.
        noise_multiplier: σ of the steps, noise std over the clip norm.
    """

    total: PrivacyBudget
    release: PrivacyBudget
    steps: PrivacyBudget
    release_event: accounting.Event
    steps_event: accounting.Event
    release_lattice: float
    noise_multiplier: float


def split_budget(
    total: PrivacyBudget,
    fraction: float,
    *,
    spec: MechanismSpec,
    probability: float,
    steps: int,
) -> Split:
    """Noise of a release and of the steps after it that together stay within one budget.

    Args:
        total: ε, δ, unit and add-remove adjacency of both together.
        fraction: f, the share of μ² that is kept back for the steps; 0 < f < 1.
        spec: the release's query.
        probability: q of the steps.
        steps: T.

    Returns:
        The split. ε of both events, as the ledger composes them, is at most `total.epsilon`.

    Raises:
        UsageError: f is not between 0 and 1; it leaves the release next to nothing; no σ up to 1000
            keeps the steps within what is left.
    """
    if not 0 < fraction < 1:
        raise UsageError(
            expected="a fraction 0 < f < 1 of the budget for the steps",
            found=f"f={fraction!r}",
            todo="f = 0 is one release alone (`hyperdp private`), f = 1 steps alone "
            "(`hyperdp fit`).",
        )
    tau = noise_multiplier(total.epsilon, total.delta) / math.sqrt(1 - fraction)
    alone = float(get_epsilon_gaussian(tau, total.delta))
    if not alone >= LEAST_RELEASE:
        raise UsageError(
            expected=f"a release of epsilon >= {LEAST_RELEASE:g}",
            found=f"epsilon={alone:.3g}, as f={fraction:g} leaves it",
            todo="Choose a smaller fraction for the steps, or steps alone (`hyperdp fit`).",
        )
    release = _of_both(total, alone)
    calibration = spec.calibrate(release)
    release_event = dp_event.GaussianDpEvent(calibration.noise_multiplier)
    delta = total.delta - calibration.delta_discretisation
    sigma = calibrate(
        total,
        probability=probability,
        steps=steps,
        release_multiplier=calibration.noise_multiplier,
        release_lattice=calibration.delta_discretisation,
    )
    event = training_event(sigma, probability, steps)
    while accounting.epsilon([release_event, event], delta) > total.epsilon:
        sigma *= 1 + _NUDGE
        event = training_event(sigma, probability, steps)
    return Split(
        total=total,
        release=release,
        steps=_of_both(total, accounting.epsilon([event], total.delta)),
        release_event=release_event,
        steps_event=event,
        release_lattice=calibration.delta_discretisation,
        noise_multiplier=sigma,
    )


def _of_both(total: PrivacyBudget, epsilon: float) -> PrivacyBudget:
    return PrivacyBudget(
        epsilon=epsilon, delta=total.delta, adjacency=total.adjacency, unit=total.unit
    )
