"""Trains encoder and hypernetwork end to end on meta-tasks, through the base model's own loss."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperdp.bundle import Bundle, BundleConfig, load_bundle, save_bundle
from hyperdp.encoder import Encoder, EncoderConfig
from hyperdp.errors import UsageError
from hyperdp.families import load_family
from hyperdp.family import Family, UNetFlow
from hyperdp.hypernetwork import TRUNK, Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites
from hyperdp.narrow_norms import narrow_norms
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.begin import begin_with
from hyperdp.pretrain.conditioning import Conditioning
from hyperdp.pretrain.fitting import check_fits
from hyperdp.pretrain.foretell import Foretell
from hyperdp.pretrain.hyper_step import HyperStep
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.provenance import is_bundle_of, training_record
from hyperdp.pretrain.validation import Validation
from hyperdp.pretrain.world import GlyphWorld, World
from hyperdp.processes import processes
from hyperdp.stable_diffusion import StableDiffusion

FORETELL_SEED = 1_000_003  # over the loop's own: its tasks are others than those that come after


@dataclass(frozen=True, kw_only=True)
class HyperConfig:
    """Recipe of encoder and hypernetwork.

    Attributes:
        name: of the bundle.
        base: folder of the base model (`hyperdp pretrain base`).
        tasks, queries: G and b of a step.
        support: records whose mean embedding conditions the task.
        support_grad: how many of them carry gradients.
        noise_low, noise_high: range of the noise std of the mean, log-uniform: what n = 64…10⁵ and
            ε = 0.1…16 produce.
        pool, fresh: see `TaskPool`.
        feeders: processes that draw tasks ahead (`hyperdp.pretrain.feed`), divided among the
            shares, each of which has two more for the base's records; for a GPU that takes more
            than one process can draw. 0 draws at every step, in the process.
        cells: k-means cells that the code must foretell for unseen records, see `Foretell`.
        foretell_weight: weight of foretelling beside the base model's loss.
        foretell_steps: steps of foretelling alone, before the base model comes in.
        foretell_tasks, foretell_lr: G and learning rate of these.
        clip_norm: C.
        base_weight: weight of the base model's own loss, without adapters; 0 freezes the base.
            Above 0 the base learns to be adapted: its weights take part in the adapters' loss too.
        base_records: records a step that the base's own loss is taken on.
        base_lr: the base's learning rate over that of the rest.
        trunk_lr: that of what lies before ρ's heads. encoder_lr: the encoder's.
        prompt: what a text-conditional base is trained and sampled with; its own when "".
        gradient_checkpointing: save memory by computing the base's activations twice.
        mix: how often each kind of task is drawn, see the world's own (`TaskMix` for glyphs).
        start: folder of an earlier run whose averaged encoder, hypernetwork and foretelling heads
            training begins with, at the same sizes; or a bundle, which has no foretelling heads, so
            these are fresh; "" begins with all fresh. The base is `base`.
        start_parts: begins of the names of the parameters that `start` gives, such as `encoder.` or
            `hypernetwork.a.`, the others being fresh; all when empty.
    """

    name: str
    base: str
    loop: LoopConfig
    tasks: int = 16
    queries: int = 4
    support: int = 96
    support_grad: int = 32
    noise_low: float = 5e-4
    noise_high: float = 0.2
    pool: int = 512
    fresh: int = 4
    feeders: int = 0
    cells: int = 512
    foretell_weight: float = 0.02
    foretell_steps: int = 1000
    foretell_tasks: int = 32
    foretell_lr: float = 2e-3
    clip_norm: float = 1.0
    base_weight: float = 0.0
    base_records: int = 16
    base_lr: float = 0.3
    trunk_lr: float = 1.0
    encoder_lr: float = 1.0
    prompt: str = ""
    gradient_checkpointing: bool = False
    start: str = ""
    start_parts: list[str] = field(default_factory=list)
    sampling_steps: int = 24
    encoder: dict[str, Any] = field(default_factory=dict)
    hypernetwork: dict[str, Any] = field(default_factory=dict)
    mix: dict[str, float] = field(default_factory=dict)


def train_hyper(
    config: HyperConfig, folder: Path, world: World | None = None, command: str = ""
) -> Bundle:
    """Trains (or goes on training) encoder and hypernetwork; the bundle goes to `folder/bundle`.

    Args:
        config: the recipe.
        folder: checkpoint and `log.jsonl` go here.
        world: public data; the glyphs, rendered or read from the cache, when None.
        command: what was typed, for the record.

    Returns:
        The bundle.
    """
    world = GlyphWorld(corpus_module.open_corpus()) if world is None else world
    torch.manual_seed(config.loop.seed)
    base, device = _open_base(config), processes().device
    shape = base.image_shape
    check_fits(world, shape)
    sites = base.sites()
    encoder_values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in config.encoder.items()
    }
    encoder = Encoder(EncoderConfig(image_shape=shape, **encoder_values))
    k = encoder.config.embed_dim
    hyper = Hypernetwork(
        HypernetworkConfig(embed_dim=k, **config.hypernetwork), describe_sites(base.model, sites)
    )
    rng = torch.Generator().manual_seed(config.loop.seed + 1)
    marginal = world.records(max(2048, 8 * config.cells), 0, rng)
    sampler = world.tasks(0, config.mix)
    foretell = Foretell(
        embed_dim=k,
        bottleneck=hyper.config.code_size,
        cells=config.cells,
        content=sampler.content_classes,
        images=marginal,
    )
    module = nn.ModuleDict({"encoder": encoder, "hypernetwork": hyper, "foretell": foretell})
    module.to(device)
    if config.start:
        begin_with(Path(config.start), module, config.start_parts)
    conditioning = Conditioning(config, sampler, encoder, hyper, foretell)
    step = HyperStep(config, base, hyper, conditioning, world)
    scales = {
        "encoder.": config.encoder_lr,
        **{f"hypernetwork.{part}": config.trunk_lr for part in TRUNK},
    }
    if config.foretell_steps:
        first = dataclasses.replace(
            config.loop,
            steps=config.foretell_steps,
            lr=config.foretell_lr,
            ema=0.99,
            graph=False,
            seed=config.loop.seed + FORETELL_SEED,
        )
        early = Loop(
            first,
            module,
            step.foretell,
            folder / "foretell",
            lr_scales=scales,
            sampler=conditioning,
            before=conditioning.refill,
        )
        early.run("foretelling")
    if config.base_weight > 0:
        module["base"] = base.model
    validation = Validation(
        world,
        base,
        encoder,
        hyper,
        mix=config.mix,
        support=config.support,
        clip_norm=config.clip_norm,
        lowest_noise=config.noise_low,
    )
    loop = Loop(
        config.loop,
        module,
        step,
        folder,
        validation,
        lr_scales={"base.": config.base_lr, **scales},
        sampler=step,
        after=step.after,
        before=step.refill,
    )
    loop.run("hypernetwork")
    mix = dataclasses.asdict(world.mix(config.mix))
    recipe = {**dataclasses.asdict(config), "mix": mix}
    made = loop.resumed == loop.done and is_bundle_of(folder / "bundle", recipe)
    processes().wait_for_everyone()  # all of them have looked
    if made:
        return load_bundle(folder / "bundle")  # as it was made, with what was measured of it since
    module.eval()
    bundle_config = BundleConfig(
        name=config.name,
        family=base.name,
        embed_dim=k,
        clip_norm=config.clip_norm,
        image_shape=base.image_shape,
        sites=sites,
        encoder=dataclasses.asdict(encoder.config),
        hypernetwork=dataclasses.asdict(hyper.config),
        public_mean=validation.public_mean().tolist(),
        other_task_mean=validation.task_means()[0].tolist(),
        sampling_steps=config.sampling_steps,
    )
    if processes().is_main_process:
        training = training_record(recipe, command, loop.seconds, folder, corpus=world.digest)
        start = Path(config.start)
        for before in (start / "training.json", start / "bundle" / "training.json"):
            if config.start and before.is_file():
                training["start"] = json.loads(before.read_bytes())
        base.to(torch.device("cpu"))
        save_bundle(
            folder / "bundle",
            bundle_config,
            encoder=encoder.cpu(),
            hypernetwork=hyper.cpu(),
            base=base,
            training=training,
        )
    processes().wait_for_everyone()
    return load_bundle(folder / "bundle")


def _open_base(config: HyperConfig) -> Family:
    """The recipe's base model, ready to train adapters of, where the networks compute.

    Raises:
        UsageError: there is none that hyperdp knows, or it takes no prompt.
    """
    base = load_family(Path(config.base))
    fits = isinstance(base, UNetFlow) and config.feeders and not config.gradient_checkpointing
    if config.loop.graph and not fits:
        raise UsageError(
            expected="feeders, a base of the family unet-flow and no gradient_checkpointing, for a "
            "step as one graph",
            found=f"feeders = {config.feeders}, a base of the family {base.name}, "
            f"gradient_checkpointing = {config.gradient_checkpointing}",
            todo="Leave `graph` out of the recipe's [loop].",
        )
    if config.prompt:
        if not isinstance(base, StableDiffusion):
            raise UsageError(
                expected="no prompt: the base is not conditioned on text",
                found=f"prompt = {config.prompt!r} for a base of the family {base.name}",
                todo="Leave the prompt out of the recipe.",
            )
        base.prompt = dataclasses.replace(base.prompt, text=config.prompt)
    base.prepare_training()
    if config.gradient_checkpointing:
        base.model.enable_gradient_checkpointing()  # type: ignore[operator]
    base.to(processes().device)
    if processes().device.type == "cuda" and config.loop.bf16:
        narrow_norms(base.model)
    base.model.requires_grad_(config.base_weight > 0)
    return base
