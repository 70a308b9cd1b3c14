"""Public records re-weighted to have a released mean, and adapters trained on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from hyperdp.encoder import clip
from hyperdp.errors import UsageError
from hyperdp.eval.text_study import nats
from hyperdp.lora import adapters, pick
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import FinetuneConfig, train_adapters
from hyperdp.private.reweight import (
    LEAST_NOISE_STD,
    OF_TEXTS,
    ReweightConfig,
    adapt_on_public,
    class_weights,
    effective_size,
    embed_public,
    reweight,
    tilt,
    usual_config,
)
from tests.text_world import TEXTS, text_bundle
from tests.worlds import tiny_bundle, tiny_family, tiny_hypernetwork

QUICK = FinetuneConfig(steps=5, batch_size=4, lr=1e-2, ema=0.9, bf16=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def test_the_weights_solve_the_primal_problem_found_another_way():
    """KL + misfit, minimised over the simplex by SLSQP, which knows nothing of the dual."""
    rng = np.random.default_rng(0)
    embeddings, mean, std = rng.normal(size=(12, 3)), np.array([0.4, -0.2, 0.1]), 0.3

    def primal(w):
        w = np.clip(w, 1e-12, None)
        return (w * np.log(w * len(w))).sum() + np.square(w @ embeddings - mean).sum() / (
            2 * std**2
        )

    found = minimize(
        primal, np.full(12, 1 / 12), method="SLSQP", bounds=[(0, 1)] * 12,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    weights = softmax(embeddings @ tilt(embeddings, mean, std))
    assert np.abs(weights - found.x).max() < 1e-4
    assert primal(weights) <= found.fun + 1e-9


def test_a_discrepancy_sharpens_until_the_misfit_is_that_share_of_the_noise():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(4000, 4)) * 0.3
    target = embeddings[embeddings[:, 0] > 0.2].mean(0)
    for std in (0.01, 0.05, 0.1):
        plain = reweight(embeddings, target, std)
        assert np.array_equal(plain, softmax(embeddings @ tilt(embeddings, target, std)))
        sizes = [effective_size(plain)]
        for share in (0.7, 1.0):
            weights = reweight(embeddings, target, std, discrepancy=share)
            assert weights.sum() == pytest.approx(1)
            misfit = np.linalg.norm(weights @ embeddings - target)
            assert misfit == pytest.approx(share * 2 * std, rel=0.01)
            sizes.append(effective_size(weights))
        assert sizes[0] > sizes[1] > sizes[2]
    assert np.array_equal(
        reweight(embeddings, target, 0.0), reweight(embeddings, target, LEAST_NOISE_STD)
    )


def test_what_no_weights_can_reach_counts_as_noise():
    embeddings = np.random.default_rng(4).normal(size=(4000, 4)) * 0.1
    far = np.array([0.6, 0.0, 0.0, 0.0])  # outside of the cloud
    weights = reweight(embeddings, far, 0.003)
    stubborn = softmax(embeddings @ tilt(embeddings, far, 0.003))
    assert effective_size(weights) > 2 * effective_size(stubborn)
    assert (weights @ embeddings)[0] > 0.03


def test_pure_noise_points_at_nothing():
    embeddings = np.random.default_rng(3).normal(size=(2000, 4)) * 0.3
    assert effective_size(reweight(embeddings, embeddings.mean(0), 10.0)) > 1900


def test_the_records_that_the_mean_comes_from_get_the_weight():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(5, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    label = rng.integers(5, size=2000)
    embeddings = centres[label] * 0.8 + rng.normal(size=(2000, 8)) * 0.05
    noisy = embeddings[label == 3].mean(0) + rng.normal(size=8) * 0.02
    weights = reweight(embeddings, noisy, 0.02)
    assert weights[label == 3].sum() > 0.95


def test_a_class_has_weight_on_its_own_public_records_alone():
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(700, 4)) * 0.3
    of = rng.permutation(np.repeat([0, 1, -1], [300, 250, 150]))
    mean = torch.tensor([[0.1, 0.0, -0.1, 0.0], [0.0, 0.2, 0.0, 0.0]])
    level = torch.tensor([0.01, 0.2])
    known = class_weights(embeddings, mean, level, classes=of, discrepancy=0.75)
    assert known.shape == (2, 700) and known.sum(1) == pytest.approx(1)
    for row in (0, 1):
        own = of == row
        assert not known[row, ~own].any()
        z, std = mean[row].double().numpy(), float(level[row])
        assert np.array_equal(known[row, own], reweight(embeddings[own], z, std))
    unknown = class_weights(embeddings, mean, level, discrepancy=0.75)
    z = mean[0].double().numpy()
    sharp = reweight(embeddings, z, float(level[0]), discrepancy=0.75)
    assert np.array_equal(unknown[0], sharp) and unknown[0][of != 0].any()
    [alone] = class_weights(embeddings, mean[:1], level[:1], discrepancy=0.75)
    assert np.array_equal(alone, reweight(embeddings, z, float(level[0])))
    with pytest.raises(UsageError, match="at least 100 public records of class number 1"):
        class_weights(embeddings, mean, level, classes=np.where(of == 1, -1, of))


def test_embeddings_are_the_encoders_own_after_the_clip(bundle):
    images = torch.rand(130, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        expected = clip(bundle.encoder(images), bundle.config.clip_norm)
    found = embed_public(bundle, images)
    assert found.shape == (130, 8)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_each_class_learns_the_records_that_its_own_mean_points_at(bundle):
    torch.manual_seed(0)
    dark, light = (torch.full((150, 1, 28, 28), v) + 0.1 * torch.randn(150, 1, 28, 28)
                   for v in (-0.8, 0.8))  # fmt: skip
    public = torch.cat([dark, light])
    mean = torch.from_numpy(
        np.stack([embed_public(bundle, part).mean(0) for part in (dark, light)])
    ).float()
    level = torch.full((2,), 1e-3)
    seen = []
    weights = adapt_on_public(
        bundle, mean, level, public, ReweightConfig(steps=60, lr=1e-2, ema=0.9),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (60, 60)

    def loss(w, images):
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad(), adapters(bundle.base.model, w):
            return float(bundle.base.loss(images[:64], rng).mean())

    # Where the classes are known, the means may say the opposite: each learns its own.
    turned = adapt_on_public(
        bundle, mean.flip(0), level, public, ReweightConfig(steps=60, lr=1e-2, ema=0.9),
        classes=torch.arange(2).repeat_interleave(150),
    )  # fmt: skip
    assert loss(pick(turned, 0), dark) < loss(pick(turned, 1), dark)
    assert loss(pick(turned, 1), light) < loss(pick(turned, 0), light)
    before = adapter_weights(bundle, mean, level)
    for group, own in enumerate((dark, light)):
        mine = pick(weights, group)
        assert loss(mine, own) < 0.9 * loss(pick(before, group), own)
        assert loss(mine, own) < loss(pick(weights, 1 - group), own)


def test_known_classes_take_the_noise_off_the_mean_that_training_begins_at(bundle):
    """A mean that is all noise leaves the public records of its class as they are."""
    public = torch.rand(240, 1, 28, 28) * 2 - 1
    of = torch.arange(2).repeat_interleave(120)
    noisy, level = torch.full((2, 8), 3.0), torch.full((2,), 1e5)
    still = ReweightConfig(steps=1, lr=1e-9)
    own = embed_public(bundle, public).reshape(2, 120, -1).mean(1)
    expected = adapter_weights(
        bundle, torch.from_numpy(own).float(), torch.full((2,), LEAST_NOISE_STD)
    )
    found = adapt_on_public(bundle, noisy, level, public, still, classes=of)
    unknown = adapt_on_public(bundle, noisy, level, public, still)
    drawn = adapter_weights(bundle, noisy, level)
    for name, (_, b) in found.items():
        torch.testing.assert_close(b, expected[name][1], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(unknown[name][1], drawn[name][1], rtol=1e-3, atol=1e-6)
        assert not torch.allclose(expected[name][1], drawn[name][1], rtol=1e-2)


def test_documents_are_learned_that_their_mean_points_at(tmp_path):
    bundle = text_bundle(tmp_path / "b")
    mine, other = (
        torch.from_numpy(bundle.base.tokenizer.encode_all([f"{text} {i}" for i in range(120)]))
        for text in (TEXTS[0], TEXTS[4])
    )
    public = torch.cat([mine, other])
    z = torch.from_numpy(embed_public(bundle, mine).mean(0)).float()[None]
    level = torch.full((1,), 1e-3)
    config = ReweightConfig(steps=40, batch_size=8, lr=1e-2, ema=0.9)
    weights = pick(adapt_on_public(bundle, z, level, public, config), 0)
    before = pick(adapter_weights(bundle, z, level), 0)
    gained = [nats(bundle, before, part) - nats(bundle, weights, part) for part in (mine, other)]
    assert gained[0] > 0.1 and gained[0] > 2 * gained[1]
    assert usual_config(bundle) is OF_TEXTS


def test_a_group_is_trained_as_if_it_were_alone():
    """With the same times and noise, a second group changes the first by rounding alone."""
    family, records = tiny_family(), torch.rand(2, 200, 1, 28, 28, dtype=torch.float64) * 2 - 1
    family.model.double()
    family.prepare_training()
    hyper = tiny_hypernetwork(family)
    start = hyper(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2))
    start = {name: (a.double(), b.double()) for name, (a, b) in start.items()}

    class SameTimes:
        """The family with times and noise that do not depend on the number of groups."""

        def __init__(self):
            self.model = family.model

        def adapter_loss(self, images, pool, rng):
            groups, count = images.shape[:2]
            noise = torch.randn(images.shape[1:], generator=rng, dtype=torch.float64).expand(
                images.shape
            )
            noisy = (0.5 * images + 0.5 * noise).flatten(0, 1)
            velocity = self.model(noisy, torch.full((groups * count,), 500)).sample
            return (velocity - (noise - images).flatten(0, 1)).square().mean((1, 2, 3))

    def train(start, images):
        return train_adapters(
            SameTimes(), start, lambda count: images[:, :count], QUICK,
            torch.Generator().manual_seed(3),
        )  # fmt: skip

    both = pick(train(start, records), 0)
    alone = train(pick(start, 0), records[:1])
    for name, (a, b) in alone.items():
        torch.testing.assert_close(both[name][0], a, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(both[name][1], b, rtol=1e-6, atol=1e-7)


def test_few_public_records_are_refused(bundle):
    with pytest.raises(UsageError, match="at least 100 public records"):
        adapt_on_public(bundle, torch.zeros(1, 8), torch.ones(1), torch.zeros(99, 1, 28, 28))
