"""Non-private fine-tuning: by LoRA, the reference of the recovered gain, and of all weights.

It is **not differentially private**: every record is read many times and no noise is added. Its
output carries no certificate and must never be published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from hyperdp.compute import device_of
from hyperdp.errors import UsageError
from hyperdp.family import Family
from hyperdp.lora import LoraSite, Weights, adapters

Progress = Callable[[int, int], None]
POOL = 128  # records behind the posterior mean of the loss
CHECK_EVERY = 100  # steps between looks at whether training still helps
LOOKED_AT = 128  # of its own records
TOLERANCE = 1.05  # of the loss at the start, for what a few steps more or less do
SLOWER = 0.5  # factor on the learning rate of a run that did not
MOST_TRIES = 4


class Tunable(Protocol):
    """A base model, of images or of documents, as far as adapters of it are trained."""

    @property
    def model(self) -> nn.Module:
        """Its network."""

    def adapter_loss(self, images: Tensor, pool: Tensor, rng: torch.Generator) -> Tensor:
        """Per-record loss that adapters are trained with, [G, b, …] and [G, K, …] → [G·b]."""


class DivergedError(ArithmeticError):
    """Training made an adapter worse on its own records than no adapter is."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How long and how fast; chosen on public tasks, the same for every private set.

    Attributes:
        rank: r of the adapter.
        steps, batch_size, lr: AdamW with linear warm-up over 5 % and cosine to 5 %.
        ema: decay of the weight average that is returned.
        bf16: bfloat16 autocast of the forward pass.
    """

    rank: int = 8
    steps: int = 800
    batch_size: int = 64
    lr: float = 2e-3
    ema: float = 0.99
    bf16: bool = True


def fresh_adapter(
    sites: list[LoraSite], rank: int, rng: torch.Generator, groups: int = 1
) -> Weights:
    """The standard start of LoRA: A uniform as `nn.Linear`'s, B zero; leaf tensors with gradients.

    Args:
        sites: where the adapter goes.
        rank: r.
        rng: CPU generator.
        groups: G adapters, all with the same start.
    """
    weights: Weights = {}
    for site in sites:
        bound = 1 / math.sqrt(math.prod(site.a_shape))
        a = (torch.rand(rank, *site.a_shape, generator=rng) * 2 - 1) * bound
        weights[site.name] = (
            a.expand(groups, *a.shape).clone().requires_grad_(),
            torch.zeros(groups, site.out_features, rank, requires_grad=True),
        )
    return weights


def finetune_lora(
    family: Tunable,
    sites: list[LoraSite],
    images: Tensor,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    start: Weights | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Trains one adapter on the records without any privacy.

    Where a learning rate is too high for the records, so that the adapter serves them worse than it
    did at the start, the run begins again at half of it: a reference that diverged would make every
    gain measured against it meaningless. It looks at the records that it trains on and no others.

    Args:
        family: the base model; its own weights stay as they are.
        sites: where the adapter goes.
        images: float32 [n, C, H, W] in [-1, 1], or tokens int64 [n, L].
        config: see `FinetuneConfig`.
        seed: of start, batches, times and noise.
        start: an adapter to begin with; the standard start when None.
        progress: called with (steps done, steps).

    Returns:
        The averaged adapter, A [1, r, in, …] and B [1, out, r], detached.

    Raises:
        UsageError: there are no records.
        DivergedError: it did so at every rate tried.
    """
    _check_some(images)
    looked_at = images[None, :LOOKED_AT]  # [1, b, …]

    @torch.no_grad()
    def own_loss(weights: Weights) -> float:
        with adapters(family.model, weights):
            loss = family.adapter_loss(looked_at, looked_at, torch.Generator().manual_seed(0))
        return float(loss.mean())

    for tried in range(MOST_TRIES):
        rng = torch.Generator().manual_seed(seed)
        begin = fresh_adapter(sites, config.rank, rng) if start is None else start
        before = own_loss(begin)

        def draw(count: int, rng: torch.Generator = rng) -> Tensor:
            return images[torch.randint(len(images), (1, count), generator=rng)]

        def watch(weights: Weights, before: float = before) -> None:
            if not own_loss(weights) <= TOLERANCE * before:
                raise DivergedError

        slower = replace(config, lr=config.lr * SLOWER**tried)
        try:
            return train_adapters(family, begin, draw, slower, rng, watch=watch, progress=progress)
        except DivergedError:
            continue
    raise DivergedError(f"diverged at every learning rate from {config.lr:g} to {slower.lr:g}")


