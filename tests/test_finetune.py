"""The non-private reference: it learns its records, and leaves the base as it was."""

from __future__ import annotations

import pytest
import torch

from hyperdp.errors import UsageError
from hyperdp.lora import adapters, describe_sites
from hyperdp.private.finetune import (
    DivergedError,
    FinetuneConfig,
    finetune_lora,
    fresh_adapter,
)
from tests.worlds import tiny_family


def test_it_lowers_the_loss_of_its_records_and_leaves_the_base():
    family = tiny_family()
    sites = describe_sites(family.model, family.sites())
    before = {k: v.clone() for k, v in family.model.state_dict().items()}
    images = torch.full((16, 1, 28, 28), -0.5)
    config = FinetuneConfig(rank=2, steps=40, batch_size=8, lr=1e-2, ema=0.9, bf16=False)
    seen = []
    weights = finetune_lora(
        family, sites, images, config, progress=lambda done, total: seen.append((done, total))
    )

    def loss(w) -> float:
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad(), adapters(family.model, w):
            return float(family.loss(images, rng).mean())

    assert loss(weights) < 0.8 * loss({})
    assert seen[-1] == (40, 40)
    assert all(torch.equal(v, before[k]) for k, v in family.model.state_dict().items())


def test_a_fresh_adapter_does_nothing_and_repeats_itself():
    family = tiny_family()
    sites = describe_sites(family.model, family.sites())
    weights = fresh_adapter(sites, 2, torch.Generator().manual_seed(0))
    again = fresh_adapter(sites, 2, torch.Generator().manual_seed(0))
    assert all(torch.equal(weights[n][0], again[n][0]) for n in weights)
    x, t = torch.randn(1, 1, 28, 28), torch.tensor([500.0])
    with torch.no_grad():
        plain = family.model(x, t).sample
        with adapters(family.model, weights):
            assert torch.equal(family.model(x, t).sample, plain)


def test_no_records_are_refused():
    family = tiny_family()
    with pytest.raises(UsageError, match="at least one record"):
        finetune_lora(family, [], torch.zeros(0, 1, 28, 28), FinetuneConfig())


def test_a_rate_at_which_it_diverges_is_halved_and_the_run_is_that_of_the_lower_rate():
    family = tiny_family()
    sites = describe_sites(family.model, family.sites())
    images = torch.full((16, 1, 28, 28), -0.5)

    def config(lr: float) -> FinetuneConfig:
        return FinetuneConfig(rank=2, steps=8, batch_size=8, lr=lr, ema=0.5, bf16=False)

    steps = []
    found = finetune_lora(
        family, sites, images, config(2.0), progress=lambda done, _: steps.append(done)
    )
    tries = steps.count(1)
    assert tries > 1, "at such a rate it diverges"
    alone = finetune_lora(family, sites, images, config(2.0 * 0.5 ** (tries - 1)))
    assert all(torch.equal(found[n][1], alone[n][1]) for n in found)
    with pytest.raises(DivergedError, match="1e\\+06"):
        finetune_lora(family, sites, images, config(1e6))
