"""`pretrain hyper --base`: any local diffusers folder, from its own size to the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperdp.bundle import load_bundle
from hyperdp.cli.pretrain import app
from hyperdp.errors import UsageError
from hyperdp.families import load_family
from hyperdp.lora import attach_peft, pick, save_peft
from hyperdp.pretrain.base import BaseConfig, train_base
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.fitting import check_fits, fit
from hyperdp.pretrain.hyper import train_hyper
from hyperdp.pretrain.image_corpus import write_images
from hyperdp.pretrain.image_tasks import ImageWorld
from hyperdp.pretrain.loop_config import LoopConfig
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


def test_records_of_another_shape_than_the_base_s_are_refused(tmp_path: Path):
    def own(channels: int, size: int) -> ImageWorld:
        shape = (channels, size, size)
        images = [(np.full(shape, i / 128 - 1, np.float32), None) for i in range(200)]
        return ImageWorld(write_images(images, tmp_path / f"{channels}-{size}", shape))

    check_fits(own(3, 16), (3, 16, 16))
    check_fits(own(1, 16), (3, 16, 16))  # as private grey images are read
    check_fits(GlyphWorld(open_sample()), (3, 64, 64))
    for channels, size, shape in ((3, 8, (3, 16, 16)), (3, 32, (3, 16, 16)), (3, 24, (1, 24, 24))):
        with pytest.raises(UsageError, match=f"--size {shape[1]} --channels {shape[0]}"):
            check_fits(own(channels, size), shape)


def test_a_base_begins_with_one_of_its_own_family(tmp_path: Path):
    start = ddpm_folder(tmp_path / "ddpm")
    loop = LoopConfig(steps=1, workers=1)
    with pytest.raises(UsageError, match='family = "unet-diffusion"'):
        train_base(BaseConfig(start=str(start), loop=loop), tmp_path / "run")
    config = BaseConfig(family="unet-diffusion", start=str(start), loop=loop, batch_size=2)
    made = train_base(config, tmp_path / "run", GlyphWorld(open_sample()))
    assert type(made.scheduler) is type(load_family(start).scheduler)


def test_a_base_that_is_frozen_stays_as_it_was(tmp_path: Path):
    base = ddpm_folder(tmp_path / "base")
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(base="nowhere", steps=2))
    before = load_family(base).model.state_dict()
    same = {}
    for word in ("--freeze-base", "--base"):
        words = ["hyper", str(recipe), "--base", str(base), "-o", str(tmp_path / word), word]
        result = CliRunner().invoke(app, words + ([str(base)] if word == "--base" else []))
        assert result.exit_code == 0, result.output
        after = load_bundle(tmp_path / word / "bundle").base.model.state_dict()
        same[word] = all(torch.equal(after[k], v.half().float()) for k, v in before.items())
    assert same == {"--freeze-base": True, "--base": False}


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
