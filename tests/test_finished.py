"""The last check of a fit: quiet adapters pass, and what does not survive saving does not."""

from __future__ import annotations

import pytest
import torch

from hyperdp.errors import VerificationError
from hyperdp.lora import describe_sites
from hyperdp.private.finetune import fresh_adapter
from hyperdp.private.learners import finished
from tests.worlds import tiny_family


def adapter(family, size: float):
    rng = torch.Generator().manual_seed(0)
    fresh = fresh_adapter(describe_sites(family.model, family.sites()), 2, rng)
    return {
        name: (a.detach(), torch.randn(b.shape, generator=rng) * size)
        for name, (a, b) in fresh.items()
    }


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_an_adapter_passes_however_quiet_it_is(size):
    family = tiny_family()
    files = finished.saved_adapter(family, adapter(family, size), base_name="tiny")
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_one_that_does_something_else_when_loaded_is_refused(size, monkeypatch):
    family = tiny_family()
    monkeypatch.setattr(finished, "attach_peft", lambda model, folder: model)  # loads nothing
    with pytest.raises(VerificationError, match="another effect"):
        finished.saved_adapter(family, adapter(family, size), base_name="tiny")
    with pytest.raises(VerificationError, match="another effect"):
        finished.saved_adapter(family, adapter(family, 0.0), base_name="tiny")
