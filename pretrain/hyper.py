"""Trains encoder and hypernetwork end to end on meta-tasks, through the base model's own loss."""

from __future__ import annotations

import copy
import dataclasses
import math
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.bundle import Bundle, BundleConfig, save_bundle
from hyperdp.encoder import Encoder, EncoderConfig, clip
from hyperdp.family import FAMILIES, UNetFlow
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, describe_sites
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.base import RowSampler, records
from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.loop import Loop, LoopConfig
from hyperdp.pretrain.tasks import TaskMix, TaskPool, TaskSampler


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
        codebook: size of the k-means codebook whose cells the code must foretell for unseen records
            of the task.
        codebook_weight: weight of that auxiliary cross entropy.
        clip_norm: C.
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
    codebook: int = 512
    codebook_weight: float = 0.02
    clip_norm: float = 1.0
    sampling_steps: int = 24
    encoder: dict[str, Any] = field(default_factory=dict)
    hypernetwork: dict[str, Any] = field(default_factory=dict)
    mix: TaskMix = field(default_factory=TaskMix)


class Codebook(nn.Module):
    """k-means cells of drawn records, and a head that foretells the task's cells from the code."""

    def __init__(self, bottleneck: int, cells: int, images: Tensor) -> None:
        super().__init__()
        pixels = functional.avg_pool2d(images, 2).flatten(1).numpy()
        kmeans = faiss.Kmeans(
            pixels.shape[1], cells, niter=12, seed=0, verbose=False, min_points_per_centroid=1
        )
        kmeans.train(np.ascontiguousarray(pixels))
        self.register_buffer("centroids", torch.from_numpy(np.array(kmeans.centroids)))
        self.head = nn.Sequential(nn.Linear(bottleneck, 256), nn.SiLU(), nn.Linear(256, cells))

    def loss(self, code: Tensor, images: Tensor) -> Tensor:
        """Cross entropy of the cells of `images` [G, N, C, H, W] given `code` [G, d]."""
        groups, count = images.shape[:2]
        pixels = functional.avg_pool2d(images.flatten(0, 1), 2).flatten(1)
        cell = torch.cdist(pixels, self.centroids).argmin(1).view(groups, count)  # type: ignore[arg-type]
        log_p = functional.log_softmax(self.head(code).float(), 1)  # [G, cells]
        return -log_p.gather(1, cell).mean()


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
    base.model.requires_grad_(False)
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
    marginal = records(corpus, RowSampler(corpus, 0).draw(max(2048, 8 * config.codebook), rng), rng)
    codebook = Codebook(hyper.config.bottleneck, config.codebook, marginal)
    module = nn.ModuleDict({"encoder": encoder, "hypernetwork": hyper, "codebook": codebook})
    sampler = TaskSampler(corpus, 0, config.mix)
    workers = config.loop.workers
    pools = [
        TaskPool(
            sampler,
            size=config.pool // workers,
            fresh=max(1, config.fresh // workers),
            records=config.support + max(config.queries, 32),
        )
        for _ in range(workers)
    ]
    # Hooks belong to a module: each worker needs a base model of its own.
    bases = [base, *(copy.deepcopy(base) for _ in range(workers - 1))]

    def embed(images: Tensor) -> Tensor:
        """Mean clipped embedding, [G, K, C, H, W] → [G, k]; the first records carry gradients."""
        groups, count = images.shape[:2]
        grad = min(config.support_grad, count)
        first = clip(encoder(images[:, :grad].flatten(0, 1)).float(), config.clip_norm).view(
            groups, grad, k
        )
        with torch.no_grad():
            rest = clip(encoder(images[:, grad:].flatten(0, 1)).float(), config.clip_norm).view(
                groups, -1, k
            )
        return torch.cat([first, rest], 1).mean(1)

    def step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        tasks = config.tasks // workers
        images = pools[worker].draw(tasks, rng)
        support, unseen = images[:, : config.support], images[:, config.support :]
        low, high = math.log(config.noise_low), math.log(config.noise_high)
        noise_std = torch.exp(torch.rand(tasks, generator=rng) * (high - low) + low)  # [G]
        mean = embed(support)
        mean = mean + noise_std[:, None] * torch.randn(mean.shape, generator=rng)
        weights = hyper(mean, noise_std)
        queries = unseen[:, : config.queries].flatten(0, 1)
        with adapters(bases[worker].model, weights):
            flow = bases[worker].loss(queries, rng).mean()
        cells = codebook.loss(hyper.code(mean, noise_std), unseen)
        return flow + config.codebook_weight * cells, {
            "flow": float(flow.detach()),
            "cells": float(cells.detach()),
        }

    validation = Validation(config, corpus, base, encoder, hyper)
    loop = Loop(config.loop, module, step, folder, validation)
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
        "curve": (folder / "log.jsonl").read_text().splitlines(),
    }
    return save_bundle(
        folder / "bundle",
        bundle_config,
        encoder=encoder,
        hypernetwork=hyper,
        base=base,
        training=training,
    )


