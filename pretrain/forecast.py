"""Makes the table of a forecast: ρ(z) on held-out public tasks, by noise level and number of units.

What costs is non-private LoRA, the mark that gains are measured against; a task is written down as
soon as it is done, so a run that was killed loses one task at most, and several processes may share
the tasks of one table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.encoder import clip
from hyperdp.forecast import ANY, ForecastTable
from hyperdp.guard import COUNT_WEIGHT
from hyperdp.lora import Weights, adapters
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.forecast_kinds import draw_like, kind_sampler
from hyperdp.pretrain.known_figures import Known, known_figures
from hyperdp.pretrain.task_files import Figures, Progress, TaskFiles
from hyperdp.pretrain.tasks import TaskSampler
from hyperdp.pretrain.world import Tasks, World

LEVELS = 5e-4, 0.2  # the least and the most noise in a mean: ε = 8 of 2,000, ε = 0.2 of 100
DEFAULT_UNITS = 64, 256, 2048
LOSS_QUERIES = 256  # held-out records that the loss is taken on
NonPrivate = Callable[[Tensor, int], Weights]
"""(records float32 [n, C, H, W], seed) → the adapter of LoRA without privacy."""


class Measure(Protocol):
    """One figure of an adapter on one task; smaller is better."""

    def __call__(self, bundle: Bundle, weights: Weights, queries: Tensor) -> float:
        """The figure of one adapter ({} for the base) on records that it has not seen."""


def spread_levels(count: int) -> tuple[float, ...]:
    """Noise levels at equal ratios, from the least that `plan` is asked about to the most.

    Args:
        count: S, at least 2.

    Returns:
        S stds of the mean, ascending, to four significant digits, so that a table reads well.
    """
    return tuple(float(f"{level:.4g}") for level in np.geomspace(*LEVELS, count))


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """Which tasks and cells.

    Attributes:
        tasks: T; an 80 % interval needs 9 that LoRA gains something on.
        like: what they are like, see `hyperdp.pretrain.forecast_kinds`.
        units: numbers of units; the largest is what non-private LoRA is trained on.
        noise_std: noise levels of the mean.
        queries: held-out records of each task.
        mix: how often each kind of task is drawn, of those that are like any, by the world's own
            names.
        seed: of the draws.
    """

    tasks: int = 24
    like: str = ANY
    units: tuple[int, ...] = DEFAULT_UNITS
    noise_std: tuple[float, ...] = dataclasses.field(default_factory=lambda: spread_levels(8))
    queries: int = 256
    mix: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"everything": 0.0})
    seed: int = 0


@torch.no_grad()
def loss_measure(bundle: Bundle, weights: Weights, queries: Tensor) -> float:
    """The base model's own loss on records that were not trained on, at fixed times and noise.

    Times are the logit-normal ones of training, stratified; times and noise are the same for every
    adapter, so that what differs between two is the adapter alone.
    """
    queries = queries[:LOSS_QUERIES]
    count = len(queries)
    rng = torch.Generator().manual_seed(0)
    place = (torch.randperm(count, generator=rng) + 0.5) / count
    s = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * place - 1))  # [count]
    noise = torch.randn(count, *bundle.base.noise_shape, generator=rng)
    total = 0.0
    with adapters(bundle.base.model, weights):
        for part in torch.split(torch.arange(count), 64):
            total += float(bundle.base.loss_at(queries[part], s[part], noise[part]).sum())
    return total / count


def released_mean(
    embedded: Tensor, *, units: int, noise_std: float, clip_norm: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What ρ would be given by a release of the first `units` records under add-remove.

    The divisor is noisy too: n̂ = n + σ/w · ζ, and σ/w = noise_std · n / w.

    Args:
        embedded: float32 [K, k], clipped embeddings.
        units: n.
        noise_std: σ / n, in the embedding's units.
        clip_norm: C.
        rng: CPU generator; one state gives one draw, whatever the noise level.

    Returns:
        mean float32 [1, k] and its noise std float32 [1], both over max(n̂, 1).
    """
    draw = torch.randn(embedded.shape[1] + 1, generator=rng)
    count = units * (1 + noise_std / (COUNT_WEIGHT * clip_norm) * float(draw[-1]))
    ratio = units / max(count, 1.0)
    mean = embedded[:units].mean(0) + noise_std * draw[:-1]  # [k]
    return (mean * ratio)[None], torch.full((1,), noise_std * ratio)


