"""The last check of a fit: quiet adapters pass, and what does not survive saving does not."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hyperdp.adapter_files import ADAPTER_FILES, PIPELINE_FILE
from hyperdp.errors import VerificationError
from hyperdp.families import load_family
from hyperdp.lora import adapters, describe_sites
from hyperdp.private.finetune import fresh_adapter
from hyperdp.private.learners import finished
from tests.pipelines import stable_diffusion_folder
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


def test_an_adapter_of_stable_diffusion_is_one_that_the_stock_pipeline_loads(tmp_path):
    folder = stable_diffusion_folder(tmp_path / "sd")
    family = load_family(folder)
    weights = adapter(family, 0.5)
    files = finished.saved_adapter(family, weights, base_name="tiny")
    assert sorted(files) == [*sorted(ADAPTER_FILES), PIPELINE_FILE]
    (tmp_path / "adapter").mkdir()
    for name, data in files.items():
        (tmp_path / "adapter" / name).write_bytes(data)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path / "adapter")
    assert pipeline.get_active_adapters()
    with adapters(family.model, weights):
        ours = family.response(family.model)
    torch.testing.assert_close(family.response(pipeline.unet), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_one_that_does_something_else_when_loaded_is_refused(size, monkeypatch):
    family = tiny_family()
    monkeypatch.setattr(finished, "attach_peft", lambda model, folder: model)  # loads nothing
    with pytest.raises(VerificationError, match="another effect"):
        finished.saved_adapter(family, adapter(family, size), base_name="tiny")
    with pytest.raises(VerificationError, match="another effect"):
        finished.saved_adapter(family, adapter(family, 0.0), base_name="tiny")
