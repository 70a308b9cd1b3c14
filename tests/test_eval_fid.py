import math

import numpy as np
import pytest
import scipy.linalg
import torch

from hyperdp.errors import DataError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.fid import Score, fid, fid_floor, kid, kid_floor, recovered_gain

DIM = 24


def features(count, seed, *, shift=0.0, scale=1.0, extractor="toy"):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)) / DIM**0.5
    values = torch.randn(count, DIM, generator=generator) @ mixing * scale + shift
    return Features(extractor=extractor, values=values)


def reference_fid(a, b):
    """Heusel et al. 2017, with scipy's matrix square root."""
    a, b = a.values.double().numpy(), b.values.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)


def reference_kid(a, b):
    """Unbiased squared MMD with the kernel (x·y/d + 1)³, by sums over pairs."""
    a, b = a.values.double().numpy(), b.values.double().numpy()
    n, m = len(a), len(b)
    kernel = lambda x, y: (x @ y.T / DIM + 1) ** 3  # noqa: E731
    within_a = kernel(a, a)[~np.eye(n, dtype=bool)].sum() / (n * (n - 1))
    within_b = kernel(b, b)[~np.eye(m, dtype=bool)].sum() / (m * (m - 1))
    return within_a + within_b - 2 * kernel(a, b).mean()


@pytest.mark.parametrize(("count", "shift", "scale"), [(200, 0.0, 1.0), (150, 0.5, 1.3)])
def test_fid_agrees_with_scipy(count, shift, scale):
    a, b = features(count, 1, shift=shift, scale=scale), features(170, 2)
    assert fid(a, b).value == pytest.approx(reference_fid(a, b), rel=1e-6)


def test_fid_of_gaussians_far_apart_is_the_closed_form():
    """Equal covariance, means apart by s in every coordinate: FID = d·s², exactly."""
    a = features(300, 3)
    b = Features(extractor="toy", values=a.values + 2.0)
    assert fid(a, b).value == pytest.approx(DIM * 4.0, rel=1e-5)


def test_kid_agrees_with_numpy_where_a_subset_is_the_whole_set():
    a, b = features(120, 4, shift=0.3), features(120, 5)
    score = kid(a, b, subsets=2, subset_size=120)
    assert score.value == pytest.approx(reference_kid(a, b), rel=1e-6)
    assert score.std == pytest.approx(0.0, abs=1e-9)


def test_kid_is_repeatable_and_leaves_the_global_generator_alone():
    a, b = features(120, 4, shift=0.3), features(90, 5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = kid(a, b, subset_size=40), kid(a, b, subset_size=40)
    assert torch.equal(torch.rand(3), expected)
    assert first == second != kid(a, b, subset_size=40, seed=1)
    assert first.value == pytest.approx(reference_kid(a, b), abs=4 * first.std / math.sqrt(50))


def test_floor_uses_as_many_real_images_as_the_methods_have_generated():
    real, reference = features(400, 6), features(300, 7)
    floor = fid_floor(real, reference, sample_size=250)
    assert (floor.generated, floor.reference) == (250, 300)
    assert floor == fid(real.head(250), reference)
    assert kid_floor(real, reference, sample_size=250).generated == 250
    assert floor.value < fid(features(250, 8, shift=0.5), reference).value
    with pytest.raises(DataError, match="at least 401"):
        fid_floor(real, reference, sample_size=401)


def test_fid_falls_with_the_sample_size_and_kid_does_not():
    """Why sizes are checked: FID of one law with itself is bias alone."""
    many = fid(features(2000, 10), features(2000, 11)).value
    few = fid(features(60, 10), features(60, 11)).value
    assert few > 10 * many
    spread = [kid(features(60, s), features(60, s + 50)).value for s in range(20)]
    assert abs(np.mean(spread)) < 4 * np.std(spread) / math.sqrt(len(spread))


def score(value, **changes):
    facts = {"metric": "fid", "extractor": "toy", "std": None, "generated": 5, "reference": 6}
    return Score(value=value, **(facts | changes))


def test_recovered_gain():
    base, nonprivate = score(400.0), score(200.0)
    gain = lambda v: recovered_gain(base=base, method=score(v), nonprivate=nonprivate)  # noqa: E731
    assert [gain(v) for v in (400.0, 280.0, 200.0, 100.0, 500.0)] == [0.0, 0.6, 1.0, 1.5, -0.5]
    assert math.isnan(recovered_gain(base=base, method=score(300.0), nonprivate=score(400.0)))


@pytest.mark.parametrize(
    "changes", [{"generated": 4}, {"reference": 7}, {"extractor": "other"}, {"metric": "kid"}]
)
def test_scores_that_cannot_be_compared_are_refused(changes):
    with pytest.raises(DataError, match="sample size"):
        recovered_gain(base=score(4.0), method=score(3.0, **changes), nonprivate=score(2.0))


def test_features_of_different_extractors_or_too_few_are_refused():
    with pytest.raises(DataError, match="same extractor"):
        fid(features(9, 1, extractor="other"), features(9, 2))
    with pytest.raises(DataError, match="at least 2"):
        kid(features(1, 1), features(9, 2))


def test_a_score_is_never_printed_without_its_features():
    assert score(1.0).title == "FID (toy features)"
    assert score(1.0, metric="kid").title == "KID (toy features)"
