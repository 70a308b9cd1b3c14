"""Image tensors on disk: one file an image, and grids for people to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor


def to_uint8(images: Tensor) -> npt.NDArray[np.uint8]:
    """Float [N, C, H, W] in [-1, 1] → uint8 [N, H, W, C]."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_images(images: Tensor, folder: Path) -> None:
    """Writes `00000.png`, `00001.png`, … losslessly.

    Args:
        images: float [N, C, H, W] in [-1, 1], C 1 or 3.
        folder: made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(to_uint8(images)):
        _picture(pixels).save(folder / f"{index:05d}.png")


def grid_picture(images: Tensor, *, columns: int | None = None, zoom: int = 2) -> Image.Image:
    """Images side by side as one picture.

    Args:
        images: float [N, C, H, W] in [-1, 1].
        columns: images in a row; the nearest to a square when None.
        zoom: whole-number enlargement.

    Returns:
        The picture, in memory alone: private images need not touch a disk to be looked at.
    """
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    sheet[:count] = pixels
    sheet = sheet.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    whole = sheet.reshape(rows * height, columns * width, channels)
    return _picture(whole.repeat(zoom, 0).repeat(zoom, 1))


def save_grid(images: Tensor, path: Path, *, columns: int | None = None, zoom: int = 2) -> None:
    """Writes `grid_picture` to a `.png` file.

    Args:
        images: float [N, C, H, W] in [-1, 1].
        path: the file; its folder is made where it is missing.
        columns: see `grid_picture`.
        zoom: see `grid_picture`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    grid_picture(images, columns=columns, zoom=zoom).save(path)
