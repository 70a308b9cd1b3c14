import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hyperdp.bundle import load_bundle
from hyperdp.errors import BundleError
from hyperdp.private.embed import (
    BATCH_SIZE,
    check_independence,
    embed_batch,
    embedding_here,
    weights_hash,
)
from tests.private_world import DIM, SHAPE, TinyBundle, TinyConfig, images, tiny_encoder

BUNDLE = TinyBundle()


@given(st.integers(0, 2**32 - 1))
def test_an_embedding_is_the_same_to_the_bit_under_permutation_and_other_companions(seed):
    rng = np.random.default_rng(seed)
    batch = images(16, seed)
    first = embed_batch(BUNDLE.encoder, batch, batch_size=16)
    order = rng.permutation(16)
    np.testing.assert_array_equal(
        first[order], embed_batch(BUNDLE.encoder, batch[order], batch_size=16)
    )
    kept = rng.integers(1, 16)
    others = batch.copy()
    others[kept:] = rng.uniform(-9, 9, others[kept:].shape)
    np.testing.assert_array_equal(
        first[:kept], embed_batch(BUNDLE.encoder, others, batch_size=16)[:kept]
    )
    np.testing.assert_array_equal(
        first[:kept], embed_batch(BUNDLE.encoder, batch[:kept], batch_size=16)
    )


CHILD = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from tests.private_world import tiny_encoder, images
from hyperdp.private.embed import embed_batch
import numpy as np
batch, encoder = images(64), tiny_encoder()
first = embed_batch(encoder, batch)
order = np.random.default_rng(0).permutation(64)
assert np.array_equal(first[order], embed_batch(encoder, batch[order]))
assert np.array_equal(first[:9], embed_batch(encoder, batch[:9]))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_independence_holds_with_one_and_two_threads(threads):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    subprocess.run([sys.executable, "-c", CHILD, threads], check=True, env=environment)


