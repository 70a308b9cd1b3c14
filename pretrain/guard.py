"""Makes the guard's calibration data: means of public tasks, training ones and held-out ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hyperdp.bundle import Bundle
from hyperdp.encoder import clip
from hyperdp.guard import Guard
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.foreign import draw_foreign
from hyperdp.pretrain.world import Tasks, World

Progress = Callable[[int, int], None]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """How many public tasks the guard knows.

    Attributes:
        reference: M, training tasks; calibration: N, held-out tasks; foreign: F, foreign sets.
        records: of each task.
        mix: how often each kind of task is drawn, by the world's own names.
        seed: of the draws.
    """

    reference: int = 600
    calibration: int = 1200
    foreign: int = 800
    records: int = 384
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMeans:
    """Means of public tasks.

    Attributes:
        means: float64 [T, k], of clipped embeddings.
        spectra: float64 [T, k], eigenvalues of the records' covariance, ascending.
        scatter: float64 [k, k], mean of the records' covariances, each scaled to trace 1.
    """

    means: Float
    spectra: Float
    scatter: Float


@torch.no_grad()
def task_means(
    bundle: Bundle,
    sampler: Tasks,
    count: int,
    records: int,
    rng: torch.Generator,
    progress: Progress | None = None,
) -> TaskMeans:
    """Draws public tasks and embeds them.

    Args:
        bundle: its encoder and clip norm.
        sampler: draws the tasks.
        count: T.
        records: of each task.
        rng: CPU generator.
        progress: called with (tasks done, T).
    """
    means, spectra = [], []
    k = bundle.config.embed_dim
    scatter = np.zeros((k, k))
    for index in range(count):
        images = fit(sampler.draw(1, records, rng)[0], bundle.config.image_shape)
        embedded = clip(bundle.encoder(images).float(), bundle.config.clip_norm)
        vectors = np.asarray(embedded.numpy(), dtype=np.float64)
        covariance = np.cov(vectors, rowvar=False)
        means.append(vectors.mean(0))
        spectra.append(np.maximum(np.linalg.eigvalsh(covariance), 0.0))
        scatter += covariance / max(float(np.trace(covariance)), 1e-12) / count
        if progress is not None:
            progress(index + 1, count)
    return TaskMeans(means=np.stack(means), spectra=np.stack(spectra), scatter=scatter)


@torch.no_grad()
def foreign_means(bundle: Bundle, config: GuardConfig) -> Float:
    """Mean clipped embeddings of foreign data, float64 [F, k]."""
    rng = torch.Generator().manual_seed(config.seed + 17)
    means = []
    for _ in range(config.foreign):
        images = draw_foreign(bundle.config.image_shape, config.records // 2, rng)
        embedded = clip(bundle.encoder(images).float(), bundle.config.clip_norm)
        means.append(embedded.mean(0).double().numpy())
    return np.stack(means)


def make_guard(
    bundle: Bundle, world: World, config: GuardConfig, progress: Progress | None = None
) -> Guard:
    """The guard of a bundle.

    Args:
        bundle: whose encoder embeds.
        world: public data that the bundle was trained on; its validation split gives the held-out
            tasks.
        config: see `GuardConfig`.
        progress: called with (tasks done, tasks in all).
    """
    total = config.reference + config.calibration
    parts = []
    for split, count in ((0, config.reference), (1, config.calibration)):
        before = split * config.reference

        def tell(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        rng = torch.Generator().manual_seed(2 * config.seed + split)
        sampler = world.tasks(split, config.mix)
        parts.append(task_means(bundle, sampler, count, config.records, rng, tell))
    reference, calibration = parts
    return Guard(
        bundle_hash=bundle.hash,
        clip_norm=float(bundle.config.clip_norm),
        records=config.records,
        reference=reference.means,
        foreign=foreign_means(bundle, config),
        calibration=calibration.means,
        spectra=calibration.spectra,
        scatter=reference.scatter,
    )
