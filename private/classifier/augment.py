"""The K views of an image whose gradients are averaged before clipping."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def draw_views(
    images: Tensor, *, multiplicity: int, pad: int, flip: bool, rng: torch.Generator
) -> Tensor:
    """Random crops of each image out of its reflected margin, mirrored half of the time.

    Args:
        images: float32 [B, C, H, W].
        multiplicity: K; 0 gives the image itself as its only view.
        pad: pixels of margin on each side.
        flip: whether a view may be mirrored left to right.
        rng: CPU generator.

    Returns:
        float32 [B, max(K, 1), C, H, W], a function of its own image and of the draws alone.
    """
    if multiplicity == 0:
        return images[:, None]
    count, channels, height, width = images.shape
    padded = functional.pad(images, (pad,) * 4, mode="reflect") if pad else images
    shape = (count, multiplicity, 1)
    top, left = (torch.randint(2 * pad + 1, shape, generator=rng) for _ in range(2))
    rows = top + torch.arange(height)  # [B, K, H]
    columns = left + torch.arange(width)  # [B, K, W]
    if flip:
        mirrored = torch.rand(shape, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(2), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, None, :, None, None]
    return padded[index, channel, rows[:, :, None, :, None], columns[:, :, None, None, :]]
