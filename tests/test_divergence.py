"""MAUVE against ten lines of plain arithmetic, and where its value is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from hyperdp.errors import DataError
from hyperdp.eval.metrics.divergence import frontier_area, mauve

DIM = 6


def normal(count: int, seed: int, shift: float = 0.0):
    return np.random.default_rng(seed).normal(size=(count, DIM)) + shift


def area_by_hand(p, q):
    """The frontier of Pillutla et al. 2021, equation 1, one point at a time; area by trapezia."""
    points = [(1.0, 0.0)]
    for i in range(25):
        share = 1e-6 + (1 - 2e-6) * i / 24
        kl_p = kl_q = 0.0
        for a, b in zip(p, q, strict=True):
            r = share * a + (1 - share) * b
            kl_p += a * math.log(a / r) if a else 0.0
            kl_q += b * math.log(b / r) if b else 0.0
        points.append((math.exp(-5 * kl_q), math.exp(-5 * kl_p)))
    points.append((0.0, 1.0))
    return sum((x0 - x1) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


counts = st.lists(st.integers(0, 30), min_size=2, max_size=12)


@given(counts, st.data())
def test_the_area_is_that_of_the_frontier_drawn_by_hand(one, data):
    other = data.draw(st.lists(st.integers(0, 30), min_size=len(one), max_size=len(one)))
    p, q = ((np.array(c) + (np.arange(len(c)) == 0)) / (sum(c) + 1) for c in (one, other))
    found = frontier_area(p, q)
    assert found == pytest.approx(area_by_hand(p, q), abs=1e-9)
    assert found == pytest.approx(frontier_area(q, p), abs=1e-9)
    assert 0 <= found <= 1


def test_the_limits_of_the_area():
    p = np.array([0.2, 0.3, 0.5, 0.0])
    assert frontier_area(p, p) == pytest.approx(1)
    assert frontier_area(p, np.array([0.0, 0.0, 0.0, 1.0])) < 0.01
    nearer = [frontier_area(p, (1 - t) * p + t * np.array([0, 0, 0, 1.0])) for t in (0.1, 0.3, 0.6)]
    assert nearer == sorted(nearer, reverse=True)


def test_one_set_in_two_halves_is_near_1_and_disjoint_sets_near_0():
    whole = normal(4000, 0)
    assert mauve(whole[::2], whole[1::2], cells=10) > 0.95
    assert mauve(whole[::2], normal(2000, 1, 20.0)) < 0.02
    shifted = [mauve(whole[::2], normal(1500, 2, s), cells=40) for s in (0.0, 0.5, 1.5)]
    assert shifted == sorted(shifted, reverse=True) and shifted[2] < 0.5 < shifted[0]
    assert mauve(whole[:300], whole[300:500], seed=3) == mauve(whole[:300], whole[300:500], seed=3)


def test_clusters_that_lie_apart_are_found_as_scikit_learn_finds_them():
    rng = np.random.default_rng(4)
    centres = np.eye(DIM) * 30
    p, q = rng.dirichlet(np.ones(DIM)), rng.dirichlet(np.ones(DIM))
    made, real = (
        centres[rng.choice(DIM, size=400, p=share)] + rng.normal(size=(400, DIM))
        for share in (p, q)
    )
    label = KMeans(DIM, n_init=10, random_state=0).fit_predict(np.concatenate([made, real]))
    shares = [np.bincount(part, minlength=DIM) / 400 for part in (label[:400], label[400:])]
    assert mauve(made, real, cells=DIM) == pytest.approx(area_by_hand(*shares), abs=1e-9)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="same encoder"):
        mauve(normal(30, 0), normal(30, 1)[:, :3])
    with pytest.raises(DataError, match="at least 20"):
        mauve(normal(30, 0), normal(10, 1), cells=20)
    broken = normal(30, 0)
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="finite"):
        mauve(broken, normal(30, 1))
