"""The audit must pass the real mechanism and catch every broken one kept here."""

import json
import math

import numpy as np
import opendp.prelude as dp
import pytest
import torch
from torch import nn

from hyperdp.budget import PrivacyBudget
from hyperdp.eval.audit import audit, bound_epsilon, neighbours, noisy_query
from hyperdp.eval.membership import attack_adapters
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.records import Record
from tests.private_world import DIM, SHAPE, TinyBundle, TinyConfig, records
from tests.worlds import tiny_bundle

ONE = PrivacyBudget(epsilon=1.0, delta=1e-5)
REPLACE = PrivacyBudget(epsilon=1.0, delta=1e-5, adjacency="replace-one")
SPEC = MechanismSpec(embedding_dim=4, clip_norm=1.0)
SURE = 1 - 1e-6  # a sound mechanism fails a test once in a million runs
TRIALS = 4000


def query_with(total: ClippedSum, sigma: float) -> np.ndarray:
    """A release whose noise is not the calibrated one."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    exact = np.concatenate([total._sums.ravel(), total._counts])
    noisy = dp.m.make_gaussian(*space, scale=sigma)(exact.tolist())
    return np.array(noisy) / STEPS_PER_UNIT


def halved(total, budget):
    return query_with(total, total.spec.calibrate(budget).sigma / 2)


def other_adjacency(total, budget):
    spec = MechanismSpec(embedding_dim=total.spec.embedding_dim, clip_norm=total.spec.clip_norm)
    return query_with(total, spec.calibrate(ONE).sigma)


# --- the real code -------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "classes"), [(ONE, 1), (REPLACE, 3)])
def test_the_real_mechanism_passes(budget, classes):
    spec = MechanismSpec(
        embedding_dim=4, clip_norm=1.0, num_classes=classes, adjacency=budget.adjacency
    )
    # Enough trials that the bound is above 0.1 with three standard deviations to spare.
    bound = audit(spec, budget, trials=4 * TRIALS, workers=1, confidence=SURE)
    assert bound.epsilon_gaussian <= 1
    assert bound.epsilon <= 1
    assert bound.epsilon_gaussian > 0.1  # and the attack is no straw man


@pytest.mark.slow
def test_the_bound_is_tight():
    spec = MechanismSpec(embedding_dim=64, clip_norm=1.0)
    assert 0.85 <= audit(spec, ONE, trials=100_000).epsilon_gaussian <= 1


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize("classes", [1, 5])
def test_the_neighbours_attacked_are_the_worst(adjacency, classes):
    spec = MechanismSpec(embedding_dim=3, clip_norm=0.7, num_classes=classes, adjacency=adjacency)
    one, other = neighbours(spec)
    moved = [*(one._sums - other._sums).ravel()]
    if spec.counts_are_private:
        moved += [*(one._counts - other._counts)]
    assert sum(int(x) ** 2 for x in moved) == spec.squared_sensitivity


def test_processes_do_not_share_their_randomness():
    """A random state copied by fork would give both workers the same noise."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        noisy_query(neighbours(SPEC)[0], ONE)
        draws = pool.starmap(noisy_query, [(neighbours(SPEC)[0], ONE)] * 16, chunksize=1)
    assert len({draw.tobytes() for draw in draws}) == 16


# --- broken variants -----------------------------------------------------------------------------


def test_halved_noise_is_caught():
    assert audit(SPEC, ONE, trials=TRIALS, workers=1, release=halved).epsilon_gaussian > 1


def test_the_sensitivity_of_the_other_adjacency_is_caught():
    spec = MechanismSpec(embedding_dim=4, clip_norm=1.0, adjacency="replace-one")
    bound = audit(spec, REPLACE, trials=TRIALS, workers=1, release=other_adjacency)
    assert bound.epsilon_gaussian > 1


def test_a_private_n_as_divisor_is_caught():
    """The sum is noisy enough, but dividing by n shows n in the size of the noise."""
    spec = MechanismSpec(embedding_dim=200, clip_norm=1.0)

    def mean_square(n):
        total = ClippedSum(spec)
        total.add(np.zeros((n, 1, 200)), np.ones((n, 1)))
        draws = (noisy_query(total, ONE)[:-1] / n for _ in range(150))
        return np.array([(draw**2).mean() for draw in draws])

    sigma = spec.calibrate(ONE).sigma / STEPS_PER_UNIT
    threshold = -(sigma**2) * (1 / 2 + 1 / 3) ** 2 / 4
    bound = bound_epsilon(-mean_square(2), -mean_square(3), threshold=threshold, delta=1e-5)
    assert bound.epsilon > 1


