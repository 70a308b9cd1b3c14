"""Variations of images by the base model: noised part of the way, and denoised again.

SDEdit (Meng et al. 2022, arXiv 2108.01073), for a flow-matching base. Reads generated images only.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.family import UNetFlow


@torch.no_grad()
def vary(
    family: UNetFlow,
    images: Tensor,
    *,
    strength: float,
    steps: int,
    batch_size: int,
    rng: torch.Generator,
) -> Tensor:
    """One variation of each image.

    x_s = (1 - s) x + s ε at s = strength, then Euler steps of dx/ds = v from there down to 0.

    Args:
        family: the base model.
        images: float32 [N, C, H, W] in [-1, 1].
        strength: s in (0, 1]; 1 forgets the image.
        steps: Euler steps from s = 1; a share of them is taken.
        batch_size: images at once.
        rng: CPU generator of the noise; public, it protects nothing.

    Returns:
        float32 [N, C, H, W] in [-1, 1], on the CPU.

    Raises:
        UsageError: a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise UsageError(
            expected="a strength 0 < s <= 1", found=f"{strength!r}", todo="Correct that."
        )
    device = next(family.model.parameters()).device
    times = torch.linspace(strength, 0.0, max(1, round(strength * steps)) + 1).tolist()
    varied = []
    for part in torch.split(images, batch_size):
        noise = torch.randn(part.shape, generator=rng)
        x = ((1 - strength) * part + strength * noise).to(device)
        for s, following in pairwise(times):
            velocity = family.model(x, x.new_full((len(x),), 1000 * s)).sample
            x = x + (following - s) * velocity
        varied.append(x.clamp(-1, 1).float().cpu())
    return torch.cat(varied) if varied else images.clone()
