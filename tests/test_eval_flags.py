"""Planted memorisation and planted collapse are raised; healthy sets pass as often as promised."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from hyperdp.errors import UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.flags import flags
from hyperdp.eval.metrics.conditioning import conditioning
from hyperdp.eval.metrics.memorisation import memorisation

DIM = 16


def draw(count, seed, *, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return Features(extractor="toy", values=torch.randn(count, DIM, generator=generator) + shift)


def repeats(train, records, count, seed, *, noise=0.02):
    """The first few records over and over, with tiny noise: what an overfitted adapter draws."""
    generator = torch.Generator().manual_seed(seed)
    picked = train.values[:records].repeat(count // records + 1, 1)[:count]
    values = picked + noise * torch.randn(picked.shape, generator=generator)
    return Features(extractor="toy", values=values)


def raised(found):
    return {flag.name for flag in found.flags if flag.raised}


def test_a_healthy_set_raises_nothing():
    found = flags(
        draw(300, 1),
        train=draw(200, 2),
        held_out=draw(200, 3),
        controls={"ρ(another task)": draw(300, 4, shift=0.3)},
    )
    assert raised(found) == set()
    assert len(found.flags) == 2
    assert found.memorisation.share == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("n", [8, 128, 500])
def test_planted_memorisation_is_raised(n):
    """Eight records repeated, out of 8, 128 or 500 private ones."""
    train = draw(n, 5)
    found = flags(repeats(train, 8, 400, 6), train=train, held_out=draw(max(n, 64), 7))
    assert raised(found) == {"memorisation"}
    memory = found.memorisation
    assert memory.share == 1.0
    assert {pair.train for pair in memory.pairs} == set(range(8))
    for pair in memory.pairs:
        assert pair.generated % 8 == pair.train
        assert pair.ratio < 0.1


def test_a_few_copies_among_many_healthy_images_are_raised():
    """Twelve records copied in 60 of 1,000 images: no mean over all images would show it."""
    train = draw(400, 8)
    values = torch.cat([repeats(train, 12, 60, 9).values, draw(940, 10).values])
    found = flags(Features(extractor="toy", values=values), train=train, held_out=draw(400, 11))
    assert raised(found) == {"memorisation"}
    assert found.memorisation.share < 0.6


def test_planted_collapse_is_raised():
    """A generator that ignores z draws from one law, whatever it is given."""
    control = draw(250, 12)
    for ours in (control, draw(250, 13)):
        assert raised(flags(ours, controls={"ρ(another task)": control})) == {"collapse"}


def test_false_alarms_are_as_rare_as_promised():
    """200 healthy sets at level 0.05: more than 20 alarms would have probability 0.0012."""
    assert binom.sf(20, 200, 0.05) < 2e-3
    alarms = 0
    for trial in range(200):
        seeds = range(100 + 3 * trial, 103 + 3 * trial)
        made, train, held = (
            draw(count, seed) for count, seed in zip((60, 40, 40), seeds, strict=True)
        )
        alarms += memorisation(made, train, held, permutations=199).p_value <= 0.05
    assert alarms <= 20


def test_collapse_is_missed_as_rarely_as_promised():
    """Equal laws on both sides: p ≤ 0.05 in one of twenty."""
    missed = sum(
        conditioning(draw(50, 3000 + s), draw(50, 4000 + s), name="c", permutations=199).p_value
        <= 0.05
        for s in range(200)
    )
    assert missed <= 20


def test_unequal_numbers_of_held_out_records_do_not_count_as_memorisation():
    for held in (50, 2000):
        found = memorisation(draw(200, 20), draw(200, 21), draw(held, 22))
        assert found.share == pytest.approx(found.expected_share, abs=0.1)
        assert found.p_value > 0.01
    assert found.held_out == 800


def test_ratios_agree_with_two_plain_searches():
    made, train, held = draw(80, 30), draw(60, 31), draw(50, 32)
    found = memorisation(made, train, held, permutations=99)
    x, y, z = (f.values.double().numpy() for f in (made, train, held))
    near = [np.linalg.norm(x[:, None] - part[None], axis=2).min(1) for part in (y, z)]
    assert found.share == pytest.approx((near[0] < near[1]).mean(), abs=1e-12)
    assert found.ratio == pytest.approx(np.exp(np.log(near[0] / near[1]).mean()), abs=1e-6)
    best = min(found.pairs, key=lambda pair: pair.ratio)
    assert best.ratio == pytest.approx((near[0] / near[1]).min(), abs=1e-6)
    assert len({pair.train for pair in found.pairs}) == len(found.pairs) == 8


def test_records_that_both_sides_share_are_no_evidence():
    train = draw(60, 40)
    found = memorisation(repeats(train, 60, 120, 41), train, train)
    assert (found.share, found.ratio) == (0.5, 1.0)
    assert found.p_value > 0.1


def test_private_records_alone_cannot_be_tested():
    with pytest.raises(UsageError, match="together"):
        flags(draw(9, 1), train=draw(9, 2))
