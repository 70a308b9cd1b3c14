"""Public records at the size of the base model: the corpus is drawn small and grey."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images scaled to a base's size, grey ones repeated over its channels.

    Args:
        images: float32 [..., c, h, w] in [-1, 1], c being 1 or the base's.
        shape: (C, H, W) of a record of the base.

    Returns:
        float32 [..., C, H, W] in [-1, 1]; `images` itself where nothing has to change.
    """
    if tuple(images.shape[-3:]) == tuple(shape):
        return images
    channels, height, width = shape
    flat = images.reshape(-1, *images.shape[-3:])
    if flat.shape[-2:] != (height, width):
        flat = functional.interpolate(
            flat, (height, width), mode="bilinear", antialias=True, align_corners=False
        ).clamp(-1, 1)
    return flat.expand(-1, channels, -1, -1).reshape(*images.shape[:-3], *shape)
