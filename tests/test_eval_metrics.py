"""Metrics against scikit-learn, torchmetrics and references of ten lines."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from hyperdp.errors import DataError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.by_class import accuracy_by_class, kid_by_class, worst_class
from hyperdp.eval.metrics.neighbours import balls_holding, nearest, radii
from hyperdp.eval.metrics.precision_recall import manifold_scores
from hyperdp.eval.metrics.roc import attack, distance_attack

DIM = 12


def features(count, seed, *, shift=0.0, scale=1.0, offset=0.0, extractor="toy"):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, DIM, generator=generator) * scale + shift
    return Features(extractor=extractor, values=values + offset)


def array(found):
    return found.values.double().numpy()


def test_neighbours_agree_with_scikit_learn():
    a, b = features(90, 1), features(140, 2)
    distances, indices = nearest(a, b, 7)
    expected = NearestNeighbors(algorithm="brute").fit(array(b)).kneighbors(array(a), 7)
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    assert np.array_equal(indices, expected[1])
    others = NearestNeighbors(algorithm="brute").fit(array(b)).kneighbors(n_neighbors=4)[0]
    np.testing.assert_allclose(radii(b, 4), others[:, 3], rtol=1e-6)


def test_near_copies_are_measured_where_float32_cannot():
    """Far from the origin, float32's ‖x‖² + ‖y‖² − 2x·y gives 0 for both of these distances."""
    base = features(50, 3, offset=300.0)
    nudge = torch.zeros(50, DIM)
    nudge[:, 0] = 0.001
    moved = Features(extractor="toy", values=base.values + nudge)
    distances, indices = nearest(moved, base, 1)
    exact = np.linalg.norm(array(moved) - array(base), axis=1)
    assert np.array_equal(indices[:, 0], np.arange(50))
    np.testing.assert_allclose(distances[:, 0], exact, rtol=1e-9)


def test_a_copy_lies_on_the_rim_and_counts_as_inside():
    base = features(60, 4)
    holds = balls_holding(base, base, radii(base, 1))
    matrix = cdist(array(base), array(base))
    others = matrix + np.diag(np.full(60, np.inf))
    assert np.array_equal(holds, (matrix <= others.min(1)[None] * (1 + 1e-9)).sum(1))
    assert (holds >= 1).all()


def reference_manifolds(made, real, k, ball):
    """Kynkäänniemi et al. 2019, eqs. 1-3, and Naeem et al. 2020, eqs. 3-4, by full matrices."""
    within = lambda x, j: np.sort(cdist(x, x), axis=1)[:, j]  # noqa: E731 - column 0 is the point
    across = cdist(made, real)
    precision = (across <= within(real, k)).any(1).mean()
    recall = (across <= within(made, k)[:, None]).any(0).mean()
    density = (across <= within(real, ball)).sum(1).mean() / ball
    coverage = (across.min(0) <= within(real, ball)).mean()
    return precision, recall, density, coverage


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.6, 1.0), (0.2, 0.5), (0.0, 1.8)])
def test_manifold_scores_agree_with_full_matrices(shift, scale):
    made, real = features(300, 5, shift=shift, scale=scale), features(280, 6)
    found = manifold_scores(made, real)
    expected = reference_manifolds(array(made), array(real), 3, 5)
    got = (found.precision, found.recall, found.density, found.coverage)
    assert got == pytest.approx(expected, abs=1e-6)
    assert (found.extractor, found.generated, found.reference) == ("toy", 300, 280)


def test_manifold_scores_tell_fidelity_from_diversity():
    real = features(400, 7)
    narrow = manifold_scores(features(400, 8, scale=0.3), real)
    wide = manifold_scores(features(400, 8, scale=2.5), real)
    assert (narrow.precision > 0.95, narrow.recall < 0.3) == (True, True)
    assert (wide.precision < 0.3, wide.recall > 0.9) == (True, True)
    with pytest.raises(DataError, match="at least 6"):
        manifold_scores(features(9, 1), features(5, 2))
    with pytest.raises(DataError, match="same extractor"):
        manifold_scores(features(9, 1, extractor="other"), features(9, 2))


def test_attack_agrees_with_scikit_learn_and_torchmetrics():
    rng = np.random.default_rng(0)
    members, others = np.round(rng.normal(0.7, 1, 400), 1), np.round(rng.normal(0, 1, 3000), 1)
    found = attack(members, others)
    scores = np.concatenate([members, others])
    labels = np.concatenate([np.ones(400), np.zeros(3000)])
    assert found.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    other = BinaryAUROC()(torch.from_numpy(scores), torch.from_numpy(labels).long())
    assert found.auc == pytest.approx(float(other), abs=1e-6)
    by_hand = max((members >= t).mean() for t in [*scores, np.inf] if (others >= t).mean() <= 0.001)
    assert found.tpr == pytest.approx(by_hand, abs=1e-12)
    assert found.tpr < found.tpr_high < 1
    with pytest.raises(DataError, match="finite"):
        attack(members, np.array([np.nan]))


def test_tpr_at_a_low_rate_sees_what_auc_does_not():
    """Forty of a thousand members are given away for certain, nothing is known of the rest."""
    rng = np.random.default_rng(1)
    members, others = rng.normal(size=1000), rng.normal(size=1000)
    members[:40] = 99.0
    found = attack(members, others)
    assert found.auc < 0.56
    assert found.tpr >= 0.04


def test_records_beside_generated_images_are_found_out():
    train, held_out = features(200, 9), features(1500, 10)
    copies = Features(extractor="toy", values=train.values[:120] + 1e-3)
    found = distance_attack(copies, train, held_out)
    assert found.tpr >= 0.6
    independent = distance_attack(features(120, 11), train, held_out)
    assert abs(independent.auc - 0.5) < 4 * np.sqrt(1 / (12 * 200) + 1 / (12 * 1500))
    assert independent.tpr < 0.05


def test_one_failed_class_is_named():
    real = features(240, 12)
    labels = ["a", "b", "c"] * 80
    made = features(240, 13)
    values = made.values.clone()
    values[1::3] += 1.0
    lines = kid_by_class(Features(extractor="toy", values=values), labels, real, labels)
    assert [line.name for line in lines] == ["a", "b", "c"]
    assert worst_class(lines).name == "b"
    good = [line.kid.value for line in lines if line.name != "b"]
    assert lines[1].kid.value > 5 * max(map(abs, good))
    without = kid_by_class(made, ["a"] * 200 + ["b"] * 40, real, labels)
    assert without[2].missing
    assert worst_class(without).name == "c"
    with pytest.raises(DataError, match="label for every image"):
        kid_by_class(made, labels[1:], real, labels)
    with pytest.raises(DataError, match="in common"):
        kid_by_class(made, ["x"] * 240, real, labels)


def test_accuracy_by_class_agrees_with_torchmetrics():
    rng = np.random.default_rng(3)
    truth, guess = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    guess = np.where(rng.random(300) < 0.5, truth, guess)
    found = accuracy_by_class([str(g) for g in guess], [str(t) for t in truth])
    other = MulticlassAccuracy(num_classes=4, average="none")
    expected = other(torch.from_numpy(guess), torch.from_numpy(truth)).tolist()
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)
