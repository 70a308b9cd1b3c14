"""Makes a library of public tasks: the rival that looks a LoRA up instead of emitting one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.encoder import clip
from hyperdp.library import Library
from hyperdp.lora import Weights
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.world import World

Progress = Callable[[int, int], None]
Train = Callable[[Tensor, int], Weights]
"""(public records float32 [n, C, H, W], seed) → one adapter."""


@dataclass(frozen=True, kw_only=True)
class LibraryConfig:
    """Which tasks.

    Attributes:
        tasks: M.
        records: of each task, for the mean and for LoRA.
        mix: how often each kind of task is drawn, by the world's own names.
        seed: of the draws.
    """

    tasks: int = 64
    records: int = 2000
    mix: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def make_library(
    bundle: Bundle,
    world: World,
    config: LibraryConfig,
    folder: Path,
    *,
    train: Train,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> Library:
    """Makes every task that the folder does not hold yet; a kill loses one at most.

    Args:
        bundle: whose φ takes the means.
        world: public; its training split gives the tasks, as it gave those of ρ.
        config: see `LibraryConfig`; more tasks can be asked for later.
        folder: of the library.
        train: trains LoRA on a task's records.
        settings: of `train`, so that LoRAs of other settings are not mixed.
        progress: called with (tasks done, tasks in all).

    Raises:
        UsageError: the folder holds a library of another bundle or of other settings.
    """
    own = {key: value for key, value in dataclasses.asdict(config).items() if key != "tasks"}
    own["mix"] = dataclasses.asdict(world.mix(config.mix))
    what = {"config": own, "corpus": world.digest, "train": dict(settings)}
    library = Library.make(folder, bundle, what)
    sampler = world.tasks(0, config.mix)
    for index in range(config.tasks):
        if index not in library:
            seed = 1_000_003 * config.seed + index  # a task's own: the same however far a run came
            rng = torch.Generator().manual_seed(seed)
            images = fit(sampler.draw(1, config.records, rng)[0], bundle.config.image_shape)
            with torch.no_grad():
                parts = [bundle.encoder(part).float() for part in torch.split(images, 256)]
            mean = clip(torch.cat(parts), bundle.config.clip_norm).mean(0)
            library.add(index, mean, train(images, seed))
        if progress is not None:
            progress(index + 1, config.tasks)
    return library