def fine_bits(y: np.ndarray) -> np.ndarray:
    """Mironov (2012): near zero, is y too fine to be 1 + something in float64?"""
    return -((np.abs(y) < 0.25) & (y * 2.0**53 % 1 != 0)).astype(float)


def test_float_noise_without_a_lattice_is_caught():
    """σ is as large as it has to be; the low bits give the unit away all the same."""
    rng, sigma = np.random.default_rng(0), SPEC.calibrate(ONE).sigma / STEPS_PER_UNIT
    without, with_unit = (value + sigma * rng.standard_normal(100_000) for value in (0.0, 1.0))
    bound = bound_epsilon(-fine_bits(with_unit), -fine_bits(without), threshold=0.5, delta=1e-5)
    assert bound.epsilon > 1


def test_the_lattice_withstands_the_attack_on_floats():
    spec = MechanismSpec(embedding_dim=1, clip_norm=1.0)
    without, with_unit = ClippedSum(spec), ClippedSum(spec)
    with_unit.add(np.ones((1, 1, 1)), np.ones((1, 1)))
    for total in (without, with_unit):
        y = np.array([noisy_query(total, ONE)[0] for _ in range(1000)])
        assert not fine_bits(y).any()
        assert np.all(y * STEPS_PER_UNIT % 1 == 0)


class BatchMaximum(nn.Module):
    """Every embedding is pushed by the brightest record of its batch."""

    def forward(self, x):
        x = x.flatten(1)[:, :DIM]
        return torch.where(x.amax() >= 1, -torch.ones_like(x), x.abs())


def test_embeddings_that_depend_on_the_batch_are_caught():
    bundle = TinyBundle(encoder=BatchMaximum(), config=TinyConfig())
    spec = MechanismSpec(embedding_dim=DIM, clip_norm=1.0)
    canary = Record(image=np.full(SHAPE, 1.0, np.float32))
    data = [Record(image=r.image * np.float32(0.2)) for r in records(20)]  # the canary stands out
    worlds = [
        aggregate(d, bundle=bundle, spec=spec, unit="record", classes=[])
        for d in (data, [*data, canary])
    ]
    bound = audit(spec, ONE, trials=300, workers=1, worlds=tuple(worlds))
    assert bound.epsilon_gaussian > 1
    assert bound.epsilon > 1


# --- the statistics ------------------------------------------------------------------------------


def test_bounds_cover_the_truth_of_a_gaussian():
    """Scores of a μ = 1 Gaussian mechanism: the bound is below its ε and close to it."""
    from dp_accounting import get_epsilon_gaussian

    rng = np.random.default_rng(0)
    without, with_unit = rng.standard_normal(200_000), 1 + rng.standard_normal(200_000)
    bound = bound_epsilon(without, with_unit, threshold=0.5, delta=1e-5)
    truth = get_epsilon_gaussian(1.0, 1e-5)
    assert 0.95 * truth < bound.epsilon_gaussian < truth
    assert 0 < bound.epsilon < truth


def test_coin_flips_and_perfect_attacks_have_the_bounds_of_clopper_and_pearson():
    coin = np.zeros(100)
    assert bound_epsilon(coin, coin, threshold=0.5, delta=1e-5).epsilon_gaussian == 0
    sure = bound_epsilon(np.zeros(100), np.ones(100), threshold=0.5, delta=0.0)
    assert sure.true_positive_rate == pytest.approx(0.0005 ** (1 / 100))
    assert sure.false_positive_rate == pytest.approx(1 - 0.0005 ** (1 / 100))
    assert sure.epsilon == pytest.approx(
        math.log(sure.true_positive_rate / sure.false_positive_rate)
    )


# --- adapters and the command --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def test_membership_by_loss_stays_below_the_claim(bundle):
    lines = attack_adapters(bundle, ONE, rounds=10, units=8)
    assert [line.target for line in lines] == ["canary", "typical"]
    for line in lines:
        assert 0 <= line.auc <= line.auc_limit + 5 * line.auc_std


def test_membership_by_loss_finds_a_member_where_there_is_hardly_any_noise(bundle):
    """The attack works: at ε = 499 it is (nearly) always right about the canary."""
    loud = PrivacyBudget(epsilon=499, delta=1e-5)
    canary = attack_adapters(bundle, loud, rounds=20, units=1)[0]
    assert abs(canary.auc - 0.5) > 0.3


def test_the_command_reports_its_bound(bundle, capsys):
    from hyperdp.cli._app import run

    words = ["audit", "--bundle", str(bundle.path), "--epsilon", "1", "--trials", "200"]
    assert run([*words, "--workers", "1", "--membership", "5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 <= facts["epsilon_lower_bound"] <= 1
    assert len(facts["membership"]) == 2
    assert run([*words, "--workers", "1", "--membership", "0"]) == 0
    assert "the claim stands" in capsys.readouterr().out
