"""The guard: p-values valid at every noise level, foreign data flagged, files bound to a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal

from hyperdp.errors import BundleError, UsageError
from hyperdp.guard import BANDWIDTH, LEVEL, load_guard, simes
from tests.guards import K, draw_means, gaussian_guard


def _flags(means: np.ndarray, noise_std: float, units: float, seed: int = 7) -> int:
    guard, rng = gaussian_guard(), np.random.default_rng(seed)
    released = means + noise_std * rng.standard_normal(means.shape)
    released *= np.maximum(1 + 4 * noise_std * rng.standard_normal((len(means), 1)), 0)
    values = [guard.p_value(z, noise_std=noise_std, units=units) for z in released]
    return int((np.array(values) <= 0.05).sum())


@pytest.mark.parametrize("noise_std", [1e-4, 5e-3, 0.03, 0.2])
def test_false_alarms_stay_at_the_level_at_every_noise_level(noise_std: float) -> None:
    alarms = _flags(draw_means(120, 0.3, 11), noise_std, units=5000)
    # One calibration set of 200 makes the true rate itself vary: Beta(10, 191), below 0.11.
    assert alarms <= binom.ppf(0.999, 120, 0.11)


def test_foreign_data_is_flagged_until_noise_hides_it() -> None:
    foreign = draw_means(30, -0.5, 12)
    assert _flags(foreign, 5e-3, units=5000) >= 28
    assert _flags(foreign, 1.0, units=5000) <= 12  # at such noise nothing can be told


def test_distance_is_the_difference_of_two_densities_by_scipy() -> None:
    guard = gaussian_guard()
    z = draw_means(5, 0.0, 13)
    trace = np.maximum(1 - np.square(guard.reference).sum(1), 1e-3).mean()
    kernel = BANDWIDTH**2 * guard.spread + (0.02**2 + trace / K / 50) * np.eye(K)
    logs = [
        np.log([np.mean([multivariate_normal.pdf(row, c, kernel) for c in centres]) for row in z])
        for centres in (guard.foreign, guard.reference)
    ]
    np.testing.assert_allclose(
        guard.distance(z, noise_std=0.02, units=50), logs[0] - logs[1], rtol=1e-9
    )


def test_released_means_have_the_variance_of_noise_count_and_sampling() -> None:
    guard, std, units = gaussian_guard(), 0.03, 40
    mean = np.zeros(K)
    mean[0] = 0.5
    drawn = guard.as_released(
        np.tile(mean, (40_000, 1)), noise_std=std, units=units, noisy_count=True, seed=3
    )
    sampling = 0.75 / K * (1 / units - 1 / guard.records)
    scale = (4 * std) ** 2
    expected = np.full(K, std**2 + sampling * (1 + scale))
    expected[0] += scale * 0.25
    np.testing.assert_allclose(drawn.var(0), expected, rtol=0.05)  # 7 standard errors


def test_simes_is_uniform_for_one_and_valid_for_many() -> None:
    assert simes((0.3,)) == 0.3
    assert simes((0.01, 0.5, 0.9)) == pytest.approx(0.03)
    rng = np.random.default_rng(0)
    values = [simes(tuple(row)) for row in rng.uniform(size=(4000, 10))]
    assert np.mean(np.array(values) <= 0.05) <= binom.ppf(0.999, 4000, 0.05) / 4000


def test_a_labelled_release_in_which_every_class_is_foreign_is_flagged() -> None:
    guard, foreign = gaussian_guard(), draw_means(30, -0.5, 14)
    finding = guard.judge(foreign, np.full(30, 1e-3), np.full(30, 5000.0))
    assert finding.flagged and finding.p_value <= LEVEL and "Unlike" in finding.sentence()
    public = guard.judge(0.3 * np.eye(K)[:1], np.array([1e-3]), np.array([5000.0]))
    assert not public.flagged and "Not told apart" in public.sentence()


def test_a_guard_is_read_back_and_refused_beside_another_bundle(tmp_path: Path) -> None:
    guard = gaussian_guard()
    guard.save(tmp_path)
    read = load_guard(tmp_path, guard.bundle_hash)
    assert read is not None
    np.testing.assert_allclose(read.reference, guard.reference, atol=1e-3)
    with pytest.raises(BundleError, match="made for bundle abababababab"):
        load_guard(tmp_path, "cd" * 32)
    (tmp_path / "guard.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match="again"):
        load_guard(tmp_path, guard.bundle_hash)
    assert load_guard(tmp_path / "none", guard.bundle_hash) is None


def test_a_mean_of_another_dimension_is_refused() -> None:
    with pytest.raises(UsageError, match="8 coordinates"):
        gaussian_guard().p_value(np.zeros(3), noise_std=0.1, units=10)
