"""The least noise multiplier that keeps a run of Poisson-sampled Gaussian steps within a budget."""

from __future__ import annotations

import math
from functools import lru_cache

from dp_accounting import dp_event

from hyperdp.accounting import Event, pld_epsilon
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError

MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 0.1, 1000.0
_TOLERANCE = 1e-4  # relative, of the noise multiplier; the side with more noise is taken


def training_event(noise_multiplier: float, probability: float, steps: int) -> Event:
    """`steps` Gaussian steps, each on a Poisson sample.

    Args:
        noise_multiplier: σ, noise std over the clip norm (the sensitivity under add-remove).
        probability: q.
        steps: T.
    """
    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    return dp_event.SelfComposedDpEvent(
        dp_event.PoissonSampledDpEvent(probability, gaussian), steps
    )


@lru_cache(maxsize=256)
def calibrate(
    budget: PrivacyBudget,
    *,
    probability: float,
    steps: int,
    release_multiplier: float = math.inf,
    release_lattice: float = 0.0,
) -> float:
    """Smallest σ at which the run is (ε, δ)-differentially private.

    By bisection on the privacy loss distribution of `dp_accounting`, whose ε is an upper bound.

    Args:
        budget: under add-remove adjacency; of the run, or of a release and the run together.
        probability: q, with which a unit is in a batch.
        steps: T.
        release_multiplier: τ of the Gaussian release that the budget pays for too; infinite for
            none.
        release_lattice: the δ that the lattice of that release costs.

    Returns:
        σ, noise std over the clip norm.

    Raises:
        UsageError: another adjacency, or no σ up to 1000 reaches ε in that many steps.
    """
    if budget.adjacency != "add-remove":
        raise UsageError(
            expected="add-remove adjacency, under which Poisson sampling is accounted for",
            found=f"adjacency={budget.adjacency!r}",
            todo="Use add-remove, or make one release (`hyperdp release`) under replace-one.",
        )
    interval = min(1e-3, max(1e-4, 5e-4 * budget.epsilon))  # wider is faster, and never below ε
    released = math.isfinite(release_multiplier)
    before = [dp_event.GaussianDpEvent(release_multiplier)] if released else []
    delta = budget.delta - release_lattice

    def reaches(sigma: float) -> bool:
        event = training_event(sigma, probability, steps)
        return pld_epsilon([*before, event], delta, interval=interval) <= budget.epsilon

    low, high = 0.0, 1.0
    while not reaches(high):
        low, high = high, 2 * high
        if low >= MAX_NOISE_MULTIPLIER:
            raise UsageError(
                expected=f"epsilon={budget.epsilon:g} at delta={budget.delta:g} to be reached by a "
                f"noise multiplier of at most {MAX_NOISE_MULTIPLIER:g}",
                found=f"more than that for {steps} steps with a sampling probability of "
                f"{probability:.4g}" + (" beside the release" if released else ""),
                todo="Take fewer steps or smaller batches, or spend the budget on one release "
                "(`hyperdp release`).",
            )
    if low == 0.0:
        low = high / 2
        while reaches(low):
            low, high = low / 2, low
            if low < MIN_NOISE_MULTIPLIER:
                return high
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
