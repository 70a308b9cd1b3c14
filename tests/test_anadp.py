"""ANADP as a valid step: its clip, its noise, what it may know, and where importance comes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hyperdp.errors import UsageError
from hyperdp.private.learners.allocation import noise_shares
from hyperdp.private.learners.anadp import Anadp, AnadpOptions
from hyperdp.private.learners.dpsgd import Optimizer
from hyperdp.private.learners.normal import SystemNormal


def adapter(seed: int = 0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng).to(dtype)

    # Not in alphabetical order: shares must follow names, not places.
    return {"fc": (draw(1, 2, 6), draw(1, 5, 2)), "conv": (draw(1, 2, 3, 2, 2), draw(1, 8, 2))}


def uneven(options: AnadpOptions | None = None, steps: int = 8):
    """A rule that has seen released gradients large in fc alone, and is no longer uniform."""
    rule = Anadp(options or AnadpOptions(shrink=0.3))
    weights = rule.start(adapter())
    rng = torch.Generator().manual_seed(9)
    for t in range(steps):
        mean = {
            n: tuple(
                torch.randn(p.shape, generator=rng) * (3.0 + t if n == "fc" else 0.1) for p in w
            )
            for n, w in weights.items()
        }
        weights = rule.update(weights, mean, 0.1, 0.01)
    return rule, weights


def batch(weights, size: int, scale: float = 1.0, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    return {
        n: tuple(torch.randn(size, *p.shape[1:], generator=rng) * scale for p in w)
        for n, w in weights.items()
    }


def test_important_modules_get_less_noise_and_the_total_stays():
    rule, weights = uneven()
    shares = rule.shares(weights)
    assert max(shares["fc"]) < 0.95
    assert min(shares["conv"]) > 1.0
    sizes = {n: [p.numel() for p in w] for n, w in weights.items()}
    energy = sum(s**2 * k for n in shares for s, k in zip(shares[n], sizes[n], strict=True))
    assert energy == pytest.approx(sum(map(sum, sizes.values())))


def test_the_clip_bounds_exactly_what_the_noise_hides():
    """Mahalanobis length of a clipped contribution under the noise, from its sample covariance."""
    rule, weights = uneven()
    grads = batch(weights, 4, 5.0)
    norms = rule.norms(weights, rule.contributions(weights, grads))
    assert norms.dtype == torch.float64
    draws = 4000
    squares = torch.zeros(4, dtype=torch.float64)
    noises = [rule.noise(weights, 0.7, SystemNormal()) for _ in range(draws)]
    for name in weights:
        for i in range(2):
            variance = torch.stack([n[name][i] for n in noises]).square().mean().item()
            squares += grads[name][i].double().flatten(1).square().sum(1) / variance
    # Each variance is of at least 40,000 normals: relative std below 0.8 %, so below 0.4 % here.
    torch.testing.assert_close(norms / 0.7, squares.sqrt(), rtol=0.02, atol=0)


def test_uniform_shares_are_plain_dp_sgd():
    fresh = Anadp()
    fresh.start(adapter())
    for rule in (uneven(AnadpOptions(allocation="uniform"))[0], fresh):
        weights = adapter()
        grads = batch(weights, 3)
        flat = torch.cat([p.flatten(1) for pair in grads.values() for p in pair], 1).double()
        torch.testing.assert_close(rule.norms(weights, grads), flat.norm(dim=1))


def test_shares_depend_on_released_values_alone():
    """Private gradients of the step in progress go in and change nothing that noise depends on."""
    rule, weights = uneven()
    before = {k: v.clone() for k, v in rule.state_dict().items()}
    for scale in (1.0, 1e6):
        c = rule.contributions(weights, batch(weights, 3, scale))
        rule.norms(weights, c)
        rule.noise(weights, 1.0, SystemNormal())
    after = rule.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_sensitivity_and_uncertainty_have_no_noise_in_them():
    """Constant gradients under noise: on average q is their mean square, and changes are nought."""
    options = AnadpOptions(importance_betas=(0.9, 0.999), allocation="uniform")
    runs, steps, std = 120, 20, 2.0
    weights = adapter()
    truth = {n: (torch.full_like(a, 0.5), torch.full_like(b, 1.0)) for n, (a, b) in weights.items()}
    squares, changes, raw = [], [], []
    for run in range(runs):
        rng = torch.Generator().manual_seed(run)
        rule = Anadp(options)
        rule.start(weights)
        for _ in range(steps):
            mean = {
                n: tuple(p + std * torch.randn(p.shape, generator=rng) for p in w)
                for n, w in truth.items()
            }
            rule.update(weights, mean, std, 0.0)
        squares.append(rule._importance["square"].numpy() / (1 - 0.9**steps))
        changes.append(rule._importance["change"].numpy() / (1 - 0.999 ** (steps - 1)))
        raw.append(2 * std**4 / np.array([24, 16, 12, 10]))  # variance of q at least
    expected = np.array([0.25, 1.0, 0.25, 1.0])  # conv lora_A, lora_B, fc lora_A, lora_B
    error = np.std(squares, 0) / math.sqrt(runs)
    assert (np.abs(np.mean(squares, 0) - expected) < 4.5 * error).all()
    error = np.std(changes, 0) / math.sqrt(runs)
    assert (np.abs(np.mean(changes, 0)) < 4.5 * error).all()
    assert (error < 0.2 * np.mean(raw, 0)).all()  # and noise left in would have been seen


def test_real_changes_are_seen_through_the_noise():
    rule = Anadp(AnadpOptions(allocation="uniform", sensitivity="weight_gradient"))
    weights = {n: tuple(torch.ones_like(p) for p in w) for n, w in adapter().items()}
    rule.start(weights)
    rng = torch.Generator().manual_seed(3)
    for t in range(60):
        size = {"fc": 4.0 * (t % 2), "conv": 2.0}
        mean = {
            n: tuple(size[n] + 0.1 * torch.randn(p.shape, generator=rng) for p in w)
            for n, w in weights.items()
        }
        rule.update(weights, mean, 0.1, 0.0)
    conv, fc = rule._importance["change"][:2], rule._importance["change"][2:]
    assert fc.min() > 100 * conv.abs().max()


def test_adam_is_torchs_adamw():
    weights = adapter()
    rule = Anadp(AnadpOptions(optimizer=Optimizer(weight_decay=0.1)))
    rule.start(weights)
    leaves = [p.clone().requires_grad_() for w in weights.values() for p in w]
    theirs = torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.1)
    for t in range(6):
        mean = {n: tuple(p[0][None] for p in w) for n, w in batch(weights, 1, seed=t).items()}
        weights = rule.update(weights, mean, 0.1, 0.01)
        for leaf, g in zip(leaves, [p for w in mean.values() for p in w], strict=True):
            leaf.grad = g.clone()
        theirs.step()
    for ours, leaf in zip([p for w in weights.values() for p in w], leaves, strict=True):
        torch.testing.assert_close(ours, leaf.detach(), rtol=1e-5, atol=1e-6)


def test_sgd_is_sgd():
    weights = adapter()
    rule = Anadp(AnadpOptions(optimizer=Optimizer(kind="sgd")))
    rule.start(weights)
    mean = {n: tuple(p[0][None] for p in w) for n, w in batch(weights, 1).items()}
    after = rule.update(weights, mean, 0.1, 0.5)
    for name, pair in after.items():
        for new, old, g in zip(pair, weights[name], mean[name], strict=True):
            torch.testing.assert_close(new, old - 0.5 * g)


@pytest.mark.parametrize("sensitivity", ["gradient", "weight_gradient"])
def test_steps_of_noise_alone_stay_finite_and_bounded(sensitivity):
    rule = Anadp(AnadpOptions(sensitivity=sensitivity))
    weights = rule.start({n: (a, torch.zeros_like(b)) for n, (a, b) in adapter().items()})
    for _ in range(50):
        noise = rule.noise(weights, 100.0, SystemNormal())
        mean = {n: (a.float(), b.float()) for n, (a, b) in noise.items()}
        weights = rule.update(weights, mean, 100.0, 0.1)
    assert all(bool(p.isfinite().all()) for w in weights.values() for p in w)
    shares = [s for pair in rule.shares(weights).values() for s in pair]
    assert 1 / 16 <= min(shares) <= max(shares) <= 16


def test_a_run_goes_on_from_its_state_whatever_the_order_of_the_sites():
    rule, weights = uneven()
    turned = dict(reversed(list(weights.items())))
    again = Anadp(rule.options)
    again.start(turned)
    again.load_state_dict({k: v.clone() for k, v in rule.state_dict().items()})
    mean = {n: tuple(p[0][None] for p in w) for n, w in batch(weights, 1).items()}
    first, second = rule.update(weights, mean, 0.1, 0.1), again.update(turned, mean, 0.1, 0.1)
    assert rule.shares(weights) == again.shares(turned)
    for name in first:
        assert torch.equal(first[name][0], second[name][0])
        assert torch.equal(first[name][1], second[name][1])
    for state in ({}, {"step": torch.tensor(1)}):
        with pytest.raises(UsageError, match="state of anadp"):
            again.load_state_dict(state)
    fewer = Anadp()
    fewer.start({"fc": weights["fc"]})
    with pytest.raises(UsageError, match="2 modules"):
        fewer.load_state_dict(rule.state_dict())


def test_shares_against_the_formula_by_hand():
    importance = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    sizes = torch.tensor([1, 2, 3, 4, 5])
    shares = noise_shares(importance, sizes, shrink=0.9, spread=4.0).numpy()
    scaled = (importance.numpy() - 3) / (4 - 2)
    by_hand = np.exp(-0.05 * (scaled - scaled.mean()))
    by_hand /= math.sqrt((sizes.numpy() * by_hand**2).sum() / 15)
    np.testing.assert_allclose(shares, by_hand, rtol=1e-12)
    root = 1 / np.sqrt(1 + 0.1 * (scaled - scaled.mean()))  # the described form, near the mean
    np.testing.assert_allclose(by_hand / by_hand[2], root / root[2], rtol=0.02)
    wild = noise_shares(importance.pow(20), sizes, shrink=0.0, spread=4.0)
    assert float(wild.max() / wild.min()) <= 16 * (1 + 1e-12)
    equal = noise_shares(torch.ones(5, dtype=torch.float64), sizes, shrink=0.9, spread=4.0)
    assert torch.equal(equal, torch.ones(5, dtype=torch.float64))


def test_options_out_of_range_are_refused():
    for wrong in (
        {"shrink": 1.5},
        {"spread": 0.5},
        {"warmup": 1},
        {"importance_betas": (1.0, 0.9)},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            AnadpOptions(**wrong)
