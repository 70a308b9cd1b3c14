"""Exact per-example gradients of lora_A and lora_B, by making every example a group of its own.

`hyperdp.lora.adapters` runs G adapters in one forward pass. With one copy of the adapter for each
example, the gradient of the summed loss by copy i is the gradient of example i's loss, and nothing
is approximated. The base model stays frozen, so its own weights need no gradients at all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyperdp.compute import device_of
from hyperdp.errors import UsageError
from hyperdp.lora import Weights, adapters
from hyperdp.private.finetune import Tunable
from hyperdp.private.learners.step_rule import PerExample


def per_example_gradients(
    model: nn.Module,
    weights: Weights,
    loss: Callable[[], Tensor],
    *,
    examples: int,
    wrt_a: bool = True,
) -> PerExample:
    """Gradients of each example's own loss.

    Args:
        model: the base model, frozen; it must not mix examples (no batch norm in training mode).
        weights: one adapter, A [1, r, in, …] and B [1, out, r].
        loss: runs the model on B·b records, the b of an example side by side, and returns their
            losses, [B·b]; an example's loss is the mean over its b.
        examples: B.
        wrt_a: whether gradients by lora_A are wanted; without them [B, 0] stands in their place.

    Returns:
        Site name → (gA [B, r, in, …], gB [B, out, r]), detached, where the weights lie; not finite
        where the loss was not.

    Raises:
        UsageError: `loss` does not return one number for each record.
    """
    copies: Weights = {}
    place = device_of(model)
    for name, (a, b) in weights.items():
        one_a, one_b = a.detach().to(place), b.detach().to(place)
        if wrt_a:
            one_a = one_a.expand(examples, *a.shape[1:]).requires_grad_()
        copies[name] = (one_a, one_b.expand(examples, *b.shape[1:]).requires_grad_())
    with torch.enable_grad():
        with adapters(model, copies):
            losses = loss()
        if losses.dim() != 1 or len(losses) % examples:
            raise UsageError(
                expected=f"a loss for each record of {examples} examples, in one dimension",
                found=f"shape {tuple(losses.shape)}",
                todo="Do not average over the batch: one example would scale another's gradient.",
            )
        total = losses.view(examples, -1).mean(1).sum()
        leaves = [p for pair in copies.values() for p in pair if p.requires_grad]
        found = iter(torch.autograd.grad(total, leaves))
    absent = torch.zeros(examples, 0)
    return {
        name: ((next(found) if wrt_a else absent).to(b.device), next(found).to(b.device))
        for name, (_, b) in weights.items()
    }


def record_losses(family: Tunable, images: Tensor, draws: int, rng: torch.Generator) -> Tensor:
    """The family's loss of each record, at several times and noises of its own.

    Several draws a record lower the variance of its gradient and cost no privacy (noise
    multiplicity, Dockhorn et al. 2023, arXiv 2210.09929). Without a pool the family's
    `adapter_loss` is a function of each record alone.

    Args:
        family: the base model.
        images: float32 [B, C, H, W], or documents int64 [B, L].
        draws: b, times and noises for each record.
        rng: CPU generator.

    Returns:
        float32 [B·b], the b of a record side by side.
    """
    groups = images[:, None].expand(-1, draws, *images.shape[1:]).contiguous()  # [B, b, …]
    nothing = images.new_empty(len(images), 0, *images.shape[1:])
    return family.adapter_loss(groups, nothing, rng)
