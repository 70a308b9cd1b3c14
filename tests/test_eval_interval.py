"""Intervals: what they rest on by a second way, and how often they hold what they should."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torchmetrics.image.fid import FrechetInceptionDistance

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.fid import _Precomputed, fid, kid
from hyperdp.eval.metrics.frechet import frechet
from hyperdp.eval.metrics.interval import (
    cubic_kernel,
    fid_floor_interval,
    fid_interval,
    kid_floor_interval,
    kid_interval,
    pairwise_mmd,
)

DIM = 8
MIXING = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)) / DIM**0.5


def draw(count, generator, *, shift=0.0, scale=1.0):
    values = torch.randn(count, DIM, generator=generator) @ MIXING * scale + shift
    return Features(extractor="toy", values=values)


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (5, 90), (90, 5), (6, 6), (4, 7)])
def test_frechet_agrees_with_torchmetrics(n, m):
    """Whichever of n, m and D is the least; below D the covariances are singular."""
    a, b = draw(n, rng(1), shift=0.3), draw(m, rng(2), scale=1.4)
    metric = FrechetInceptionDistance(feature=_Precomputed(DIM))
    metric.update(b.values.double(), real=True)
    metric.update(a.values.double(), real=False)
    found = frechet(a.values.double(), b.values.double())
    assert found == pytest.approx(float(metric.compute()), abs=1e-6)
    assert fid(a, b).value == found


def mmd(a, b):
    """Unbiased squared MMD by sums over pairs, numpy alone."""
    a, b = a.values.double().numpy(), b.values.double().numpy()
    kernel = lambda x, y: (x @ y.T / DIM + 1) ** 3  # noqa: E731
    inside = [
        kernel(x, x)[~np.eye(len(x), dtype=bool)].sum() / (len(x) * (len(x) - 1)) for x in (a, b)
    ]
    return sum(inside) - 2 * kernel(a, b).mean()


def test_kid_splits_are_the_pairwise_sums():
    a, b = draw(40, rng(3)), draw(60, rng(4))
    found = kid_floor_interval(a, b, draws=3, confidence=0.5, seed=5)
    pool = torch.cat([a.values, b.values])
    source = np.random.default_rng(5)
    scores = []
    for _ in range(3):
        order = torch.from_numpy(source.permutation(100))
        parts = [Features(extractor="toy", values=pool[o]) for o in (order[:40], order[40:])]
        scores.append(mmd(*parts))
    assert (found.low, found.high) == pytest.approx((min(scores), max(scores)), abs=1e-9)


def test_kid_bootstrap_leaves_out_pairs_of_an_image_with_itself():
    """By hand: resample indices, and average the kernel over pairs of different originals."""
    a, b = draw(30, rng(6), shift=0.5), draw(25, rng(7))
    found = kid_interval(a, b, draws=400, seed=8)
    source = np.random.default_rng(8)
    counts = [source.multinomial(len(x), np.full(len(x), 1 / len(x)), size=400) for x in (a, b)]

    def statistic(u, v):
        index = [np.repeat(np.arange(len(c)), c) for c in (u, v)]
        x, y = (f.values.double().numpy()[i] for f, i in zip((a, b), index, strict=True))
        kernel = lambda p, q: (p @ q.T / DIM + 1) ** 3  # noqa: E731
        inside = [
            kernel(p, p)[i[:, None] != i[None]].mean() for p, i in zip((x, y), index, strict=True)
        ]
        return sum(inside) - 2 * kernel(x, y).mean()

    scores = [statistic(u, v) for u, v in zip(*counts, strict=True)]
    expected = np.quantile(scores, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert kid(a, b, subsets=2, subset_size=25).value in found


def test_intervals_shrink_with_the_sets_and_repeat_themselves():
    widths = []
    for count in (40, 360):
        a, b = draw(count, rng(1), shift=0.5), draw(count, rng(2))
        score = fid(a, b).value
        interval = fid_interval(a, b, value=score)
        assert interval == fid_interval(a, b, value=score)
        assert score in interval
        by_kernel = kid_interval(a, b)
        widths.append((interval.high - interval.low, by_kernel.high - by_kernel.low))
    assert np.array(widths[0]) / np.array(widths[1]) == pytest.approx([3, 3], rel=0.5)


def splits_that_fall_in(draws):
    """Sets split in two once by chance: how many FIDs fall in the floor's 99 % interval."""
    hits = 0
    for trial in range(draws):
        whole = draw(240, rng(9000 + trial))
        order = torch.randperm(240, generator=rng(5000 + trial))
        a, b = whole.select(order[:120]), whole.select(order[120:])
        interval = fid_floor_interval(a, b, confidence=0.99, draws=199, seed=trial)
        hits += fid(a, b).value in interval
    return hits


def test_a_set_split_in_two_falls_in_its_floor_interval():
    """At exact 99 % coverage 27 of 30 or more are right with probability 0.997."""
    assert binom.sf(26, 30, 0.99) > 0.997
    assert splits_that_fall_in(30) >= 27


@pytest.mark.slow
def test_a_set_split_in_two_falls_in_its_floor_interval_95_times_of_100():
    assert splits_that_fall_in(100) >= 95


def test_a_percentile_bootstrap_of_fid_would_not_hold_its_own_score():
    """Why the module goes another way."""
    a, b = draw(120, rng(1)), draw(120, rng(2))
    source = rng(3)
    scores = [
        frechet(*(
            f.values.double()[torch.randint(120, (120,), generator=source)] for f in (a, b)
        ))
        for _ in range(200)
    ]  # fmt: skip
    assert np.quantile(scores, 0.025) > fid(a, b).value


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_fid_intervals_hold_the_expected_score_at_their_sizes(shift):
    """Expected FID by 600 fresh draws; 100 intervals; coverage of at least 88 of them at 95 %.

    If coverage were 0.95, fewer than 88 would have probability 0.002.
    """
    size, source = 90, rng(17)
    mean = np.mean(
        [
            frechet(draw(size, source, shift=shift).values.double(),
                    draw(size, source).values.double())
            for _ in range(600)
        ]
    )  # fmt: skip
    hits = 0
    for trial in range(100):
        a, b = draw(size, source, shift=shift), draw(size, source)
        value = frechet(a.values.double(), b.values.double())
        hits += mean in fid_interval(a, b, value=value, seed=trial)
    assert hits >= 88


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kid_intervals_hold_the_true_distance(shift):
    """The truth by 2,500 images a side, whose error is small beside the intervals' width."""
    source = rng(23)
    pool = torch.cat([draw(2500, source, shift=shift).values, draw(2500, source).values]).double()
    first = (torch.arange(5000) < 2500).double()[None]
    truth = float(pairwise_mmd(cubic_kernel(pool, pool), first))
    hits = sum(
        truth in kid_interval(draw(60, source, shift=shift), draw(60, source), draws=199, seed=s)
        for s in range(100)
    )
    assert hits >= 88


def test_what_cannot_be_had_is_refused():
    a, b = draw(20, rng(1)), draw(20, rng(2))
    with pytest.raises(UsageError, match="at least 39 draws for 95%"):
        fid_floor_interval(a, b, draws=38)
    with pytest.raises(DataError, match="at least 8"):
        fid_interval(a, draw(5, rng(2)), value=1.0)
    other = Features(extractor="other", values=a.values)
    with pytest.raises(DataError, match="same extractor"):
        kid_interval(a, other)
