"""Non-private LoRA fine-tuning: the reference that the recovered gain is measured against.

It is **not differentially private**: every record is read many times and no noise is added. Its
output carries no certificate and must never be published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.family import Family
from hyperdp.lora import LoraSite, Weights, adapters

Progress = Callable[[int, int], None]
POOL = 128  # records behind the posterior mean of the loss


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
    family: Family,
    sites: list[LoraSite],
    images: Tensor,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    start: Weights | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Trains one adapter on the records without any privacy.

    Args:
        family: the base model; its own weights stay as they are.
        sites: where the adapter goes.
        images: float32 [n, C, H, W] in [-1, 1].
        config: see `FinetuneConfig`.
        seed: of start, batches, times and noise.
        start: an adapter to begin with; the standard start when None.
        progress: called with (steps done, steps).

    Returns:
        The averaged adapter, A [1, r, in, …] and B [1, out, r], detached.

    Raises:
        UsageError: there are no records.
    """
    if len(images) == 0:
        raise UsageError(expected="at least one record", found="none", todo="Give some data.")
    rng = torch.Generator().manual_seed(seed)
    family.model.requires_grad_(False)
    if start is None:
        weights = fresh_adapter(sites, config.rank, rng)
    else:
        weights = {n: (a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_())
                   for n, (a, b) in start.items()}  # fmt: skip
    params = [p for pair in weights.values() for p in pair]
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=0.0, fused=True)
    device = params[0].device.type
    warmup = max(1, config.steps // 20)
    for step in range(config.steps):
        part = max(0, step - warmup) / max(1, config.steps - warmup)
        lr = (
            config.lr
            * min(1.0, (step + 1) / warmup)
            * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))
        )
        optimizer.param_groups[0]["lr"] = lr
        drawn = torch.randint(len(images), (config.batch_size + POOL,), generator=rng)
        batch, pool = torch.split(images[drawn], [config.batch_size, POOL])
        with (
            adapters(family.model, weights),
            torch.autocast(device, torch.bfloat16, enabled=config.bf16),
        ):
            loss = family.adapter_loss(batch[None], pool[None], rng).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        if progress is not None:
            progress(step + 1, config.steps)
    flat = iter(average)
    return {name: (next(flat), next(flat)) for name in weights}
