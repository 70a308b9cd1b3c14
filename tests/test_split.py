"""How a budget is split between a release and steps: against closed forms and a second library."""

from __future__ import annotations

import math

import pytest
from dp_accounting import get_epsilon_gaussian
from opacus.accountants.analysis.prv import (
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)
from scipy.optimize import brentq

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.learners.calibrate import calibrate
from hyperdp.private.learners.split import split_budget
from hyperdp.subsampled import subsampled_epsilon

SPEC = MechanismSpec(embedding_dim=16, clip_norm=1.0)
DELTA = 1e-5


def split(epsilon: float, fraction: float, q: float, steps: int):
    budget = PrivacyBudget(epsilon=epsilon, delta=DELTA)
    return split_budget(budget, fraction, spec=SPEC, probability=q, steps=steps)


def tau_of(made) -> float:
    return made.release_event.noise_multiplier


def opacus_epsilon(tau: float, sigma: float, q: float, steps: int) -> float:
    """ε of both events as Opacus' PRV accountant composes them; a release is one step of q = 1."""
    mesh, half = 5e-4, 40.0
    domain = Domain.create_aligned(-half, half, mesh)
    kinds = [
        PoissonSubsampledGaussianPRV(sample_rate=1 - 1e-12, noise_multiplier=tau),
        PoissonSubsampledGaussianPRV(sample_rate=q, noise_multiplier=sigma),
    ]
    parts = [
        discretize(TruncatedPrivacyRandomVariable(kind, domain.t_min, domain.t_max), domain)
        for kind in kinds
    ]
    together = compose_heterogeneous(dprvs=parts, num_self_compositions=[1, steps])
    return together.compute_epsilon(DELTA, 0.0, 0.0)[1]


@pytest.mark.parametrize(
    ("epsilon", "fraction", "q", "steps"), [(1.0, 0.5, 0.1, 60), (4.0, 0.9, 0.02, 300)]
)
def test_both_events_together_cost_the_budget_by_three_accountants(epsilon, fraction, q, steps):
    made = split(epsilon, fraction, q, steps)
    tau, sigma = tau_of(made), made.noise_multiplier
    events = [made.release_event, made.steps_event]
    composed = accounting.epsilon(events, DELTA - made.release_lattice)
    assert 0.99 * epsilon < composed <= epsilon
    fourier = subsampled_epsilon(sigma, q, steps, DELTA, release_multiplier=tau)
    assert fourier == pytest.approx(composed, rel=5e-3)
    assert opacus_epsilon(tau, sigma, q, steps) == pytest.approx(composed, rel=1e-2)
    # Each part by itself is what its own certificate will claim.
    assert made.release.epsilon == pytest.approx(get_epsilon_gaussian(tau, DELTA), rel=1e-6)
    assert made.steps.epsilon == accounting.epsilon([made.steps_event], DELTA)
    assert made.release.epsilon + made.steps.epsilon > 1.1 * epsilon  # what composition gives back


def test_without_sampling_the_split_is_of_the_squared_mu_to_the_letter():
    """At q = 1 steps are Gaussians, and Σ 1/τ² is exact."""
    for fraction in (0.25, 0.8):
        made = split(2.0, fraction, 1.0, 10)
        whole = noise_multiplier(2.0, DELTA) ** -2
        assert tau_of(made) ** -2 == pytest.approx((1 - fraction) * whole, rel=1e-6)
        assert 10 / made.noise_multiplier**2 == pytest.approx(fraction * whole, rel=5e-3)


def test_the_fourier_way_of_gaussians_alone_is_the_closed_form():
    tau, sigma, steps = 3.0, 8.0, 5
    exact = get_epsilon_gaussian((tau**-2 + steps * sigma**-2) ** -0.5, DELTA)
    found = subsampled_epsilon(sigma, 1.0, steps, DELTA, release_multiplier=tau)
    assert found == pytest.approx(exact, abs=1e-3)
    assert subsampled_epsilon(sigma, 1.0, steps, DELTA) < 0.8 * found


def test_a_split_of_epsilon_would_need_more_noise_and_a_larger_share_needs_less():
    sigmas = [split(1.0, fraction, 0.1, 60).noise_multiplier for fraction in (0.2, 0.5, 0.9)]
    assert sigmas[0] > sigmas[1] > sigmas[2]
    left = 1.0 - split(1.0, 0.5, 0.1, 60).release.epsilon
    linear = calibrate(PrivacyBudget(epsilon=left, delta=DELTA), probability=0.1, steps=60)
    assert linear > 1.5 * sigmas[1]
    alone = calibrate(PrivacyBudget(epsilon=1.0, delta=DELTA), probability=0.1, steps=60)
    assert alone < sigmas[2]


def test_less_noise_would_break_the_budget():
    made = split(1.0, 0.5, 0.1, 60)

    def excess(sigma: float) -> float:
        return subsampled_epsilon(sigma, 0.1, 60, DELTA, release_multiplier=tau_of(made)) - 1.0

    least = brentq(excess, 0.5 * made.noise_multiplier, 2 * made.noise_multiplier, xtol=1e-4)
    assert made.noise_multiplier == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize(
    ("fraction", "match"),
    [(0.0, "0 < f < 1"), (1.0, "0 < f < 1"), (math.nan, "0 < f < 1"), (1 - 1e-9, "a release of")],
)
def test_fractions_that_are_none_are_refused(fraction, match):
    with pytest.raises(UsageError, match=match):
        split(1.0, fraction, 0.1, 60)


def test_a_share_too_small_for_its_steps_says_so():
    with pytest.raises(UsageError, match="beside the release"):
        split(1.0, 1e-7, 1.0, 1000)
