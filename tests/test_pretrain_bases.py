"""`pretrain hyper --base`: any local diffusers folder, from its own size to the bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hyperdp.bundle import load_bundle
from hyperdp.cli.pretrain import app
from hyperdp.errors import UsageError
from hyperdp.lora import attach_peft, pick, save_peft
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.hyper import train_hyper
from hyperdp.pretrain.world import GlyphWorld
from tests.pipelines import ddpm_folder, dit_folder, stable_diffusion_folder
from tests.test_pretrain_scale import RECIPE, _config


def test_records_are_fitted_to_the_base():
    small = torch.linspace(-1, 1, 28 * 28).view(1, 1, 1, 28, 28).expand(2, 3, -1, -1, -1)
    assert fit(small, (1, 28, 28)) is small
    large = fit(small, (3, 56, 56))
    assert large.shape == (2, 3, 3, 56, 56)
    assert torch.equal(large[:, :, 0], large[:, :, 2])
    back = torch.nn.functional.avg_pool2d(large[0, 0], 2)
    torch.testing.assert_close(back[:1, 1:-1, 1:-1], small[0, 0][:, 1:-1, 1:-1], atol=0.01, rtol=0)
    flat = fit(torch.full((2, 1, 28, 28), -1.0), (3, 16, 16))
    torch.testing.assert_close(flat, torch.full((2, 3, 16, 16), -1.0))


@pytest.mark.parametrize("make", [ddpm_folder, dit_folder, stable_diffusion_folder])
def test_a_bundle_is_trained_over_any_diffusers_folder(make, tmp_path: Path):
    base = make(tmp_path / "base")
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(base="nowhere", steps=2))
    words = ["hyper", str(recipe), "--base", str(base), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.config.image_shape == bundle.base.image_shape == bundle.encoder.config.image_shape
    with torch.no_grad():
        weights = bundle.hypernetwork(torch.ones(1, 8) * 0.1, torch.full((1,), 0.01))
    assert max(float(b.abs().max()) for _, b in weights.values()) > 0  # it has learned something
    save_peft(pick(weights, 0), tmp_path / "adapter", base_name="t")
    images = bundle.load_base().sample(
        2, seed=0, steps=2, model=attach_peft(bundle.load_base().model, tmp_path / "adapter")
    )
    assert images.shape == (2, *bundle.config.image_shape)
    assert not torch.equal(images, bundle.base.sample(2, seed=0, steps=2))


def test_a_prompt_goes_with_the_bundle_and_to_no_other_base(tmp_path: Path):
    base = stable_diffusion_folder(tmp_path / "sd")
    config = _config(base, prompt="a glyph")
    bundle = train_hyper(config, tmp_path / "run", GlyphWorld(open_sample()))
    assert bundle.base.prompt.text == "a glyph"
    with pytest.raises(UsageError, match="prompt"):
        config = _config(dit_folder(tmp_path / "dit"), prompt="a")
        train_hyper(config, tmp_path, GlyphWorld(open_sample()))
