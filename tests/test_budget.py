import dataclasses
import math

import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, get_epsilon_gaussian
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from hyperdp.accounting import pld_epsilon
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError


def delta_by_integration(tau: float, epsilon: float) -> float:
    """δ = ∫ (p - e^ε q)+ over the one coordinate that matters, by quadrature."""
    start = tau**2 * epsilon - 0.5  # where the privacy loss (x + 1/2) / τ² reaches ε
    value, _ = quad(
        lambda x: norm.pdf(x, scale=tau) - math.exp(epsilon) * norm.pdf(x + 1, scale=tau),
        start,
        start + 40 * tau,
        epsabs=0,
        limit=400,
    )
    return value


@pytest.mark.parametrize(
    ("epsilon", "tau"), [(1.0, 3.7306316), (8.0, 0.6002291), (0.2, 16.3041334)]
)
def test_noise_multiplier_has_the_golden_values(epsilon, tau):
    assert noise_multiplier(epsilon, 1e-5) == pytest.approx(tau, abs=1e-6)


@given(st.floats(0.05, 12), st.floats(-9, -2))
def test_noise_multiplier_spends_delta_exactly_by_quadrature(epsilon, exponent):
    delta = 10**exponent
    spent = delta_by_integration(noise_multiplier(epsilon, delta), epsilon)
    assert spent == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 8.0])
def test_noise_multiplier_is_safe_and_tight_by_privacy_loss_distribution(epsilon):
    tau = noise_multiplier(epsilon, 1e-5)
    pld = privacy_loss_distribution.from_gaussian_mechanism(tau)
    assert pld.get_epsilon_for_delta(1e-5) == pytest.approx(epsilon, abs=1e-6)
    less = privacy_loss_distribution.from_gaussian_mechanism(tau * 0.99)
    assert less.get_epsilon_for_delta(1e-5) > epsilon + 1e-4


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.001, 1e-3), (0.02, 1e-8), (0.001, 1e-6), (1e-4, 1e-7), (1.0, 1e-5), (16.0, 1e-9)],
)
def test_noise_multiplier_costs_no_more_than_asked_for_even_when_recomputed(epsilon, delta):
    """Rounding may not decide: strictly less, by a closed form that rounds in its own way."""
    assert get_epsilon_gaussian(noise_multiplier(epsilon, delta), delta) < epsilon


def exact_delta(tau: float, epsilon: float) -> mpmath.mpf:
    """Balle & Wang 2018, equation (6), to 80 digits."""
    with mpmath.workdps(80):
        t, e = mpmath.mpf(tau), mpmath.mpf(epsilon)
        return mpmath.ncdf(1 / (2 * t) - e * t) - mpmath.exp(e) * mpmath.ncdf(-1 / (2 * t) - e * t)


@settings(max_examples=300)
@given(st.floats(-4, 2.698), st.floats(-10, -1e-3))
@example(-4, -10)
@example(2.698, -10)
@example(-4, -1e-3)
def test_no_budget_is_overspent_by_rounding(log_epsilon, log_delta):
    """All over the range that a budget may have, in arithmetic that does not round."""
    budget = PrivacyBudget(epsilon=max(1e-4, 10**log_epsilon), delta=max(1e-10, 10**log_delta))
    tau = noise_multiplier(budget.epsilon, budget.delta)
    assert exact_delta(tau, budget.epsilon) <= budget.delta


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 1.0, 16.0, 499.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.5])
def test_every_budget_can_be_verified(epsilon, delta):
    """A privacy loss distribution is as near as `verify` allows, at the corners of the range."""
    scale = max(1.0, epsilon / 16)
    event = GaussianDpEvent(noise_multiplier(epsilon, delta))
    found = pld_epsilon([event], delta, interval=1e-4 * scale)
    assert found <= epsilon + 1e-6 * scale**2


def test_budgets_out_of_range_would_be_overspent():
    """Why there is a range: float64 loses δ in the difference of two probabilities."""
    assert exact_delta(noise_multiplier(1e-12, 1e-17), 1e-12) > 1.01e-17


def test_classical_formula_would_overspend_at_large_epsilon():
    """Why the classical formula is not used: it promises 10 and spends more."""
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert classical < noise_multiplier(10, 1e-5)
    assert delta_by_integration(classical, 10) > 1e-5


@given(st.floats(0.1, 8), st.floats(0.1, 8), st.floats(-9, -3))
def test_more_epsilon_takes_less_noise(first, second, exponent):
    low, high = sorted((first, second))
    less, more = noise_multiplier(high, 10**exponent), noise_multiplier(low, 10**exponent)
    # A root is found to a relative 1e-8 or so; two budgets one rounding apart may change places.
    assert more >= less * (1 - 1e-7)
    if high > 1.01 * low:
        assert more > less


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"epsilon": 1e-5},
        {"epsilon": 500},
        {"epsilon": 10**400},
        {"epsilon": "1"},
        {"epsilon": True},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": -1e-5},
        {"delta": 1e-11},
        {"delta": math.nan},
        {"delta": None},
        {"adjacency": "substitute"},
        {"unit": "household"},
    ],
)
def test_budget_refuses_what_is_out_of_range(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        PrivacyBudget(**{"epsilon": 1.0, "delta": 1e-5, **change})


def test_budget_is_frozen_and_takes_keywords_only():
    budget = PrivacyBudget(epsilon=np.float64(1), delta=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.epsilon = 2.0
    with pytest.raises(TypeError):
        PrivacyBudget(1.0, 1e-5)
