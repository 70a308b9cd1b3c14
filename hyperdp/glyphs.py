"""The image format of the glyph world: how one character becomes one grey image.

The format is MNIST's (LeCun et al. 1998): white ink on black, the ink's bounding box scaled so that
its longer side is 20 pixels, the centre of mass moved to the centre of a 28×28 image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CANVAS = 48
CANVAS_BOX = 36
IMAGE_SIZE = 28
IMAGE_BOX = 20
_POINT_SIZE = 64

UInt8Image = npt.NDArray[np.uint8]
Float32Image = npt.NDArray[np.float32]


@lru_cache(maxsize=8)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, _POINT_SIZE)


def render_glyph(font_path: str, char: str) -> UInt8Image | None:
    """Draws one character, its ink box fitted to 36 pixels and centred on a 48×48 canvas.

    Args:
        font_path: a TrueType or OpenType file.
        char: one character.

    Returns:
        uint8 [48, 48], 255 = ink; None where the font draws nothing for the character.
    """
    font = _font(font_path)
    left, top, right, bottom = (round(v) for v in font.getbbox(char))
    if right - left < 2 or bottom - top < 2 or max(right - left, bottom - top) > 1024:
        return None
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), char, font=font, fill=255)
    box = image.getbbox()
    if box is None:
        return None
    ink = image.crop(box)
    scale = CANVAS_BOX / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    resized = ink.resize(
        (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    )
    canvas.paste(resized, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def normalise(image: UInt8Image) -> Float32Image:
    """Brings any grey ink image to the glyph format.

    Args:
        image: uint8 [H, W], 255 = ink, 0 = background; not all zero.

    Returns:
        float32 [1, 28, 28] in [-1, 1]: ink box 20 pixels, centre of mass at the centre.
    """
    source = Image.fromarray(image)
    box = source.getbbox()
    if box is None:
        return np.full((1, IMAGE_SIZE, IMAGE_SIZE), -1.0, dtype=np.float32)
    ink = source.crop(box)
    scale = IMAGE_BOX / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    pixels = np.asarray(ink.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    mass = max(float(pixels.sum()), 1e-6)
    rows, cols = np.arange(height) + 0.5, np.arange(width) + 0.5
    centre = IMAGE_SIZE / 2
    top = round(centre - float((pixels.sum(1) * rows).sum()) / mass)
    left = round(centre - float((pixels.sum(0) * cols).sum()) / mass)
    top = min(max(top, 0), IMAGE_SIZE - height)
    left = min(max(left, 0), IMAGE_SIZE - width)
    canvas = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    canvas[0, top : top + height, left : left + width] = pixels
    return canvas / np.float32(127.5) - np.float32(1.0)
