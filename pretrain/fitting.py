"""Public records at the size of the base model: the corpus is drawn small and grey."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hyperdp.errors import UsageError
from hyperdp.pretrain.world import GlyphWorld, World


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


def check_fits(world: World, shape: tuple[int, int, int]) -> None:
    """Refuses public records that cannot stand for what a base draws.

    Args:
        world: glyphs, which are drawn small and grey, or images of one's own, which have the base's
            size, as private images are brought to it in one step.
        shape: (C, H, W) of a record of the base.

    Raises:
        UsageError: they have other channels, or are of a corpus of another size.
    """
    found = tuple(world.records(1, 0, torch.Generator().manual_seed(0)).shape[1:])
    sized = isinstance(world, GlyphWorld) or found[1:] == shape[1:]
    if not sized or found[0] not in (1, shape[0]):
        raise UsageError(
            expected=f"public images of the base's own shape, {shape[0]} × {shape[1]} × {shape[2]}",
            found=" × ".join(str(size) for size in found),
            todo=f"Gather them with --size {shape[1]} --channels {shape[0]}.",
        )
