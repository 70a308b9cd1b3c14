"""Every base family: its loss by hand, its images those of the stock pipeline, its adapters too."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from hyperdp.bundle import Bundle, BundleConfig, load_bundle, save_bundle
from hyperdp.encoder import Encoder, EncoderConfig
from hyperdp.errors import UsageError, VerificationError
from hyperdp.eval.emission_bench import sd15_unet
from hyperdp.families import FAMILIES, find_family, load_family, need_flow
from hyperdp.family import Family, UNetFlow
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, attach_peft, describe_sites, load_peft, pick, save_peft
from hyperdp.noising import SAMPLERS, Noising
from hyperdp.stable_diffusion import Prompt, StableDiffusion, attention_sites
from hyperdp.unconditional import DiT, UNetDiffusion
from hyperdp.verification import verify
from tests.pipelines import (
    ddpm_folder,
    dit_folder,
    stable_diffusion_folder,
    vae,
)
from tests.worlds import TINY_UNET, tiny_family

FOLDERS = {
    "unet-diffusion": ddpm_folder,
    "dit": dit_folder,
    "stable-diffusion": stable_diffusion_folder,
}


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request, tmp_path_factory) -> Path:
    return FOLDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def family(folder: Path) -> Family:
    found = load_family(folder)
    found.model.requires_grad_(False)
    return found


def _adapter(family: Family, rank: int = 3, awake: float = 0.5) -> tuple[Hypernetwork, dict]:
    torch.manual_seed(5)
    config = HypernetworkConfig(embed_dim=8, rank=rank, basis=8, width=16, depth=1, bottleneck=8)
    hyper = Hypernetwork(config, describe_sites(family.model, family.sites()))
    torch.nn.init.normal_(hyper.head.weight, std=awake)
    with torch.no_grad():
        weights = hyper(torch.randn(2, 8) * 0.1, torch.full((2,), 0.01))
    return hyper.eval().requires_grad_(False), weights


def test_a_folder_is_known_for_what_it_is(folder: Path, tmp_path: Path):
    assert find_family(folder).name in FOLDERS
    assert find_family(folder) is FAMILIES[find_family(folder).name]
    family = tiny_family()
    family.save(tmp_path / "flow")
    assert find_family(tmp_path / "flow").name == "unet-flow"
    with pytest.raises(UsageError, match="diffusers folder"):
        find_family(tmp_path)
    with pytest.raises(UsageError, match="family unet-flow"):
        need_flow(load_family(folder), "a test")
    assert need_flow(family, "a test") is family


def test_a_scheduler_that_diffusers_does_not_have_is_refused(tmp_path: Path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(UsageError, match="configuration of a diffusers model"):
        find_family(tmp_path)
    (tmp_path / "unet/config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UsageError, match="scheduler"):
        find_family(tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "logging"}')
    with pytest.raises(UsageError, match="'logging'"):
        find_family(tmp_path)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noising_is_the_process_of_the_paper(prediction: str):
    scheduler = DDIMScheduler(prediction_type=prediction)
    torch.manual_seed(0)
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    s = torch.tensor([0.0005, 0.5, 0.9999])
    noisy, t, target = Noising(scheduler).at(x0, s, noise)
    assert t.tolist() == [0, 500, 999]
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - beta, 0)[t].view(3, 1, 1, 1)
    by_hand = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(noisy.double(), by_hand, rtol=1e-4, atol=1e-5)
    asked = {
        "epsilon": noise.double(),
        "sample": x0.double(),
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x0,
    }[prediction]
    torch.testing.assert_close(target.double(), asked, rtol=1e-4, atol=1e-5)


def test_noising_of_flow_matching_is_the_straight_line():
    x0, noise, s = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([0.25, 0.75])
    noisy, t, target = Noising(FlowMatchEulerDiscreteScheduler()).at(x0, s, noise)
    assert t.tolist() == [250, 750]
    for i in range(2):
        torch.testing.assert_close(noisy[i], x0[i] + s[i] * (noise[i] - x0[i]))
    torch.testing.assert_close(target, noise - x0)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(UsageError, match="'flow_prediction'"):
        Noising(DDPMScheduler(prediction_type="flow_prediction"))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_that_is_taken_asks_at_the_timesteps_of_training(name: str):
    scheduler = getattr(diffusers, name)()
    noising = Noising(scheduler)
    scheduler.set_timesteps(6)
    asked = scheduler.timesteps
    assert len(asked) >= 6 and float(asked.min()) >= 0
    assert 700 < float(asked.max()) <= noising.steps - 1  # the noisy end of what training asks at


@pytest.mark.parametrize(
    ("scheduler", "found"),
    [
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler"),
        (diffusers.CMStochasticIterativeScheduler(), "CMStochastic"),
        (diffusers.ScoreSdeVeScheduler(), "ScoreSdeVe"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
    ],
)
def test_a_scheduler_of_another_process_is_refused(scheduler, found: str):
    with pytest.raises(UsageError, match=found):
        Noising(scheduler)


def test_flow_matching_is_asked_at_its_own_number_of_timesteps():
    asked = []
    unet = tiny_family().model
    family = UNetFlow(unet, FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))
    unet.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    images = torch.zeros(2, *family.image_shape)
    family.loss_at(images, torch.tensor([0.5, 0.999]), torch.zeros_like(images))
    family.adapter_loss(images[None], images[None], torch.Generator().manual_seed(0))
    assert asked[0].tolist() == pytest.approx([250, 499.5])
    assert float(torch.cat(asked).max()) < 500


def _as_config(folder: Path, part: str = "unet", **changes: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pipeline_of_another_kind_is_refused_and_one_in_latents_taken_as_such(tmp_path: Path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**{**TINY_UNET, "sample_size": 8, "in_channels": 4,
                                    "out_channels": 4})  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    vae().save_pretrained(tmp_path / "vae")
    family = load_family(tmp_path)
    assert isinstance(family, UNetDiffusion)
    assert (family.image_shape, family.noise_shape) == ((3, 16, 16), (4, 8, 8))
    drawn = family.sample(2, seed=0, steps=2)
    assert drawn.shape == (2, 3, 16, 16)
    family.save(tmp_path / "again")
    assert torch.equal(load_family(tmp_path / "again").sample(2, seed=0, steps=2), drawn)
    (tmp_path / "vae").rename(tmp_path / "vqvae")  # as LDMPipeline has it
    with pytest.raises(UsageError, match="vqvae"):
        load_family(tmp_path)
    (tmp_path / "vqvae").rename(tmp_path / "elsewhere")
    _as_config(tmp_path, _class_name="PriorTransformer")
    with pytest.raises(UsageError, match="PriorTransformer"):
        load_family(tmp_path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"sample_size": None}, "sample_size = None"),
        ({"sample_size": [16, 24]}, "sample_size"),
        ({"num_class_embeds": 10}, "num_class_embeds = 10"),
        ({"block_out_channels": [3, 5]}, "safetensors weights"),
    ],
)
def test_a_network_that_no_loss_is_made_for_is_refused(tmp_path: Path, changes, found: str):
    ddpm_folder(tmp_path)
    _as_config(tmp_path, **changes)
    with pytest.raises(UsageError, match=found):
        load_family(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path):
    weights = ddpm_folder(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="safetensors weights"):
        load_family(tmp_path)
    weights.unlink()
    with pytest.raises(UsageError, match="safetensors weights"):
        load_family(tmp_path)


def test_a_learned_variance_is_left_out_and_flow_matching_has_none(tmp_path: Path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**{**TINY_UNET, "out_channels": 2 * TINY_UNET["in_channels"]})
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    family = load_family(tmp_path)
    assert family.sample(1, seed=0, steps=2).shape == (1, *family.image_shape)
    images = torch.zeros(2, *family.image_shape)
    assert family.loss(images, torch.Generator().manual_seed(0)).shape == (2,)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UsageError, match="channels in"):
        load_family(tmp_path)


def test_the_loss_is_that_of_the_answer(family: Family):
    torch.manual_seed(1)
    images = torch.rand(3, *family.image_shape) * 2 - 1
    noise, s = torch.randn(3, *family.noise_shape), torch.tensor([0.1, 0.4, 0.8])
    with torch.no_grad():
        found = family.loss_at(images, s, noise)
        clean = family.latents.encode(images)
        alone = []
        for i in range(3):
            t = (s[i : i + 1] * 1000).long()
            noisy = DDPMScheduler.from_config(family.scheduler.config).add_noise(
                clean[i : i + 1], noise[i : i + 1], t
            )
            answer = family.predict(family.model, noisy, t)
            alone.append((answer - noise[i]).square().mean())
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)
    rng = torch.Generator().manual_seed(2)
    assert family.loss(images, rng).shape == (3,)
    assert family.adapter_loss(images[None], images[None], rng).shape == (3,)


def test_adapters_of_one_batch_are_those_of_each_alone(family: Family):
    family.prepare_training()
    _, weights = _adapter(family)
    torch.manual_seed(1)
    images = torch.rand(4, *family.image_shape) * 2 - 1
    noise, s = torch.randn(4, *family.noise_shape), torch.tensor([0.1, 0.4, 0.6, 0.9])
    with torch.no_grad():
        plain = family.loss_at(images, s, noise)
        with adapters(family.model, weights):
            both = family.loss_at(images, s, noise)
        for group in range(2):
            part = slice(2 * group, 2 * group + 2)
            with adapters(family.model, pick(weights, group)):
                alone = family.loss_at(images[part], s[part], noise[part])
            torch.testing.assert_close(both[part], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, plain, rtol=1e-2)


def test_a_base_saved_loads_as_it_was(family: Family, tmp_path: Path):
    family.save(tmp_path)
    again = load_family(tmp_path)
    assert type(again) is type(family)
    one, two = (f.sample(2, seed=3, steps=2, batch_size=2) for f in (family, again))
    assert torch.equal(one, two)
    assert one.shape == (2, *family.image_shape)
    assert not torch.equal(one, family.sample(2, seed=4, steps=2, batch_size=2))


def test_ddpm_images_are_those_of_the_stock_pipeline(tmp_path: Path):
    family = UNetDiffusion.load(ddpm_folder(tmp_path))
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=3,
        output_type="np",
    ).images
    own = family.sample(2, seed=7, steps=3)
    as_stock = (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert torch.equal(as_stock, torch.from_numpy(stock))


def test_dit_images_are_those_of_the_stock_pipeline_with_the_adapter(tmp_path: Path):
    family = DiT.load(dit_folder(tmp_path / "dit"))
    _, weights = _adapter(family)
    save_peft(pick(weights, 1), tmp_path / "adapter", base_name="dit")
    pipeline = DiTPipeline.from_pretrained(tmp_path / "dit")
    pipeline.set_progress_bar_config(disable=True)

    def stock() -> torch.Tensor:
        found = pipeline(
            class_labels=[1000, 1000],
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=3,
            output_type="np",
        )
        return torch.from_numpy(found.images)

    def as_stock(own: torch.Tensor) -> torch.Tensor:
        return (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    plain = stock()
    assert torch.equal(plain, as_stock(family.sample(2, seed=7, steps=3)))
    attach_peft(pipeline.transformer, tmp_path / "adapter")  # changes it in place
    own = family.sample(2, seed=7, steps=3, model=attach_peft(family.model, tmp_path / "adapter"))
    adapted = stock()
    assert torch.equal(adapted, as_stock(own))
    assert not torch.equal(adapted, plain)


def test_the_dit_is_asked_without_class_and_created_in_pixels():
    dit = DiT.create(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=1, sample_size=8,
        patch_size=2, norm_num_groups=1,
    )  # fmt: skip
    assert dit.image_shape == dit.noise_shape == (1, 8, 8)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, timestep, class_labels):
            seen.extend(class_labels.tolist())
            return type("Output", (), {"sample": x})()

    dit.predict(Spy(), torch.zeros(2, 1, 8, 8), torch.zeros(2))
    table = dit.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    assert seen == [table.num_embeddings - 1] * 2  # the row that guidance calls no class
    assert len(dit.sites()) == 6
    assert torch.isfinite(dit.loss(torch.zeros(2, 1, 8, 8), torch.Generator())).all()


# The Stable-Diffusion class -----------------------------------------------------------------


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("sd"))


def _sd_bundle(source: Path, folder: Path) -> Bundle:
    family = StableDiffusion.load(source)
    family.prompt = Prompt(text="a glyph", guidance_scale=3.0)
    hyper, _ = _adapter(family)
    torch.manual_seed(6)
    encoder = Encoder(EncoderConfig(image_shape=(3, 16, 16), embed_dim=8, widths=(8,), hidden=8))
    config = BundleConfig(
        name="tiny-sd",
        family=family.name,
        embed_dim=8,
        clip_norm=1.0,
        image_shape=family.image_shape,
        sites=family.sites(),
        encoder={"image_shape": [3, 16, 16], "embed_dim": 8, "widths": [8], "hidden": 8},
        hypernetwork={
            "embed_dim": 8, "rank": 3, "basis": 8, "width": 16, "depth": 1, "bottleneck": 8,
        },
        public_mean=[0.0] * 8,
        other_task_mean=[0.1] * 8,
        sampling_steps=3,
    )  # fmt: skip
    return save_bundle(
        folder, config, encoder=encoder, hypernetwork=hyper, base=family, training={}
    )


def test_from_private_images_to_the_stock_pipelines_images(sd_folder, tmp_path, monkeypatch):
    """Encoder, release, hypernetwork, adapter; then diffusers alone, bit for bit."""
    import numpy as np

    from hyperdp.budget import PrivacyBudget
    from hyperdp.ledger import Ledger
    from hyperdp.private.emit import emit_adapter
    from hyperdp.private.records import Record
    from hyperdp.private.release import release

    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    bundle = _sd_bundle(sd_folder, tmp_path / "bundle")
    pixels = np.random.default_rng(0).uniform(-1, 1, (200, 3, 16, 16)).astype(np.float32)
    made = release(
        [Record(image=image) for image in pixels],
        bundle=bundle,
        budget=PrivacyBudget(epsilon=4.0, delta=1e-5),
        ledger=Ledger(tmp_path / "ledger.db"),
        out=tmp_path / "release",
        dataset="test",
    )
    [adapter] = emit_adapter(made, bundle, tmp_path / "adapter")

    pipeline = StableDiffusionPipeline.from_pretrained(bundle.path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def stock() -> torch.Tensor:
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
        found = pipeline(
            prompt=["a glyph"] * 2, latents=noise, num_inference_steps=3, guidance_scale=3.0,
            output_type="pt",
        ).images  # fmt: skip
        return found * 2 - 1

    plain = stock()
    pipeline.load_lora_weights(adapter)
    adapted = stock()
    base = load_bundle(bundle.path).load_base()
    own = base.sample(2, seed=9, steps=3, model=attach_peft(base.model, adapter))
    assert torch.equal(own, adapted)
    assert not torch.equal(plain, adapted)
    with adapters(bundle.base.model, load_peft(adapter)):
        hooked = bundle.base.sample(2, seed=9, steps=3)
    torch.testing.assert_close(hooked, adapted, rtol=0, atol=1e-4)


def test_a_fit_of_stable_diffusion_loads_into_the_stock_pipeline_and_verifies(
    sd_folder, tmp_path, monkeypatch
):
    import numpy as np

    from hyperdp.adapter_files import PIPELINE_FILE
    from hyperdp.budget import PrivacyBudget
    from hyperdp.ledger import Ledger
    from hyperdp.private.learners.config import FitConfig, Pace
    from hyperdp.private.learners.fit import fit
    from hyperdp.private.records import Record

    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    bundle = _sd_bundle(sd_folder, tmp_path / "bundle")
    pixels = np.random.default_rng(0).uniform(-1, 1, (6, 3, 16, 16)).astype(np.float32)
    out = tmp_path / "out"
    fit(
        [Record(image=image) for image in pixels], bundle=bundle, out=out, dataset="scans",
        config=FitConfig(method="dpsgd", size=6, expected_batch=3, steps=2, rank=2),
        budget=PrivacyBudget(epsilon=4.0, delta=1e-4), ledger=Ledger(tmp_path / "ledger.db"),
        pace=Pace(microbatch=3),
    )  # fmt: skip
    assert PIPELINE_FILE in {claim.name for claim in verify(out)}
    pipeline = StableDiffusionPipeline.from_pretrained(bundle.path, torch_dtype=torch.float32)
    pipeline.load_lora_weights(out)
    assert pipeline.get_active_adapters()
    path = out / PIPELINE_FILE
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    with pytest.raises(VerificationError, match=PIPELINE_FILE.replace(".", r"\.")):
        verify(out)
    path.unlink()
    with pytest.raises(VerificationError, match=PIPELINE_FILE.replace(".", r"\.")):
        verify(out)


def test_a_prompt_reaches_loss_and_images(sd_folder: Path):
    family = StableDiffusion.load(sd_folder)
    images = torch.rand(2, 3, 16, 16) * 2 - 1

    def loss(*prompts: str) -> torch.Tensor:
        with torch.no_grad():
            return family.prompted_loss(images, list(prompts), torch.Generator().manual_seed(0))

    with torch.no_grad():
        assert torch.equal(loss("", ""), family.loss(images, torch.Generator().manual_seed(0)))
    mixed, same = loss("cat", ""), loss("", "")
    assert mixed[0] != same[0]
    torch.testing.assert_close(mixed[1], same[1])
    plain = family.sample(1, seed=0, steps=2)
    family.prompt = Prompt(text="cat")
    assert not torch.equal(plain, family.sample(1, seed=0, steps=2))
    with torch.no_grad():
        assert torch.equal(
            loss("cat", "cat"), family.loss(images, torch.Generator().manual_seed(0))
        )


def test_the_prompt_is_saved_beside_the_pipeline(sd_folder: Path, tmp_path: Path):
    family = StableDiffusion.load(sd_folder)
    assert family.prompt == Prompt()
    family.prompt = Prompt(text="cat", guidance_scale=2.0)
    family.save(tmp_path)
    assert StableDiffusion.load(tmp_path).prompt == family.prompt


def test_a_fresh_stable_diffusion_and_a_broken_folder_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="start ="):
        StableDiffusion.create(sample_size=8)
    with pytest.raises(UsageError, match="StableDiffusionPipeline"):
        StableDiffusion.load(tmp_path)
    sd = stable_diffusion_folder(tmp_path / "sd")
    (sd / "prompt.json").write_text('{"text": "a cat", "size": 3}')
    with pytest.raises(UsageError, match="guidance_scale"):
        load_family(sd)
    (sd / "prompt.json").unlink()
    (sd / "text_encoder_2").mkdir()
    with pytest.raises(UsageError, match="text_encoder_2"):
        load_family(sd)
    (sd / "text_encoder_2").rmdir()
    unet = diffusers.UNet2DConditionModel.from_config({
        **json.loads((sd / "unet/config.json").read_text()), "in_channels": 9,
    })  # fmt: skip
    unet.save_pretrained(sd / "unet")
    with pytest.raises(UsageError, match="paint into"):
        load_family(sd)


def test_the_layout_of_stable_diffusion_15_fits_a_small_hypernetwork():
    """On the meta device: the real UNet's shapes without its 860 million weights."""
    unet = sd15_unet()
    sites = describe_sites(unet, attention_sites(unet))
    # 16 transformer blocks (6 down, 1 in the middle, 9 up), two attentions each, 4 projections
    assert len(sites) == 16 * 2 * 4
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # as its card says
    across = {s.in_features for s in sites if "attn2.to_k" in s.name or "attn2.to_v" in s.name}
    assert across == {768}
    assert {s.out_features for s in sites} == {320, 640, 1280}
    hyper = Hypernetwork(HypernetworkConfig(embed_dim=64, rank=4), sites)
    assert sum(p.numel() for p in hyper.parameters()) <= 80_000_000
    weights = hyper(torch.zeros(1, 64), torch.full((1,), 0.01))
    for site in sites:
        a, b = weights[site.name]
        assert a.shape == (1, 4, site.in_features)
        assert b.shape == (1, site.out_features, 4)


def test_pndm_is_trained_by_its_own_process():
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noisy, t, _ = Noising(scheduler).at(
        torch.ones(1, 1, 1, 1), torch.tensor([0.5]), torch.zeros(1, 1, 1, 1)
    )
    alpha = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    torch.testing.assert_close(noisy.item(), alpha[500].sqrt().item(), rtol=1e-5, atol=0)
    assert t.tolist() == [500]