@pytest.mark.parametrize("encoder", ["tiny", "glyphs"])
def test_threads_change_nothing_but_the_time(encoder):
    """Kernels divide sums among their threads; on this network they do round by it."""
    bundle = TinyBundle() if encoder == "tiny" else load_bundle("glyphs")
    shape = (1000, *bundle.config.image_shape)
    records = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
    batches = [records[i : i + BATCH_SIZE] for i in range(0, len(records), BATCH_SIZE)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with embedding_here(bundle.encoder) as embed:
                assert torch.get_num_threads() == 1
                found.append(np.concatenate(list(embed(iter(batches)))))
            found.append(np.concatenate([embed_batch(bundle.encoder, b) for b in batches]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0].shape == (1000, bundle.config.embed_dim)
    assert all(np.array_equal(found[0], other) for other in found)


def test_an_error_in_a_thread_or_a_reader_comes_out_and_leaves_the_threads_as_they_were():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("from the encoder")

    def reader():
        yield images(4)
        raise RuntimeError("from the reader")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for encoder, batches, place in (
            (Failing(), [images(4)] * 9, "encoder"),
            (BUNDLE.encoder, reader(), "reader"),
        ):
            with pytest.raises(RuntimeError, match=place), embedding_here(encoder) as embed:
                list(embed(batches))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("encoder", ["tiny", "glyphs"])
def test_an_embedding_is_the_same_to_the_bit_on_a_gpu(encoder):
    bundle = TinyBundle() if encoder == "tiny" else load_bundle("glyphs")
    model = bundle.encoder.cuda()
    check_independence(bundle)
    rng = np.random.default_rng(0)
    shape = (BATCH_SIZE, *bundle.config.image_shape)
    batch = rng.uniform(-1, 1, shape).astype(np.float32)
    first = embed_batch(model, batch)
    for kept in (1, 9, 63):
        order = rng.permutation(BATCH_SIZE)
        np.testing.assert_array_equal(first[order], embed_batch(model, batch[order]))
        others = batch.copy()
        others[kept:] = rng.uniform(-9, 9, others[kept:].shape)
        for companions in (others, batch[:kept]):
            np.testing.assert_array_equal(first[:kept], embed_batch(model, companions)[:kept])


def test_the_encoder_sees_one_shape_eval_mode_and_no_gradient():
    seen = []

    class Probe(nn.Module):
        def forward(self, x):
            seen.append((tuple(x.shape), self.training, torch.is_grad_enabled()))
            return x.flatten(1)[:, :DIM]

    for n in (4, 3, 1):
        embed_batch(Probe(), images(n), batch_size=4)
    assert seen == [((4, *SHAPE), False, False)] * 3


def test_the_encoder_sees_memory_aligned_alike_whatever_came_before():
    """Kernels may round by alignment, and numpy's own depends on what was allocated before."""
    seen = set()

    class Probe(nn.Module):
        def forward(self, x):
            seen.add(x.data_ptr() % 64)
            return x.flatten(1)[:, :DIM]

    probe, kept = Probe(), []
    for n in range(200):
        kept.append(bytes(n * 17))
        embed_batch(probe, images(3), batch_size=4)
    assert seen == {0}


class MeanSubtracting(nn.Module):
    """What normalisation over the batch does."""

    def forward(self, x):
        x = x.flatten(1)[:, :DIM]
        return x - x.mean(0)


class AlwaysTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, x):
        self.norm.train()
        return self.norm(x.flatten(1)[:, :DIM])


@pytest.mark.parametrize("encoder", [MeanSubtracting(), AlwaysTraining()])
def test_an_encoder_that_mixes_records_is_refused(encoder):
    with pytest.raises(BundleError, match="its own record alone"):
        check_independence(TinyBundle(encoder=encoder))


def test_an_encoder_that_only_mixes_what_is_not_finite_is_refused():
    class Spreading(nn.Module):
        def forward(self, x):
            x = x.flatten(1)[:, :DIM]
            return torch.where(x.isnan().any(), torch.zeros_like(x), x)

    with pytest.raises(BundleError, match="its own record alone"):
        check_independence(TinyBundle(encoder=Spreading()))


class Counting(nn.Module):
    """Another function from its seventh batch on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1)[:, :DIM] + float(self.calls > 6)


class Saturating(nn.Module):
    """Mixes records only where one of them is white."""

    def forward(self, x):
        flat = x.flatten(1)[:, :DIM]
        return flat + (flat >= 1).all(1).any().float()


@pytest.mark.parametrize("encoder", [Counting(), Saturating()])
def test_an_encoder_that_mixes_at_extremes_or_changes_with_time_is_refused(encoder):
    with pytest.raises(BundleError, match="its own record alone"):
        check_independence(TinyBundle(encoder=encoder))


class Sharing(nn.Module):
    """Keeps what it is asked where another thread's call finds it."""

    def forward(self, x):
        self.seen = x
        time.sleep(0.05)
        return self.seen.flatten(1)[:, :DIM]


def test_an_encoder_whose_calls_share_a_state_is_refused(two_threads):
    with pytest.raises(BundleError, match="another thread's"):
        check_independence(TinyBundle(encoder=Sharing()))


def test_the_encoder_sees_values_in_range_and_nan_alone():
    wild = images(4) * 100
    wild[0, 0, 0, 0], wild[1, 0, 0, 0] = np.nan, np.inf
    tame = embed_batch(BUNDLE.encoder, np.clip(wild, -1, 1))
    np.testing.assert_array_equal(embed_batch(BUNDLE.encoder, wild), tame)
    assert np.isnan(tame[0]).all()
    assert np.isfinite(tame[1:]).all()


def test_sound_encoders_pass_and_misfits_do_not():
    check_independence(BUNDLE)
    with pytest.raises(BundleError, match="embeddings"):
        check_independence(TinyBundle(config=TinyConfig(embed_dim=DIM + 1)))


def test_weights_hash_follows_every_weight():
    encoder = tiny_encoder()
    before = weights_hash(encoder)
    assert before == weights_hash(tiny_encoder())
    with torch.no_grad():
        encoder[0].weight[0, 0, 0, 0] += 1e-7
    assert weights_hash(encoder) != before
    assert weights_hash(None) == ""
