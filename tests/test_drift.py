"""Drift: tails against simulation and χ², p-values uniform under no change, power under change."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from hyperdp.drift import Measured, compare, p_bound, p_value
from hyperdp.errors import UsageError
from tests.guards import K, gaussian_guard

CLIP, WEIGHT = 1.0, 0.25


def _release(mean: np.ndarray, lam: np.ndarray, n: int, sigma: float, rng) -> Measured:
    """One release of n records about `mean` with covariance eigenvalues `lam`, by its formula."""
    sample = mean + rng.standard_normal(K) * np.sqrt(lam / n)
    count = max(n + sigma / WEIGHT * rng.standard_normal(), 1.0)
    z = (n * sample + sigma * rng.standard_normal(K)) / count
    return Measured(mean=z, noise_std=sigma / count, units=count, units_std=sigma / WEIGHT)


def _world(sigma: float, n: int, shift: float, draws: int, seed: int) -> tuple[list, list]:
    guard, rng = gaussian_guard(), np.random.default_rng(seed)
    values, bounds = [], []
    for _ in range(draws):
        mean = rng.standard_normal(K)
        mean *= 0.5 / np.linalg.norm(mean)
        shape = rng.gamma(1.0, size=K)
        lam = (CLIP**2 - 0.25) * shape / shape.sum()
        moved = mean + shift * (direction := rng.standard_normal(K)) / np.linalg.norm(direction)
        a, b = (_release(m, lam, k, sigma, rng) for m, k in ((mean, n), (moved, 2 * n)))
        drift = compare([a], [b], guard)
        values.append(drift.p_value)
        bounds.append(drift.p_bound)
    return values, bounds


def test_tail_agrees_with_chi_square_where_all_eigenvalues_are_equal() -> None:
    for square in (0.5, 4.0, 8.0, 8.0001, 20.0, 60.0):
        found = p_value(np.full((1, 8), 0.5), square * 0.5)
        assert found == pytest.approx(chi2.sf(square, 8), rel=0.01)


def test_no_distance_at_all_is_no_change() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert p_value(np.full((2, 8), 0.5), 0.0) == 1.0
        assert p_value(np.full((2, 8), 0.5), 1e-9) == pytest.approx(1.0, abs=1e-6)


def test_tail_agrees_with_simulation() -> None:
    rng = np.random.default_rng(1)
    lam = np.array([3.0, 1.0, 0.5, 0.1, 0.1, 0.01])
    drawn = (lam * rng.standard_normal((400_000, 6)) ** 2).sum(1)
    for square in (1.0, 3.0, 4.71, 8.0, 25.0):
        assert p_value(lam[None], square) == pytest.approx((drawn >= square).mean(), rel=0.1)


@pytest.mark.parametrize(("sigma", "n"), [(4.0, 500), (0.6, 2000), (1.0, 400)])
def test_p_values_are_uniform_under_no_change(sigma: float, n: int) -> None:
    values, bounds = _world(sigma, n, 0.0, 150, seed=round(10 * sigma))
    assert kstest(values, "uniform").pvalue > 1e-3
    assert min(bounds) > 0.05  # a bound may not reject at all here: it knows nothing of the source


def test_a_change_is_found_and_a_large_one_for_any_source() -> None:
    values, _ = _world(0.6, 2000, 0.1, 40, seed=5)
    assert np.mean(np.array(values) <= 0.05) > 0.9
    _, bounds = _world(0.6, 20_000, 0.5, 20, seed=6)
    assert np.mean(np.array(bounds) <= 0.05) > 0.9


def test_the_bound_holds_for_the_worst_source_of_its_norm() -> None:
    rng, rejected = np.random.default_rng(8), 0
    for _ in range(300):  # records ±C on one axis: the largest sampling error there is
        sides = []
        for n in (60, 90):
            mean = np.zeros(K)
            mean[0] = rng.choice([-1.0, 1.0], n).mean()
            sides.append(_release(mean, np.zeros(K), n, 0.5, rng))
        rejected += p_bound(*sides, CLIP) <= 0.05
    assert rejected <= 15


def test_classes_are_judged_together_and_must_fit() -> None:
    guard, rng = gaussian_guard(), np.random.default_rng(9)
    lam = np.full(K, 0.75 / K)
    mean = np.full(K, 0.5 / np.sqrt(K))
    sides = [[_release(mean, lam, 3000, 0.6, rng) for _ in range(4)] for _ in range(2)]
    assert not compare(*sides, guard).changed
    sides[1][2] = _release(-mean, lam, 3000, 0.6, rng)
    drift = compare(*sides, guard)
    assert drift.changed and int(np.argmin(drift.p_values)) == 2
    with pytest.raises(UsageError, match="same classes"):
        compare(sides[0], sides[1][:2], guard)
