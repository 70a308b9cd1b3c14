"""One method on one private set, from records to images: what bench and demo are made of."""

from __future__ import annotations

import copy
import secrets
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.compute import one_thread
from hyperdp.errors import UsageError
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights, adapters, describe_sites, merged, pick
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import (
    FinetuneConfig,
    finetune_lora,
    fresh_adapter,
    train_adapters,
)
from hyperdp.private.records import Record
from hyperdp.private.release import Release, release
from hyperdp.private.release_bundle import ReleaseBundle

Progress = Callable[[int, int], None]
CONTROLS = ("public_mean", "other_task")
PARTS = 4  # that a draw is made in, whatever the number of cores: each has its own seed
CONTROL_NOISE_STD = 5e-4  # a public mean has no noise: the lowest level that ρ has seen


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are drawn for a measure; the same for every method of a table.

    Attributes:
        count: images.
        steps: Euler steps.
        batch_size: images at once.
        bf16: bfloat16 autocast; faster, and the same for every method.
    """

    count: int = 1000
    steps: int = 24
    batch_size: int = 100
    bf16: bool = True


def draw_images(
    bundle: Bundle,
    weights: Weights,
    config: SamplingConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Images of one adapter, in parts side by side, one operator thread each.

    Args:
        bundle: its base model.
        weights: one adapter (`pick`), or {} for the base model as it is.
        config: see `SamplingConfig`.
        seed: of the starting noise.
        progress: called with (images done, count).

    Returns:
        float32 [count, C, H, W] in [-1, 1].
    """
    base = bundle.base
    if config.count == 0:
        return torch.empty(0, *base.image_shape)
    device = next(base.model.parameters()).device.type
    done: dict[int, int] = {}

    def part(worker: int, count: int) -> Tensor:
        def tell(drawn: int, _: int) -> None:
            done[worker] = drawn
            if progress is not None:
                progress(sum(done.values()), config.count)

        own = copy.copy(base)
        own.scheduler = copy.deepcopy(base.scheduler)  # it counts its steps
        with torch.autocast(device, torch.bfloat16, enabled=config.bf16):
            return own.sample(
                count,
                seed=seed * PARTS + worker,
                steps=config.steps,
                batch_size=config.batch_size,
                progress=tell,
            ).float()

    counts = [config.count // PARTS + (w < config.count % PARTS) for w in range(PARTS)]
    counts = counts[: min(PARTS, config.count)]  # a part without an image draws nothing
    with (
        merged(base.model, weights),
        one_thread() as threads,
        ThreadPoolExecutor(min(threads, PARTS)) as pool,
    ):
        return torch.cat(list(pool.map(part, range(len(counts)), counts)))


@torch.no_grad()
def held_out_loss(bundle: Bundle, weights: Weights, images: Tensor, *, count: int = 512) -> float:
    """The base model's own loss on records that were not trained on, at fixed times and noise.

    Args:
        bundle: its base model.
        weights: one adapter, or {}.
        images: float32 [N, C, H, W]; the first `count` of them are used.
        count: number of records.
    """
    rng = torch.Generator().manual_seed(0)
    losses = []
    with adapters(bundle.base.model, weights):
        for part in torch.split(images[:count], 64):
            losses.append(bundle.base.loss(part, rng))
    return float(torch.cat(losses).mean())


def control_weights(bundle: Bundle, name: str, *, noise_std: float = CONTROL_NOISE_STD) -> Weights:
    """The adapter of a control, which has seen no private data.

    Args:
        bundle: holds both means.
        name: `public_mean` (what one shared LoRA gives) or `other_task`.
        noise_std: the noise level that ρ is told; a release's own makes the two comparable.

    Raises:
        UsageError: another name.
    """
    means = {"public_mean": bundle.public_mean, "other_task": bundle.other_task_mean}
    if name not in means:
        raise UsageError(expected=f"a control: {', '.join(means)}", found=name, todo="Choose one.")
    level = torch.full((1,), noise_std)
    return pick(adapter_weights(bundle, means[name][None], level), 0)


def to_records(
    images: Tensor, labels: Tensor | None = None, classes: Sequence[str] | None = None
) -> list[Record]:
    """Image tensors as the records that a reader would yield.

    Args:
        images: float32 [n, C, H, W] in [-1, 1].
        labels: int64 [n], indices into `classes`.
        classes: names.
    """
    arrays = images.numpy().astype(np.float32)
    if labels is None or classes is None:
        return [Record(image=image) for image in arrays]
    return [
        Record(image=image, label=classes[int(label)])
        for image, label in zip(arrays, labels, strict=True)
    ]


def release_once(
    bundle: ReleaseBundle,
    images: Tensor,
    budget: PrivacyBudget,
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Release:
    """One release by the real code path, with a ledger of its own.

    Args:
        bundle: its encoder.
        images: float32 [n, C, H, W], the private records.
        budget: what is spent.
        labels: int64 [n], for a labelled release.
        classes: public names of all classes, for a labelled release.
        folder: keeps `release/` and `ledger.db`; a temporary folder when None.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) if folder is None else folder
        return release(
            to_records(images, labels, classes),
            bundle=bundle,
            budget=budget,
            ledger=Ledger(place / "ledger.db"),
            out=place / "release",
            dataset=f"study {secrets.token_hex(16)}",  # a dataset has one ledger, and this is new
            classes=classes,
        )


def released_weights(bundle: Bundle, made: Release) -> Weights:
    """The adapters of a release, one for each class: A [1, r, in, …] and B [L, out, r]."""
    return adapter_weights(bundle, made.mean(), made.mean_noise_std())


def lora_weights(
    bundle: Bundle,
    images: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """Non-private LoRA on the records, by the bundle's sites: the reference, not private."""
    family = bundle.load_base()
    family.prepare_training()
    sites = describe_sites(family.model, bundle.config.sites)
    return finetune_lora(family, sites, images, config, seed=seed, progress=progress)


def class_lora_weights(
    bundle: Bundle,
    images: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """Non-private LoRA on the records of each class, all classes side by side: not private.

    Args:
        bundle: its base model and sites.
        images: float32 [n, C, H, W], the private records.
        labels: int64 [n] in 0 … L - 1; every class occurs.
        config: see `FinetuneConfig`; the batch is that of one class.
        seed: of start, batches, times and noise.
        progress: called with (steps done, steps).

    Returns:
        L adapters, A [L, r, in, …] and B [L, out, r].
    """
    family = bundle.load_base()
    family.prepare_training()
    rng = torch.Generator().manual_seed(seed)
    pools = [images[labels == c] for c in range(int(labels.max()) + 1)]

    def draw(count: int) -> Tensor:
        return torch.stack([p[torch.randint(len(p), (count,), generator=rng)] for p in pools])

    sites = describe_sites(family.model, bundle.config.sites)
    start = fresh_adapter(sites, config.rank, rng, groups=len(pools))
    return train_adapters(family, start, draw, config, rng, progress=progress)
