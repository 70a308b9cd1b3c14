"""Sampling, noise, calibration and clipping, each against another way of computing the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting import dp_event, get_epsilon_gaussian
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from scipy import stats

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.private.learners.calibrate import calibrate, training_event
from hyperdp.private.learners.clipping import clipped_sum
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.dpsgd import DpSgd, FfaLora, Optimizer
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.learners.poisson import PoissonSampler, choose_each
from hyperdp.private.learners.projected import Projected, PublicSubspace
from hyperdp.private.learners.step import PrivateStep
from hyperdp.private.learners.units import Units
from hyperdp.subsampled import subsampled_epsilon
from tests.worlds import tiny_family

SURE = 1e-9  # chance that a right sampler fails one of these tests


def weights(seed: int = 0):
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng)

    return {"conv": (draw(1, 2, 3, 3, 3), draw(1, 4, 2)), "linear": (draw(1, 2, 5), draw(1, 6, 2))}


def grads(count: int, seed: int = 1):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: tuple(torch.randn(count, *p.shape[1:], generator=rng) for p in pair)
        for name, pair in weights().items()
    }


def test_normals_are_standard_independent_and_never_the_same():
    normal = SystemNormal()
    x = normal(200_000).numpy()
    assert stats.kstest(x, "norm").pvalue > SURE
    assert abs((x[1:] * x[:-1]).mean()) < 7 / math.sqrt(len(x))
    # The tails, where a poor generator is short: beyond 3.5 a Binomial count.
    low, high = stats.binom.interval(1 - SURE, len(x), 2 * stats.norm.sf(3.5))
    assert low <= (np.abs(x) > 3.5).sum() <= high
    assert normal(2, 3).shape == (2, 3)
    assert normal(2, 3).dtype == torch.float64
    assert not torch.equal(normal(8), normal(8))


def test_batches_are_poisson_samples():
    n, q, rounds = 400, 0.07, 500
    sampler = PoissonSampler(q)
    batches = [sampler.draw(n) for _ in range(rounds)]
    low, high = stats.binom.interval(1 - SURE, n * rounds, q)
    assert low <= sum(map(len, batches)) <= high
    hits = np.bincount(np.concatenate(batches), minlength=n)
    low, high = stats.binom.interval(1 - SURE / n, rounds, q)
    assert hits.min() >= low
    assert hits.max() <= high
    sizes = np.array([len(b) for b in batches])  # variance of a Binomial, not of a fixed size
    bounds = stats.chi2.interval(1 - SURE, rounds - 1)
    assert bounds[0] < (rounds - 1) * sizes.var(ddof=1) / (n * q * (1 - q)) < bounds[1]
    assert all((np.diff(b) > 0).all() for b in batches)


def test_sampling_at_the_ends():
    assert PoissonSampler(1.0).draw(5).tolist() == [0, 1, 2, 3, 4]
    assert len(PoissonSampler(0.5).draw(0)) == 0
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="0 < q <= 1"):
            PoissonSampler(wrong)
    picked = choose_each(np.full(6000, 3))
    assert stats.chisquare(np.bincount(picked, minlength=3)).pvalue > SURE


@pytest.mark.parametrize(("epsilon", "q", "steps"), [(1.0, 0.1, 60), (3.0, 0.05, 20)])
def test_calibration_is_tight_by_another_accountant(epsilon, q, steps):
    budget = PrivacyBudget(epsilon=epsilon, delta=1e-5)
    sigma = calibrate(budget, probability=q, steps=steps)

    def spent(s):
        accountant = PLDAccountant(value_discretization_interval=1e-4)
        step = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(s))
        accountant.compose(dp_event.SelfComposedDpEvent(step, steps))
        return accountant.get_epsilon(1e-5)

    assert spent(sigma) <= epsilon < spent(sigma * 0.995)
    assert subsampled_epsilon(sigma, q, steps, 1e-5) == pytest.approx(epsilon, rel=2e-3)


def test_epsilon_by_fourier_transforms_is_the_gaussian_s_without_sampling():
    for sigma, steps in ((2.0, 1), (20.0, 100)):
        exact = get_epsilon_gaussian(sigma / math.sqrt(steps), 1e-5)
        assert subsampled_epsilon(sigma, 1.0, steps, 1e-5) == pytest.approx(exact, abs=1e-4)
    assert subsampled_epsilon(2.0, 0.1, 10, 1e-5) < subsampled_epsilon(2.0, 0.2, 10, 1e-5)


@pytest.mark.parametrize(
    ("steps", "q", "sigma", "delta"),
    [(10**6, 1e-5, 0.7, 1e-10), (10**6, 1e-4, 1.0, 1e-8), (3 * 10**5, 1e-4, 0.8, 1e-9)],
)
def test_epsilon_of_very_many_steps_agrees_by_both_ways(steps, q, sigma, delta):
    """Rounding of the transform, T times over, and steps that drift off the grid, were ε = 40."""
    bound = accounting.pld_epsilon([training_event(sigma, q, steps)], delta)
    assert 0.9 * bound <= subsampled_epsilon(sigma, q, steps, delta) <= bound + 1e-3


def test_a_budget_out_of_reach_is_refused():
    with pytest.raises(UsageError, match="at most 1000"):
        calibrate(PrivacyBudget(epsilon=1e-4, delta=1e-5), probability=1.0, steps=100)


@pytest.mark.parametrize("rule", [DpSgd(), FfaLora()])
def test_clipping_bounds_what_one_example_adds(rule):
    w, g = weights(), grads(6)
    clip = 0.5
    whole = clipped_sum(rule, w, g, clip_norm=clip, valid=6)
    less = clipped_sum(rule, w, g, clip_norm=clip, valid=5)
    moved = {k: tuple(x - y for x, y in zip(whole[k], less[k], strict=True)) for k in whole}
    norm = math.sqrt(sum(float(p.square().sum()) for pair in moved.values() for p in pair))
    assert norm == pytest.approx(clip, rel=1e-6)
    assert norm <= clip
    # By hand: every gradient over its own norm, all above C.
    kept = {n: pair if rule.needs_a else pair[1:] for n, pair in g.items()}
    rows = torch.cat([p.flatten(1) for pair in kept.values() for p in pair], 1).double()
    wanted = (rows / rows.norm(dim=1, keepdim=True) * clip).sum(0)
    found = torch.cat([p.flatten() for pair in whole.values() for p in pair])
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    small = {n: tuple(p * 1e-4 for p in pair) for n, pair in g.items()}
    untouched = clipped_sum(rule, w, small, clip_norm=clip, valid=6)
    torch.testing.assert_close(
        untouched["conv"][1], small["conv"][1].double().sum(0, keepdim=True), rtol=1e-12, atol=0
    )


def test_an_example_that_is_not_finite_counts_as_zero():
    g = grads(4)
    without = clipped_sum(DpSgd(), weights(), g, clip_norm=1.0, valid=3)
    for bad in (float("nan"), float("inf")):
        g["linear"][1][3, 0, 0] = bad
        with_it = clipped_sum(DpSgd(), weights(), g, clip_norm=1.0, valid=4)
        for name, pair in without.items():
            assert all(torch.equal(x, y) for x, y in zip(pair, with_it[name], strict=True))


def test_adamw_and_sgd_are_torch_s_own():
    for optimizer, reference in (
        (Optimizer(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        (Optimizer(kind="sgd", momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ):
        rule, w = DpSgd(optimizer), weights()
        leaves = [torch.nn.Parameter(p.clone()) for pair in w.values() for p in pair]
        theirs = reference(leaves)
        w = rule.start(w)
        for seed in range(4):
            mean = grads(1, seed)
            for leaf, g in zip(leaves, [p for pair in mean.values() for p in pair], strict=True):
                leaf.grad = g
            theirs.step()
            w = rule.update(w, mean, 0.1, 0.01)
            if seed == 1:  # a killed run goes on alike
                state, rule = rule.state_dict(), DpSgd(optimizer)
                rule.start(w)
                rule.load_state_dict(state)
        for leaf, p in zip(leaves, [p for pair in w.values() for p in pair], strict=True):
            torch.testing.assert_close(leaf.detach(), p, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="the state of dpsgd"):
        DpSgd().load_state_dict({"importance": torch.zeros(1)})


def test_ffa_leaves_lora_a_and_projected_stays_in_the_subspace():
    w = weights()
    rule = FfaLora()
    moved = rule.update(rule.start(w), rule.contributions(w, grads(1)), 0.1, 0.01)
    assert all(torch.equal(moved[n][0], w[n][0]) for n in w)
    assert all(not torch.equal(moved[n][1], w[n][1]) for n in w)

    rng = torch.Generator().manual_seed(3)
    public = {n: (a, torch.randn(9, *b.shape[1:], generator=rng)) for n, (a, b) in w.items()}
    subspace = PublicSubspace.of(public, 5)
    gram = subspace.vectors @ subspace.vectors.T
    torch.testing.assert_close(gram, torch.eye(5), rtol=0, atol=1e-5)
    rows = torch.cat([b.flatten(1) for _, b in public.values()], 1)
    leading = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:5]
    overlap = torch.linalg.svdvals(leading @ subspace.vectors.T)
    torch.testing.assert_close(overlap, torch.ones(5), rtol=0, atol=1e-4)
    projected = Projected(subspace, Optimizer(kind="sgd"))
    g = grads(2)
    step = projected.contributions(w, g)["coordinates"][0].sum(0, keepdim=True)
    after = projected.update(projected.start(w), {"coordinates": (step, step[:, :0])}, 0.1, 1.0)
    change = torch.cat([(after[n][1] - w[n][1]).flatten(1) for n in w], 1)
    wanted = -torch.cat([p[1].sum(0, keepdim=True).flatten(1) for p in g.values()], 1)
    torch.testing.assert_close(
        change, wanted @ subspace.vectors.T @ subspace.vectors, rtol=1e-4, atol=1e-5
    )
    assert len(PublicSubspace.of(public, 100).vectors) == 8  # nine adapters differ in eight ways
    with pytest.raises(UsageError, match="differ"):
        PublicSubspace.of({n: (a, b[:1]) for n, (a, b) in public.items()}, 2)


def test_an_empty_batch_is_noise_alone_of_the_right_size():
    family = tiny_family()
    config = FitConfig(size=10, expected_batch=5, clip_norm=0.2)
    step = PrivateStep(
        family=family, rule=DpSgd(), config=config, noise_multiplier=3.0, pace=Pace(microbatch=2)
    )
    assert step.noise_std == pytest.approx(3.0 * 0.2 / 5)
    nobody = Units(torch.zeros(0, 1, 28, 28), [])
    w = {"x": (torch.zeros(1, 200, 50), torch.zeros(1, 200, 200))}
    mean = step(nobody, w)
    flat = torch.cat([p.flatten() for p in mean["x"]]).double().numpy()
    assert stats.kstest(flat / step.noise_std, "norm").pvalue > SURE
    grid = 3.0 * 0.2 * 2.0**-16 / 5
    np.testing.assert_allclose(flat / grid, np.round(flat / grid), atol=0.05)


def test_a_step_on_everybody_is_the_clipped_mean_over_q_n():
    class Silence:
        def __call__(self, *shape):
            return torch.zeros(*shape, dtype=torch.float64)

    from hyperdp.lora import describe_sites
    from hyperdp.private.finetune import fresh_adapter

    family = tiny_family()
    sites = describe_sites(family.model, family.sites()[:4])
    fresh = fresh_adapter(sites, 2, torch.Generator())
    w = {n: (a.detach(), b.detach() + 0.1) for n, (a, b) in fresh.items()}
    units = Units(torch.rand(5, 1, 28, 28), [[i] for i in range(5)])
    config = FitConfig(size=4, expected_batch=4, clip_norm=1e-6)  # all of five are clipped
    step = PrivateStep(
        family=family, rule=DpSgd(), config=config, noise_multiplier=1.0,
        pace=Pace(microbatch=2), normal=Silence(),
    )  # fmt: skip
    mean = step(units, w)
    norm = math.sqrt(sum(float(p.double().square().sum()) for pair in mean.values() for p in pair))
    assert 0 < norm <= 5 * 1e-6 / 4 * (1 + 1e-3)
