"""Trains encoder and hypernetwork end to end on meta-tasks, through the base model's own loss."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperdp.bundle import Bundle, BundleConfig, save_bundle
from hyperdp.encoder import Encoder, EncoderConfig, clip
from hyperdp.family import FAMILIES, UNetFlow
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, describe_sites
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.base import RowSampler, records
from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.foretell import Foretell
from hyperdp.pretrain.loop import Loop, LoopConfig, load_average
from hyperdp.pretrain.tasks import TaskMix, TaskPool, TaskSampler
from hyperdp.pretrain.validation import Validation


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
        cells: k-means cells that the code must foretell for unseen records, see `Foretell`.
        foretell_weight: weight of foretelling beside the base model's loss.
        foretell_steps: steps of foretelling alone, before the base model comes in.
        foretell_tasks, foretell_lr: G and learning rate of these.
        clip_norm: C.
        base_weight: weight of the base model's own loss, without adapters; 0 freezes the base.
            Above 0 the base learns to be adapted: its weights take part in the adapters' loss too.
        base_records: records a step that the base's own loss is taken on.
        base_lr: the base's learning rate over that of the rest.
        start: folder of an earlier run whose averaged encoder, hypernetwork and foretelling heads
            training begins with, at the same sizes; "" begins with fresh ones. The base is `base`.
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
    cells: int = 512
    foretell_weight: float = 0.02
    foretell_steps: int = 1000
    foretell_tasks: int = 32
    foretell_lr: float = 2e-3
    clip_norm: float = 1.0
    base_weight: float = 0.0
    base_records: int = 16
    base_lr: float = 0.3
    start: str = ""
    sampling_steps: int = 24
    encoder: dict[str, Any] = field(default_factory=dict)
    hypernetwork: dict[str, Any] = field(default_factory=dict)
    mix: TaskMix = field(default_factory=TaskMix)


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Some tasks of one step.

    Attributes:
        mean: float32 [G, k], noisy. noise_std: float32 [G].
        unseen: float32 [G, N, C, H, W], records that are not in the mean.
        others: float32 [G, M, C, H, W], further records of the same tasks.
        foretold: the foretelling loss, a scalar; figures: its parts.
    """

    mean: Tensor
    noise_std: Tensor
    unseen: Tensor
    others: Tensor
    foretold: Tensor
    figures: dict[str, float]


