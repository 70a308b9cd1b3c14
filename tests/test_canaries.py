"""Ranks of secrets: uniform where nothing was learnt, and found where a model has them by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from hyperdp.eval.canaries import CONFIDENCE, Ranks, make_canaries, rank_canaries
from hyperdp.eval.text_study import document_losses, to_tokens
from hyperdp.text_bundle import TextBundle
from tests.text_world import text_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    # A tokenizer of TEXTS cuts a secret into single letters: 24 tokens would not hold one.
    return text_bundle(tmp_path_factory.mktemp("canaries"), length=64)


def test_secrets_are_all_different_and_drawn_alike():
    made = make_canaries(10, 500, seed=1)
    assert len(set(made.planted + made.others)) == 510
    assert {len(text) for text in made.planted + made.others} == {len(made.planted[0])}
    assert make_canaries(10, 500, seed=2).planted != made.planted


def test_secrets_that_were_never_planted_rank_uniformly(bundle: TextBundle):
    ranks = [
        rank_canaries(bundle, {}, make_canaries(10, 199, seed=seed)).ranks for seed in range(12)
    ]
    # One test at 0.1 %: a bias of ranks by a tenth would fail it.
    assert kstest(np.ravel(ranks) / 200, "uniform").pvalue > 0.001


def test_a_model_that_has_them_by_heart_is_found_out(tmp_path: Path):
    own = text_bundle(tmp_path, length=64)
    secrets = make_canaries(3, 400, seed=0)
    tokens = to_tokens(own, secrets.planted)
    model = own.base.model.requires_grad_(True)  # LoRA alone cannot mend a random head
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        own.base.loss(tokens).mean().backward()
        optimizer.step()
    ranks = rank_canaries(own, {}, secrets)
    assert ranks.found == 3 and ranks.smallest_p <= 1 - CONFIDENCE


def test_ranks_are_counted_by_hand(bundle: TextBundle):
    secrets = make_canaries(2, 30, seed=4)
    losses = [
        float(document_losses(bundle, {}, to_tokens(bundle, [text])) * ((t >= 0).sum() - 1))
        for text in [*secrets.planted, *secrets.others]
        for t in to_tokens(bundle, [text])
    ]
    expected = [1 + sum(other <= mine for other in losses[2:]) for mine in losses[:2]]
    found = rank_canaries(bundle, {}, secrets).ranks
    assert np.abs(np.subtract(found, expected)).max() <= 1  # but for rounding between neighbours


def test_exposure_and_the_bound_over_all_of_them():
    ranks = Ranks(ranks=[1, 1000], candidates=4095)
    assert ranks.exposures[0] == 12.0  # log2 of 4,096
    assert ranks.found == 1 and ranks.smallest_p == 2 / 4096
    assert Ranks(ranks=[4096, 2048], candidates=4095).found == 0
