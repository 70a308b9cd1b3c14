"""The encoder: a function of each record alone, bit for bit at one batch shape; the clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperdp.encoder import clip
from tests.worlds import tiny_encoder


@pytest.mark.parametrize("threads", [1, 2])
def test_bitwise_equal_under_permutation_and_other_companions(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = tiny_encoder()
        torch.manual_seed(0)
        records, others = torch.rand(32, 1, 28, 28) * 2 - 1, torch.rand(32, 1, 28, 28) * 2 - 1
        with torch.no_grad():
            plain = encoder(records)
            order = torch.randperm(32)
            assert torch.equal(encoder(records[order]), plain[order])
            mixed = torch.where((torch.arange(32) % 2 == 0)[:, None, None, None], records, others)
            assert torch.equal(encoder(mixed)[::2], plain[::2])
    finally:
        torch.set_num_threads(before)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(0.01, 10))
def test_clip_bounds_the_norm_and_keeps_the_direction(seed: int, scale: float, bound: float):
    rng = torch.Generator().manual_seed(seed)
    e = torch.randn(7, 5, generator=rng) * scale
    clipped = clip(e, bound)
    assert (clipped.norm(dim=1) <= bound * (1 + 1e-5)).all()
    inside = e.norm(dim=1) <= bound
    assert torch.equal(clipped[inside], e[inside])
    cosine = torch.nn.functional.cosine_similarity(e, clipped, dim=1)
    assert (cosine > 1 - 1e-5).all()


def test_clip_of_zero_is_zero():
    assert torch.equal(clip(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))