def train_adapters(
    family: Tunable,
    start: Weights,
    draw: Callable[[int], Tensor],
    config: FinetuneConfig,
    rng: torch.Generator,
    *,
    watch: Callable[[Weights], None] | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Trains G adapters side by side, each on records of its own and without any privacy.

    Args:
        family: the base model; its own weights stay as they are.
        start: the adapters to begin with, A [G, r, in, …] and B [G, out, r]; an A of one group is
            given to every group.
        draw: a number of records → that many for each group, float32 [G, count, C, H, W].
        config: see `FinetuneConfig`; the batch is that of one group.
        rng: of times and noise.
        watch: called with the averaged adapters every `CHECK_EVERY` steps and at the end.
        progress: called with (steps done, steps).

    Returns:
        The averaged adapters, A [G, r, in, …] and B [G, out, r], detached, on the CPU. Each is what
        it would be without the others, but for the draw of times and noise.
    """
    groups = max(len(b) for _, b in start.values())
    family.model.requires_grad_(False)
    device = device_of(family.model)
    weights = {
        name: (
            a.detach().to(device).expand(groups, *a.shape[1:]).clone().requires_grad_(),
            b.detach().to(device, copy=True).requires_grad_(),
        )
        for name, (a, b) in start.items()
    }
    params = [p for pair in weights.values() for p in pair]
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=0.0, fused=True)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = _rate(config, step)
        batch, pool = torch.split(
            draw(config.batch_size + POOL), [config.batch_size, POOL], 1
        )  # [G, b, …], [G, K, …]
        with (
            adapters(family.model, weights),
            torch.autocast(device.type, torch.bfloat16, enabled=config.bf16),
        ):
            loss = family.adapter_loss(batch, pool, rng).view(groups, -1).mean(1).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _clip_gradients(params, 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        done = step + 1
        if watch is not None and (done % CHECK_EVERY == 0 or done == config.steps):
            watch(_named(average, weights))
        if progress is not None:
            progress(done, config.steps)
    return _named([mean.cpu() for mean in average], weights)


def _named(tensors: list[Tensor], like: Weights) -> Weights:
    """A and B of every site, in the order of `like`."""
    flat = iter(tensors)
    return {name: (next(flat), next(flat)) for name in like}


def finetune_all(
    family: Family,
    images: Tensor,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Family:
    """Trains every weight of a base model on the records, by the loss that adapters have.

    Args:
        family: the base model; its weights become the averaged ones.
        images: float32 [n, C, H, W] in [-1, 1].
        config: see `FinetuneConfig`; its rank says nothing here.
        seed: of batches, times and noise.
        progress: called with (steps done, steps).

    Returns:
        `family`, frozen.

    Raises:
        UsageError: there are no records.
    """
    _check_some(images)
    rng = torch.Generator().manual_seed(seed)
    params = list(family.model.requires_grad_(True).parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=0.0, fused=True)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = _rate(config, step)
        drawn = torch.randint(len(images), (1, config.batch_size + POOL), generator=rng)
        batch, pool = torch.split(images[drawn], [config.batch_size, POOL], 1)
        with torch.autocast(params[0].device.type, torch.bfloat16, enabled=config.bf16):
            loss = family.adapter_loss(batch, pool, rng).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        if progress is not None:
            progress(step + 1, config.steps)
    with torch.no_grad():
        for param, mean in zip(params, average, strict=True):
            param.copy_(mean)
    family.model.requires_grad_(False)
    return family


def _check_some(images: Tensor) -> None:
    if len(images) == 0:
        raise UsageError(expected="at least one record", found="none", todo="Give some data.")


def _rate(config: FinetuneConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up over 5 %, cosine to 5 %."""
    warmup = max(1, config.steps // 20)
    part = max(0, step - warmup) / max(1, config.steps - warmup)
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part))
    return config.lr * min(1.0, (step + 1) / warmup) * cosine


def _clip_gradients(params: list[Tensor], bound: float) -> None:
    """Scales each group's gradient, over all [G, …] tensors, to a norm of at most `bound`."""
    grads = [p.grad for p in params if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)  # [G]
    scale = (bound / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
