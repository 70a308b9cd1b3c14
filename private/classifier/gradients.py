"""Per-example gradients, and their clipped sum on an integer lattice."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

Params = Mapping[str, Tensor]

BOUND = 2**20  # the clip norm C, in lattice steps: sums of fewer than 2³³ units are exact
_MARGIN = 1 - 2.0**-20  # above what rounding in float32 can add to a norm


def per_example_gradients(
    model: nn.Module, params: Params, views: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The gradient of each example: of the mean cross-entropy over its K views.

    An example's gradient is the same to the bit whatever the others are, as long as B is the same.
    The mean over views is taken inside, so clipping what comes back bounds what one example does
    (De et al. 2022, section 4.2): K views cost no more privacy than one.

    Args:
        model: its forward pass treats every image by itself.
        params: name → weights.
        views: float32 [B, K, C, H, W].
        labels: int64 [B].

    Returns:
        Name → float32 [B, *shape].
    """

    def loss(weights: Params, images: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, dict(weights), (images,))  # [K, L]
        return functional.cross_entropy(logits, label.expand(len(images)))

    found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(params, views, labels)
    return found


def clip_to_steps(grads: Mapping[str, Tensor], clip_norm: float) -> Tensor:
    """Clip each example's gradient and round it toward zero onto steps of C / 2²⁰.

    On integers neither the order of a sum nor the number of its parts can change it, so adding or
    removing one example moves it by at most `BOUND`, exactly (compare docs/privacy.md, lemma 1).

    Args:
        grads: name → float32 [B, *shape].
        clip_norm: C.

    Returns:
        Integers held in float32 [B, P], each row's Euclidean norm at most `BOUND`. A row that was
        not finite, or that would exceed the bound, is zero: an error would reveal the example.
    """
    flat = torch.cat([g.flatten(1) for g in grads.values()], dim=1)  # [B, P]
    finite = flat.isfinite().all(1, keepdim=True)
    flat = torch.where(finite, flat, 0.0)
    norms = flat.double().square().sum(1, keepdim=True).sqrt()  # no float32 overflows when squared
    scale = _MARGIN * BOUND / norms.clamp(min=clip_norm)
    steps = torch.trunc(flat.double() * scale).float()  # below 2²⁰: exact in float32
    inside = steps.double().square().sum(1, keepdim=True) <= float(BOUND) ** 2  # exact below 2⁵³
    return torch.where(inside, steps, 0.0)


def unflatten(vector: Tensor, params: Params) -> dict[str, Tensor]:
    """One gradient [P] as name → tensor, in the order of `params`."""
    parts = torch.split(vector, [math.prod(p.shape) for p in params.values()])
    return {name: part.view(p.shape) for part, (name, p) in zip(parts, params.items(), strict=True)}