def measure_task(
    bundle: Bundle,
    images: Tensor,
    config: ForecastConfig,
    *,
    nonprivate: NonPrivate,
    measures: Mapping[str, Measure],
    seed: int,
    known: Known | None = None,
) -> Figures:
    """Every figure of one task.

    Args:
        bundle: φ, ρ and base.
        images: float32 [max(units) + queries, C, H, W], records of the task.
        config: see `ForecastConfig`.
        nonprivate: trains LoRA on records.
        measures: quantity → measure.
        seed: of records, noise and LoRA.
        known: what need not be measured again; the same would come.

    Returns:
        quantity → base, public_mean, lora (figures) and hyper ([N][S] figures).
    """
    most = max(config.units)
    pool, queries = images[:most], images[most:]
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [bundle.encoder(part).float() for part in torch.split(pool, 256)]
        embedded = clip(torch.cat(parts), bundle.config.clip_norm)
    marks: Figures = {} if known is None else known.figures
    if known is None:
        with torch.no_grad():
            level = torch.full((1,), min(config.noise_std))
            public = bundle.hypernetwork(bundle.public_mean[None], level)
        weights: dict[str, Weights] = {
            "base": {}, "public_mean": public, "lora": nonprivate(pool, seed),
        }  # fmt: skip
        marks = {
            quantity: {name: measure(bundle, w, queries) for name, w in weights.items()}
            for quantity, measure in measures.items()
        }
    figures: Figures = {
        quantity: marks[quantity] | {"hyper": [[0.0] * len(config.noise_std) for _ in config.units]}
        for quantity in measures
    }
    for i, units in enumerate(config.units):
        # Records and noise are drawn anew for each size, and shared by its noise levels: a task's
        # curve over ε then shows the level and not the draw.
        chosen = embedded[torch.randperm(most, generator=rng)[:units]]
        state = rng.get_state()
        for j, noise_std in enumerate(config.noise_std):
            rng.set_state(state)
            with torch.no_grad():
                mean, std = released_mean(
                    chosen,
                    units=units,
                    noise_std=noise_std,
                    clip_norm=bundle.config.clip_norm,
                    rng=rng,
                )
                adapter = bundle.hypernetwork(mean, std)
            there = known is not None and noise_std in known.noise_std
            for quantity, measure in measures.items():
                figures[quantity]["hyper"][i][j] = (
                    known.figures[quantity]["hyper"][i][known.noise_std.index(noise_std)]
                    if known is not None and there
                    else measure(bundle, adapter, queries)
                )
    return figures


def task_seed(config: ForecastConfig, index: int) -> int:
    """A task's own seed: the same whoever comes to it."""
    return 1_000_003 * config.seed + index


def draw_task(sampler: Tasks, config: ForecastConfig, index: int) -> Tensor:
    """All records of one task, float32 [max(units) + queries, c, h, w], as the world has them."""
    rng = torch.Generator().manual_seed(task_seed(config, index))
    if config.like == ANY:
        records = max(config.units) + config.queries
        return sampler.draw(1, records, rng, unseen=config.queries)[0]
    return draw_like(
        sampler, config.like, index, records=max(config.units), queries=config.queries, rng=rng
    )


def sample_tasks(
    world: World, config: ForecastConfig, shown: int, *, progress: Progress | None = None
) -> Tensor:
    """The first records of every task of a table, for people to look at.

    Args:
        world: as in `make_tables`.
        config: with which the table was made.
        shown: records of each.
        progress: called with (tasks done, tasks in all).

    Returns:
        float32 [T, shown, C, H, W].
    """
    sampler, parts = kind_sampler(world, config.like, config.mix), []
    for index in range(config.tasks):
        parts.append(draw_task(sampler, config, index)[:shown])
        if progress is not None:
            progress(index + 1, config.tasks)
    return torch.stack(parts)


def make_tables(
    bundle: Bundle,
    world: World,
    config: ForecastConfig,
    folder: Path,
    *,
    nonprivate: NonPrivate,
    measures: Mapping[str, Measure],
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[ForecastTable]:
    """Measures every task that is not measured yet, and puts the tables together.

    Args:
        bundle: whose forecast it is.
        world: public data that the bundle was trained on; its validation split gives the tasks.
        config: see `ForecastConfig`.
        folder: of finished tasks, see `TaskFiles`.
        nonprivate: trains LoRA on records; the same as the benchmark's.
        measures: quantity → measure.
        settings: of `nonprivate` and `measures`, so that other settings are measured anew.
        progress: called with (tasks done, tasks in all).
    """
    mix = world.mix(config.mix)
    what = {
        "bundle": bundle.hash,
        "corpus": world.digest,
        "config": {**dataclasses.asdict(config), "tasks": None, "mix": dataclasses.asdict(mix)},
        "measures": sorted(measures),
        "settings": dict(settings),
    }
    sampler = kind_sampler(world, config.like, config.mix)
    if isinstance(sampler, TaskSampler) and config.like != ANY:
        what["glyphs"] = sampler.corpus.digest  # print has scripts that the corpus has not

    files = TaskFiles(folder, what)

    def measure(index: int) -> Figures:
        return measure_task(
            bundle, fit(draw_task(sampler, config, index), bundle.config.image_shape), config,
            nonprivate=nonprivate, measures=measures, seed=task_seed(config, index),
            known=known_figures(files, what, index),
        )  # fmt: skip

    done = files.fill(config.tasks, measure, progress)
    return [
        ForecastTable(
            quantity=quantity,
            like=config.like,
            noise_std=list(config.noise_std),
            units=list(config.units),
            base=[task[quantity]["base"] for task in done],
            public_mean=[task[quantity]["public_mean"] for task in done],
            lora=[task[quantity]["lora"] for task in done],
            hyper=[task[quantity]["hyper"] for task in done],
        )
        for quantity in measures
    ]
