"""The guard's benchmark: its noise is the mechanism's, its sets what they say, and it resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.guard_bench import (
    PUBLIC,
    GuardBenchConfig,
    photographs,
    released,
    run_guard,
    stored_rows,
)
from hyperdp.eval.private_sets import FASHION_MNIST
from hyperdp.mechanism import MechanismSpec
from hyperdp.plan import noise_std_of_mean
from tests.guards import gaussian_guard
from tests.worlds import tiny_bundle


def draw_task(records: int, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(records, 1, 28, 28, generator=rng) * 2 - 1


def test_noise_is_that_of_the_mechanism_on_sum_and_count(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    k, count = bundle.config.embed_dim, 4000
    budget = PrivacyBudget(epsilon=1.0, delta=1e-5)
    rng, zero = np.random.default_rng(0), np.zeros(k)
    drawn = [released(zero, count, bundle, budget, rng) for _ in range(400)]
    spec = MechanismSpec(embedding_dim=k, clip_norm=bundle.config.clip_norm)
    wanted = noise_std_of_mean(spec, budget, count)
    z = np.concatenate([found[0] for found in drawn])
    assert z.std() == pytest.approx(wanted, rel=5 / np.sqrt(2 * len(z)))
    units = np.array([found[2] for found in drawn])
    share = wanted * count / (bundle.config.clip_norm / 4)
    assert units.std() == pytest.approx(share, rel=5 / np.sqrt(2 * len(units)))
    assert units.mean() == pytest.approx(count, abs=5 * share / np.sqrt(len(units)))


def test_photographs_are_grey_crops_of_several_pictures() -> None:
    crops = photographs(8, torch.Generator().manual_seed(0))
    assert crops.shape == (8, 1, 28, 28)
    assert crops.abs().max() <= 1 and crops.flatten(1).std(1).min() > 0
    assert len({round(float(c.mean()), 4) for c in crops}) == 8


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed (make fonts)"
)
def test_every_cell_is_measured_once_and_needs_a_guard(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    config = GuardBenchConfig(n=(64,), epsilon=(1.0, 8.0), tasks=4, records=12, pool=80, draws=3)
    out = tmp_path / "guard.jsonl"
    with pytest.raises(UsageError, match="--no-table"):
        run_guard(config, str(bundle.path), draw_task, out)
    gaussian_guard(load_bundle(bundle.path).hash).save(bundle.path)
    rows = run_guard(config, str(bundle.path), draw_task, out)
    assert len(rows) == 4 * 2 and {r.private_set for r in rows} >= {PUBLIC, "noise"}
    assert all(0 <= r.value <= 1 for r in rows)
    told: list[str] = []
    assert run_guard(config, str(bundle.path), draw_task, out, progress=told.append) == rows
    assert told == []
    assert stored_rows(str(bundle.path), out) == rows
