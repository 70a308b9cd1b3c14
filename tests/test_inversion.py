"""Conditions found record by record: each stands alone, explains its record, and is released."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.eval.study import release_once
from hyperdp.ledger import Ledger
from hyperdp.private.embed import check_independence, embed_batch, embedding_here
from hyperdp.private.inversion import InversionBundle, InversionConfig, conditioned
from hyperdp.private.records import Record
from hyperdp.private.release import release
from hyperdp.verification import verify
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle

CONFIG = InversionConfig(steps=3, draws=2, lr=0.5, clip_norm=2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def inverse(bundle):
    return InversionBundle.of(bundle, CONFIG)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_condition_depends_on_its_own_record_alone(inverse):
    check_independence(inverse)
    assert inverse.config.embed_dim == 32  # four times the first width of the tiny base


def test_batches_of_several_threads_do_not_enter_each_others_conditions(inverse, two_threads):
    batches = images(256).numpy().reshape(4, 64, 1, 28, 28)
    alone = [embed_batch(inverse.encoder, batch) for batch in batches]
    with embedding_here(inverse.encoder) as embed:
        together = list(embed(batches))
    np.testing.assert_array_equal(together, alone)
    copied = copy.deepcopy(inverse.encoder)  # as other processes do: its hook asks with its own
    np.testing.assert_array_equal(embed_batch(copied, batches[0]), alone[0])


def test_a_condition_explains_its_own_record_better_than_none_or_anothers(bundle, inverse):
    records = torch.stack([torch.full((1, 28, 28), -0.9), torch.full((1, 28, 28), 0.9)])
    found = torch.from_numpy(embed_batch(inverse.encoder, records.numpy()))
    encoder = inverse.encoder

    def losses(condition: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), conditioned(bundle.base.model, condition.repeat_interleave(2, 0)):
            return bundle.base.loss_at(
                records.repeat_interleave(2, 0), encoder.times.repeat(2),
                encoder.noise.repeat(2, 1, 1, 1),
            ).view(2, 2).mean(1)  # fmt: skip

    own = losses(found)
    assert (own < losses(torch.zeros_like(found))).all()
    assert (own < losses(found.flip(0))).all()


def test_a_condition_is_gone_after_its_context(bundle):
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([300.0, 900.0])
    with torch.no_grad():
        plain = bundle.base.model(x, t).sample
        with conditioned(bundle.base.model, torch.ones(32)):
            moved = bundle.base.model(x, t).sample
        with conditioned(bundle.base.model, None):
            assert torch.equal(bundle.base.model(x, t).sample, plain)
        with conditioned(bundle.base.model, torch.zeros(32)):
            assert torch.equal(bundle.base.model(x, t).sample, plain)
        assert not torch.allclose(moved, plain)
        assert torch.equal(bundle.base.model(x, t).sample, plain)


def test_its_release_verifies_and_is_the_clipped_mean(bundle, inverse, tmp_path):
    records = [Record(image=image) for image in images(30).numpy()]
    loud = PrivacyBudget(epsilon=400.0, delta=1e-6)
    made = release(
        records, bundle=inverse, budget=loud, ledger=Ledger(tmp_path / "ledger.db"),
        out=tmp_path / "release", dataset="some scans",
    )  # fmt: skip
    verify(tmp_path / "release", ledger=tmp_path / "ledger.db")
    embedded = embed_batch(inverse.encoder, images(30).numpy())
    norms = np.linalg.norm(embedded, axis=1, keepdims=True)
    expected = (embedded * np.minimum(1, CONFIG.clip_norm / norms)).mean(0)
    error = np.abs(made.mean()[0].numpy() - expected).max()
    assert error < 6 * float(made.mean_noise_std()[0]) + 0.01 * CONFIG.clip_norm
    assert made.certificate.bundle_hash == inverse.hash != bundle.hash
    other = InversionBundle.of(bundle, InversionConfig(steps=2))
    assert other.hash != inverse.hash


def test_a_bench_release_takes_it_like_any_bundle(inverse):
    made = release_once(inverse, images(5), PrivacyBudget(epsilon=1.0, delta=1e-5))
    assert made.mean().shape == (1, 32)


def test_bad_settings_and_bases_without_time_are_refused():
    with pytest.raises(UsageError, match="steps >= 1"):
        InversionConfig(steps=0)
    from hyperdp.private.inversion import condition_dim

    with pytest.raises(UsageError, match="time_embedding"):
        condition_dim(torch.nn.Linear(2, 2))