class Conditioning:
    """Draws tasks, embeds their support and adds noise of a random level: z as ρ will meet it."""

    def __init__(
        self,
        config: HyperConfig,
        sampler: TaskSampler,
        encoder: Encoder,
        hyper: Hypernetwork,
        foretell: Foretell,
    ) -> None:
        self.config, self.encoder, self.hyper, self.foretell = config, encoder, hyper, foretell
        workers = config.loop.workers
        self.pools = [
            TaskPool(
                sampler,
                size=config.pool // workers,
                fresh=max(1, config.fresh // workers),
                records=config.support + max(config.queries, 32),
            )
            for _ in range(workers)
        ]

    def draw(self, tasks: int, rng: torch.Generator, worker: int) -> Conditioned:
        """Conditions `tasks` tasks out of the worker's own pool."""
        c = self.config
        images, content = self.pools[worker].draw(tasks, rng)
        support, unseen = images[:, : c.support], images[:, c.support :]
        low, high = math.log(c.noise_low), math.log(c.noise_high)
        noise_std = torch.exp(torch.rand(tasks, generator=rng) * (high - low) + low)  # [G]
        mean, embeddings = self._embed(support)
        mean = mean + noise_std[:, None] * torch.randn(mean.shape, generator=rng)
        code = self.hyper.code(mean, noise_std)
        cells, of_content = self.foretell.set_loss(code, unseen, content[:, c.support :])
        shown = content[:, : min(c.support, c.support_grad)].flatten()
        record = self.foretell.record_loss(embeddings, shown)
        losses = {"cells": cells, "content": of_content, "record": record}
        return Conditioned(
            mean=mean,
            noise_std=noise_std,
            unseen=unseen,
            others=torch.cat([support, unseen[:, c.queries :]], 1),
            foretold=cells + of_content + record,
            figures={name: float(loss.detach()) for name, loss in losses.items()},
        )

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[G, K, C, H, W] → mean clipped embedding [G, k]; embeddings that carry gradients."""
        c = self.config
        groups, count = images.shape[:2]
        grad = min(c.support_grad, count)
        first = clip(self.encoder(images[:, :grad].flatten(0, 1)).float(), c.clip_norm)
        with torch.no_grad():
            rest = clip(self.encoder(images[:, grad:].flatten(0, 1)).float(), c.clip_norm)
        both = torch.cat([first.view(groups, grad, -1), rest.view(groups, count - grad, -1)], 1)
        return both.mean(1), first


def train_hyper(
    config: HyperConfig, folder: Path, corpus: Corpus | None = None, command: str = ""
) -> Bundle:
    """Trains (or goes on training) encoder and hypernetwork; the bundle goes to `folder/bundle`.

    Args:
        config: the recipe.
        folder: checkpoint and `log.jsonl` go here.
        corpus: the public corpus; rendered or read from the cache when None.
        command: what was typed, for the record.

    Returns:
        The bundle.
    """
    corpus = corpus_module.open_corpus() if corpus is None else corpus
    torch.manual_seed(config.loop.seed)
    base = FAMILIES["unet-flow"].load(Path(config.base))
    base.prepare_training()
    base.model.requires_grad_(config.base_weight > 0)
    sites = base.sites()
    encoder_values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in config.encoder.items()
    }
    encoder = Encoder(EncoderConfig(image_shape=base.image_shape, **encoder_values))
    k = encoder.config.embed_dim
    hyper = Hypernetwork(
        HypernetworkConfig(embed_dim=k, **config.hypernetwork), describe_sites(base.model, sites)
    )
    rng = torch.Generator().manual_seed(config.loop.seed + 1)
    marginal = records(corpus, RowSampler(corpus, 0).draw(max(2048, 8 * config.cells), rng), rng)
    sampler = TaskSampler(corpus, 0, config.mix)
    foretell = Foretell(
        embed_dim=k,
        bottleneck=hyper.config.bottleneck,
        cells=config.cells,
        content=sampler.content_classes,
        images=marginal,
    )
    module = nn.ModuleDict({"encoder": encoder, "hypernetwork": hyper, "foretell": foretell})
    if config.start:
        load_average(Path(config.start), module)
    conditioning = Conditioning(config, sampler, encoder, hyper, foretell)
    workers = config.loop.workers
    # Hooks belong to a module: each worker needs modules of its own, over the same weights.
    bases = [base, *(_twin(base) for _ in range(workers - 1))]
    marginal_rows = RowSampler(corpus, 0)

    def foretell_step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        drawn = conditioning.draw(config.foretell_tasks // workers, rng, worker)
        return drawn.foretold, drawn.figures

    def step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        own, drawn = bases[worker], conditioning.draw(config.tasks // workers, rng, worker)
        with adapters(own.model, hyper(drawn.mean, drawn.noise_std)):
            queries = drawn.unseen[:, : config.queries]
            flow = own.adapter_loss(queries, drawn.others, rng).mean()
        loss = flow + config.foretell_weight * drawn.foretold
        figures = {"flow": float(flow.detach()), **drawn.figures}
        if config.base_weight > 0:
            rows = marginal_rows.draw(config.base_records // workers, rng)
            plain = own.loss(records(corpus, rows, rng), rng).mean()
            loss = loss + config.base_weight * plain
            figures["base"] = float(plain.detach())
        return loss, figures

    if config.foretell_steps:
        first = dataclasses.replace(
            config.loop, steps=config.foretell_steps, lr=config.foretell_lr, ema=0.99
        )
        Loop(first, module, foretell_step, folder / "foretell").run("foretelling")
    if config.base_weight > 0:
        module["base"] = base.model
    validation = Validation(
        corpus,
        base,
        encoder,
        hyper,
        mix=config.mix,
        support=config.support,
        clip_norm=config.clip_norm,
        lowest_noise=config.noise_low,
    )
    loop = Loop(config.loop, module, step, folder, validation, lr_scales={"base.": config.base_lr})
    loop.run("hypernetwork")
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
    training = {
        "recipe": dataclasses.asdict(config),
        "command": command,
        "commit": _commit(),
        "hardware": _hardware(),
        "seconds": round(loop.seconds),
        "curve": [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()],
    }
    return save_bundle(
        folder / "bundle",
        bundle_config,
        encoder=encoder,
        hypernetwork=hyper,
        base=base,
        training=training,
    )


def _twin(family: UNetFlow) -> UNetFlow:
    """The same base in modules of its own: weights are shared, hooks are not."""
    weights = {id(p): p for p in family.model.parameters()}
    return copy.deepcopy(family, dict(weights))


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    found = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


def _hardware() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{(models or [platform.processor()])[0]}, {torch.get_num_threads()} threads, {gpu}"
