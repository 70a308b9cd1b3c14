"""Noisy votes: their sensitivity, their noise, their composition, and that a vote stands alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hyperdp.accounting import pld_epsilon
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.mechanism import STEPS_PER_UNIT, MechanismSpec, add_discrete_gaussian
from hyperdp.private.voters import Voters
from hyperdp.subsampled import subsampled_epsilon
from hyperdp.votes import VoteSpec, VoteSum, noisy_votes

BUDGET = PrivacyBudget(epsilon=1.0, delta=1e-5)


def histogram(units, spec: VoteSpec) -> np.ndarray:
    """int64 [N] of units that are lists of candidates, by the code."""
    total = VoteSum(spec)
    for chosen in units:
        total.add(np.array(chosen, dtype=np.int64))
    return total._votes


UNITS = [list(c) for r in (1, 2, 3) for c in itertools.product(range(3), repeat=r)]


@pytest.mark.parametrize(("adjacency", "square"), [("add-remove", 1), ("replace-one", 2)])
def test_sensitivity_by_listing_all_neighbours(adjacency, square):
    spec = VoteSpec(candidates=3, iterations=1, adjacency=adjacency)
    others = [[0], [1, 2], [2, 2, 1]]
    without = histogram(others, spec)
    worst = 0
    if adjacency == "add-remove":
        pairs = [(histogram([*others, unit], spec), without) for unit in UNITS]
    else:
        whole = [histogram([*others, unit], spec) for unit in UNITS]
        pairs = list(itertools.combinations(whole, 2))
    for one, other in pairs:
        worst = max(worst, int(((one - other) ** 2).sum()))
    assert worst == spec.squared_sensitivity  # attained, so no noise is wasted
    assert spec.sensitivity == pytest.approx(math.sqrt(square), rel=1e-15)


def test_the_shares_of_a_user_are_within_one_vote_on_the_integers():
    rng = np.random.default_rng(0)
    spec = VoteSpec(candidates=7, iterations=1)
    for _ in range(200):
        votes = histogram([rng.integers(7, size=rng.integers(1, 40))], spec)
        assert votes.min() >= 0
        assert STEPS_PER_UNIT - 7 <= votes.sum() <= STEPS_PER_UNIT


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.2, 1), (1.0, 6), (8.0, 25)])
def test_all_iterations_together_cost_the_budget_by_two_other_methods(
    epsilon, iterations, adjacency
):
    budget = PrivacyBudget(epsilon=epsilon, delta=1e-5, adjacency=adjacency)
    spec = VoteSpec(candidates=50, iterations=iterations, adjacency=adjacency)
    made = spec.calibrate(budget)
    assert made.sigma == pytest.approx(
        made.noise_multiplier * spec.sensitivity * STEPS_PER_UNIT, rel=1e-12
    )
    assert made.delta_gaussian + made.delta_discretisation <= budget.delta
    convolved = subsampled_epsilon(made.noise_multiplier, 1.0, iterations, made.delta_gaussian)
    assert convolved == pytest.approx(epsilon, rel=2e-3)
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent

    event = SelfComposedDpEvent(GaussianDpEvent(made.noise_multiplier), iterations)
    assert epsilon - 1e-5 <= pld_epsilon([event], made.delta_gaussian) <= epsilon + 1e-6


def test_one_histogram_of_one_iteration_has_the_noise_of_a_release_of_that_sensitivity():
    votes = VoteSpec(candidates=9, iterations=1).calibrate(BUDGET)
    release = MechanismSpec(embedding_dim=9, clip_norm=1.0).calibrate(BUDGET)
    assert votes.noise_multiplier == pytest.approx(release.noise_multiplier, rel=1e-9)
    assert release.sigma / votes.sigma == pytest.approx(math.sqrt(17 / 16), rel=1e-6)


def test_the_noise_has_the_std_that_is_stated_and_is_fresh():
    spec = VoteSpec(candidates=4000, iterations=4)
    total = VoteSum(spec)
    sigma = spec.calibrate(BUDGET).sigma
    first, second = noisy_votes(total, BUDGET), noisy_votes(total, BUDGET)
    assert not np.array_equal(first, second)
    for noisy in (first, second):
        # std of a std over 4,000 normals is 1.1 %; five of them.
        assert noisy.std() == pytest.approx(sigma, rel=0.056)
        assert abs(noisy.mean()) < 5 * sigma / math.sqrt(4000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(4000)
    values = np.array([5, -3], dtype=np.int64) * 2**40
    assert np.array_equal(add_discrete_gaussian(values, 1e-3), values)


def test_what_is_private_does_not_show():
    total = VoteSum(VoteSpec(candidates=3, iterations=1))
    total.add(np.array([2]))
    assert "not shown" in repr(total)
    assert not hasattr(total, "__dict__")
    assert repr(Voters(np.ones((2, 2)), [np.array([0])])) == "Voters(private)"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"candidates": 0}, "candidates=0"),
        ({"iterations": 10**5}, "iterations=100000"),
        ({"adjacency": "swap"}, "adjacency='swap'"),
    ],
)
def test_bad_numbers_are_refused(changes, match):
    with pytest.raises(UsageError, match=match):
        VoteSpec(**{"candidates": 3, "iterations": 2, **changes})


def test_a_budget_of_another_adjacency_is_refused():
    with pytest.raises(UsageError, match="adjacency"):
        VoteSpec(candidates=3, iterations=1, adjacency="replace-one").calibrate(BUDGET)


def lattice(count: int, dim: int, seed: int) -> np.ndarray:
    """Whole numbers in float64 [count, dim], rows of norm just below 2^24, the largest."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    rows *= (2**24 - dim) / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.trunc(rows)


def test_every_vote_is_the_nearest_candidate_in_whole_numbers():
    voters, candidates = lattice(300, 64, 0), lattice(40, 64, 1)
    spec = VoteSpec(candidates=40, iterations=1)
    found = Voters(voters, [np.array([i]) for i in range(300)]).vote(candidates, spec)
    exact, whole = (
        candidates.astype(np.int64).astype(object),
        voters.astype(np.int64).astype(object),
    )
    nearest = [int(np.argmin(((exact - row) ** 2).sum(axis=1))) for row in whole]
    assert np.array_equal(found._votes, np.bincount(nearest, minlength=40) * STEPS_PER_UNIT)


def test_companions_and_order_change_no_vote():
    """A removed record takes its own vote with it and no other, also where it is a near tie."""
    voters, candidates = lattice(1500, 64, 2), lattice(8, 64, 3)
    candidates[1] = candidates[0]
    candidates[1, 0] += 1  # one lattice step away: any rounding would tip votes between the two
    spec = VoteSpec(candidates=8, iterations=1)
    whole = Voters(voters, [np.array([i]) for i in range(1500)]).vote(candidates, spec)._votes
    rng = np.random.default_rng(4)
    for _ in range(10):
        kept = rng.permutation(1500)[: rng.integers(1, 1500)]
        left = np.setdiff1d(np.arange(1500), kept)
        parts = [
            Voters(voters[rows], [np.array([i]) for i in range(len(rows))]).vote(candidates, spec)
            for rows in (kept, left)
        ]
        assert np.array_equal(parts[0]._votes + parts[1]._votes, whole)


def test_nobody_votes_for_nothing():
    spec = VoteSpec(candidates=8, iterations=1)
    empty = Voters(np.zeros((0, 64)), []).vote(lattice(8, 64, 3), spec)
    assert not empty._votes.any()
