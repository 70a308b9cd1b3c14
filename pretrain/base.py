"""Trains a base model on the public corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.families import family_class, find_family, load_family
from hyperdp.family import Family
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.fitting import check_fits, fit
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig, shared_out
from hyperdp.pretrain.world import GlyphWorld, World
from hyperdp.processes import processes


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Recipe of a base model.

    Attributes:
        family: a key of `hyperdp.families.FAMILIES`.
        batch_size: records a step.
        loop: see `LoopConfig`.
        model: arguments of the diffusers model class.
        start: folder with `unet/` and `scheduler/` (a base or a bundle) whose weights training
            begins with; "" begins with fresh ones, of the shape that `model` says.
    """

    family: str = "unet-flow"
    batch_size: int = 64
    loop: LoopConfig
    model: dict[str, Any] = field(default_factory=dict)
    start: str = ""


def _begin(config: BaseConfig) -> Family:
    """The base as training begins with it.

    Raises:
        UsageError: `start` is of another family, or none that hyperdp knows.
    """
    kind = family_class(config.family)
    if not config.start:
        return kind.create(**config.model)
    start = Path(config.start)
    if (found := find_family(start).name) != kind.name:
        raise UsageError(
            expected=f'family = "{found}", which {start} is',
            found=f'family = "{kind.name}"',
            todo="Correct the recipe's family or its start.",
        )
    return load_family(start)


def train_base(config: BaseConfig, folder: Path, world: World | None = None) -> Family:
    """Trains (or goes on training) a base model and saves it under `folder`.

    Args:
        config: the recipe.
        folder: `unet/`, `scheduler/`, the checkpoint and `log.jsonl` go here.
        world: public data; the glyphs, rendered or read from the cache, when None.

    Returns:
        The trained family with averaged weights.
    """
    world = GlyphWorld(corpus_module.open_corpus()) if world is None else world
    torch.manual_seed(config.loop.seed)
    family = _begin(config)
    check_fits(world, family.image_shape)
    family.prepare_training()
    device, shape = processes().device, family.image_shape
    family.to(device)

    count = shared_out(config.batch_size, config.loop.workers, "batch_size")

    def step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        images = world.records(count, 0, rng)
        return family.loss(fit(images, shape).to(device), rng).mean(), {}

    def validate() -> dict[str, float]:
        rng = torch.Generator().manual_seed(1)
        images = world.records(512, 1, rng)
        family.model.eval()
        with torch.no_grad():
            losses = [
                family.loss(fit(part, shape).to(device), rng).mean()
                for part in torch.split(images, 128)
            ]
        family.model.train()
        return {"validation_loss": float(torch.stack(losses).mean())}

    family.model.train()
    Loop(config.loop, family.model, step, folder, validate).run("base")
    family.model.eval()
    family.to(torch.device("cpu"))
    if processes().is_main_process:
        family.save(folder)
    processes().wait_for_everyone()
    return family