class Validation:
    """The validation line: loss on held-out tasks under ρ(z) and under the two controls."""

    def __init__(
        self,
        config: HyperConfig,
        corpus: Corpus,
        base: UNetFlow,
        encoder: Encoder,
        hyper: Hypernetwork,
        *, tasks: int = 32, queries: int = 8, noise_std: float = 0.015,
    ) -> None:  # fmt: skip
        self.config, self.base, self.encoder, self.hyper = config, base, encoder, hyper
        self.queries, self.noise_std = queries, noise_std
        rng = torch.Generator().manual_seed(7)
        mix = dataclasses.replace(config.mix, everything=0.0)
        self.images = TaskSampler(corpus, 1, mix).draw(tasks, config.support + queries, rng)
        self.marginal = records(corpus, RowSampler(corpus, 0).draw(2048, rng), rng)

    @torch.no_grad()
    def public_mean(self) -> Tensor:
        """Mean clipped embedding of the training corpus, float32 [k]."""
        parts = [
            clip(self.encoder(part).float(), self.config.clip_norm)
            for part in torch.split(self.marginal, 256)
        ]
        return torch.cat(parts).mean(0)

    @torch.no_grad()
    def task_means(self) -> Tensor:
        """Mean clipped embedding of each validation task, float32 [T, k]."""
        support = self.images[:, : self.config.support]
        return torch.stack(
            [clip(self.encoder(task).float(), self.config.clip_norm).mean(0) for task in support]
        )

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Figures `val_base`, `val_public_mean`, `val_other_task`, `val_hyper`."""
        tasks = len(self.images)
        queries = self.images[:, self.config.support :].flatten(0, 1)
        means = self.task_means()
        rng = torch.Generator().manual_seed(8)
        noisy = means + self.noise_std * torch.randn(means.shape, generator=rng)
        level = torch.full((tasks,), self.noise_std)
        public = self.public_mean().expand(tasks, -1)
        s = torch.sigmoid(torch.randn(len(queries), generator=rng))
        noise = torch.randn(queries.shape, generator=rng)

        def loss(mean: Tensor | None, noise_level: Tensor) -> float:
            values = []
            for start in range(0, tasks, 8):
                part = slice(start * self.queries, (start + 8) * self.queries)
                weights = (
                    {}
                    if mean is None
                    else self.hyper(mean[start : start + 8], noise_level[start : start + 8])
                )
                with adapters(self.base.model, weights):
                    values.append(self.base.loss_at(queries[part], s[part], noise[part]).mean())
            return float(torch.stack(values).mean())

        return {
            "val_base": loss(None, level),
            "val_public_mean": loss(public, torch.full((tasks,), self.config.noise_low)),
            "val_other_task": loss(noisy.roll(1, 0), level),
            "val_hyper": loss(noisy, level),
        }


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
