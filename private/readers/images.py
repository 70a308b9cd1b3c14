"""One image, whatever it is stored as, to the bundle's shape: a function of that image alone.

What becomes of what, in this order:

1. Orientation: the EXIF tag is applied. Of an animation, the first frame counts.
2. Values become 0 … 255: 1-bit is 0 or 255; 8-bit stays; 16-bit and 32-bit integers
   (`I;16`, `I`) count as 16-bit and are divided by 257; floats (`F`) must lie in [0, 1].
   Palettes (`P`) are looked up; CMYK and YCbCr go to RGB by Pillow's fixed formulas, without an
   ICC profile.
   Where it is asked for, they are then inverted (v to 255 − v), those of all records alike. It is
   for dark ink on white paper, as the shipped bundles know light ink on black.
3. Transparency (LA, PA, RGBA, a transparent palette entry or key colour) is laid on black, the
   background of the shipped bundles.
4. Channels: three become one by ITU-R 601 luma; one becomes three equal ones.
5. Size: scaled to fit inside the bundle's shape with its proportions kept (bicubic,
   antialiased), centred, and padded with black. An image of the right size is left as it is.
6. 0 … 255 becomes [-1, 1].
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hyperdp.errors import DataError
from hyperdp.private.readers.quiet import silent

Shape: TypeAlias = tuple[int, int, int]
Pixels: TypeAlias = npt.NDArray[np.float32]

# The decoders that are offered a file. Others that Pillow has start programs (EPS) or are arcane.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's own line between a large photograph and a decompression bomb.
MAX_PIXELS = 178_956_970

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's "L"
_SKIP = "or leave such records out with --skip-unreadable"


def to_pixels(source: object, image_shape: Shape, where: str, *, invert: bool = False) -> Pixels:
    """Decode one image and bring it to the bundle's shape.

    Args:
        source: an encoded image, the path of one, or an array, perhaps as nested lists (see
            `from_array`).
        image_shape: (C, H, W) of the bundle; C is 1 or 3.
        where: how an error names this record.
        invert: whether dark is to become light; public, and the same for every record.

    Returns:
        float32 [C, H, W] in [-1, 1].

    Raises:
        DataError: it is not an image, is damaged, too large, or of a kind with no conversion.
    """
    if isinstance(source, bytes | Path):
        return from_file(source, image_shape, where, invert=invert)
    try:
        # A number or a date becomes an array of no dimension, which has no conversion either.
        pixels = np.asarray(source)
    except ValueError as error:
        raise DataError(
            expected=f"{where} to hold a full array",
            found="nested lists of different lengths",
            todo=f"Pad the lists, store encoded images, {_SKIP}.",
        ) from error
    return from_array(pixels, image_shape, where, invert=invert)


def from_file(
    source: bytes | Path, image_shape: Shape, where: str, *, invert: bool = False
) -> Pixels:
    """Decode an encoded image; see `to_pixels`."""
    return _scale(_decode(source, image_shape[0], where, invert), image_shape, where, invert)


def _decode(source: bytes | Path, channels: int, where: str, invert: bool) -> Image.Image:
    """Let Pillow read it and settle orientation, palette, transparency; see `_flatten`."""
    try:
        if isinstance(source, Path) and not source.is_file():
            raise DataError(
                expected=f"{where} to be a file",
                found="no regular file there",
                todo=f"Mend the path, {_SKIP}.",
            )
        with warnings.catch_warnings():
            # Pillow's warnings tell the size of a private image; what matters is checked below.
            warnings.simplefilter("ignore")
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=FORMATS) as image:
                check_size(image.width, image.height, where)
                with silent(image.format == "TIFF"):
                    return _flatten(ImageOps.exif_transpose(image), channels, where, invert)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(where) from error
    except Exception as error:
        # A decoder that is fed a damaged file may raise anything at all.
        raise DataError(
            expected=f"{where} to be an undamaged image ({', '.join(FORMATS)})",
            found=f"something that cannot be decoded ({type(error).__name__})",
            todo=f"Mend or remove it, {_SKIP}.",
        ) from error


def from_array(
    pixels: npt.NDArray[np.generic], image_shape: Shape, where: str, *, invert: bool = False
) -> Pixels:
    """Bring an array to the bundle's shape; see `to_pixels`.

    Args:
        pixels: [h, w], [h, w, c] or [c, h, w] with c in 1 (grey), 2 (grey and alpha), 3 (RGB) or
            4 (RGBA); where both ends could be channels, the last is. bool; integers in 0 … 255;
            uint16 in 0 … 65535; or floats in [0, 1].
        image_shape: (C, H, W) of the bundle; C is 1 or 3.
        where: how an error names this record.
        invert: see `to_pixels`.

    Returns:
        float32 [C, H, W] in [-1, 1].

    Raises:
        DataError: another shape or type, a value out of range, or NaN.
    """
    planes = _channels_last(pixels, where)  # [h, w, c]
    check_size(planes.shape[1], planes.shape[0], where)
    if planes.dtype == np.uint8:
        squeezed = planes[:, :, 0] if planes.shape[2] == 1 else planes
        image = Image.fromarray(np.ascontiguousarray(squeezed))
        return _scale(_flatten(image, image_shape[0], where, invert), image_shape, where, invert)
    values = _to_255(planes, where)
    transparent = values.shape[2] in {2, 4}
    if invert:
        colours = values[:, :, :-1] if transparent else values
        colours[:] = np.float32(255.0) - colours
    if transparent:
        values = values[:, :, :-1] * (values[:, :, -1:] / np.float32(255.0))  # on black
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(values, 2, 0)]
    return _normalise(np.stack([_fit(band, image_shape) for band in bands]), image_shape)


def check_size(width: int, height: int, where: str) -> None:
    """Refuse an image by its declared size, before anything is decoded.

    Args:
        width: pixels.
        height: pixels.
        where: how an error names this record.

    Raises:
        DataError: it has no pixel, or more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise _too_large(where)
    if width * height == 0:
        raise DataError(
            expected=f"{where} to have pixels",
            found="an image of width or height 0",
            todo=f"Remove it, {_SKIP}.",
        )


def _too_large(where: str) -> DataError:
    return DataError(
        expected=f"{where} to have at most {MAX_PIXELS:,} pixels",
        found="a header that declares more",
        todo=f"Scale it down first, {_SKIP}.",
    )


def _flatten(image: Image.Image, channels: int, where: str, invert: bool) -> Image.Image:
    """To `L` or `RGB` by the number of channels; 16-bit and float images stay as they are."""
    if image.mode in _DEEP_MODES:
        image.load()
        return _on_black(image, invert)
    if image.mode not in _EIGHT_BIT_MODES:
        raise DataError(
            expected=f"{where} to be grey, RGB, CMYK or a palette image",
            found=f"mode {image.mode}",
            todo=f"Convert it to RGB first, {_SKIP}.",
        )
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        ground = (255, 255, 255, 255) if invert else (0, 0, 0, 255)  # black, once it is inverted
        image = Image.alpha_composite(Image.new("RGBA", overlay.size, ground), overlay)
    flat = image.convert("L" if channels == 1 else "RGB")
    return ImageOps.invert(flat) if invert else flat


def _on_black(image: Image.Image, invert: bool) -> Image.Image:
    """A 16-bit image whose transparent value, if a PNG names one, is black once it is inverted."""
    key = image.info.get("transparency")
    if not isinstance(key, int) or image.mode == "F":
        return image
    values = np.array(image)
    values[values == key] = 65535 if invert else 0
    return Image.fromarray(values)


def _scale(image: Image.Image, image_shape: Shape, where: str, invert: bool) -> Pixels:
    """What `_flatten` returns, to float32 [C, H, W] in [-1, 1]."""
    if image.mode == "F":
        return from_array(np.asarray(image), image_shape, where, invert=invert)
    if image.mode in _DEEP_MODES:
        return from_array(_sixteen_bit(np.asarray(image), where), image_shape, where, invert=invert)
    return _normalise(np.atleast_3d(_fit(image, image_shape)).transpose(2, 0, 1), image_shape)


def _sixteen_bit(raw: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.uint16]:
    values = np.asarray(raw, dtype=np.int64)  # Pillow's `I` is int32 even for 16-bit files
    if values.min() < 0 or values.max() > 65535:
        raise _out_of_range("32-bit integers", "0 … 65535", where)
    return values.astype(np.uint16)


def _channels_last(pixels: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.generic]:
    if pixels.ndim == 2:
        return pixels[:, :, None]
    if pixels.ndim == 3 and pixels.shape[2] in {1, 2, 3, 4}:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] in {1, 2, 3, 4}:
        return pixels.transpose(1, 2, 0)
    raise DataError(
        expected=f"{where} to be an image: [h, w], [h, w, c] or [c, h, w] with 1 to 4 channels",
        found=f"shape {list(pixels.shape)}",
        todo="Reshape a flat array to its height and width, or name the right column with "
        "--image-column.",
    )


def _to_255(planes: npt.NDArray[np.generic], where: str) -> Pixels:
    """Scale any accepted type to 0 … 255 as float32."""
    kind = planes.dtype.kind
    if kind == "b":
        return planes.astype(np.float32) * np.float32(255.0)
    if kind in "iu":
        top = 65535 if planes.dtype.newbyteorder("=") == np.uint16 else 255
        if planes.min() < 0 or planes.max() > top:
            raise _out_of_range("integers", "0 … 255, or uint16 in 0 … 65535", where)
        return planes.astype(np.float32) / np.float32(top // 255)
    if kind == "f":
        if not np.isfinite(planes).all():
            raise DataError(
                expected=f"{where} to hold finite numbers",
                found="NaN or infinity",
                todo=f"Replace it (numpy.nan_to_num), {_SKIP}.",
            )
        if planes.min() < 0 or planes.max() > 1:
            raise _out_of_range("floats", "[0, 1]", where)
        return planes.astype(np.float32) * np.float32(255.0)
    raise DataError(
        expected=f"{where} to be of bool, integer or float type",
        found=f"type {planes.dtype}",
        todo="Save it as uint8 in 0 … 255.",
    )


def _out_of_range(what: str, legal: str, where: str) -> DataError:
    return DataError(
        expected=f"{what} in {legal} for {where}",
        found="a value outside",
        todo=f"Scale the whole dataset by one fixed factor, or save it as uint8; {_SKIP[3:]}.",
    )


def _fit(image: Image.Image, image_shape: Shape) -> Pixels:
    """Scale inside (H, W), centre, pad with black; `L`, `RGB` or `F` to float32 in 0 … 255."""
    _, height, width = image_shape
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if inner != image.size:
        image = image.resize(inner, Image.Resampling.BICUBIC)
    scaled = np.asarray(image, dtype=np.float32)  # [h, w] or [h, w, 3]
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas = np.zeros((height, width, *scaled.shape[2:]), dtype=np.float32)
    canvas[top : top + inner[1], left : left + inner[0]] = scaled
    return canvas


def _normalise(planes: Pixels, image_shape: Shape) -> Pixels:
    """[c, H, W] in 0 … 255 to [C, H, W] in [-1, 1]; bicubic may have overshot the range."""
    if planes.shape[0] == 3 and image_shape[0] == 1:
        planes = np.tensordot(_LUMA, planes, axes=1)[None]
    elif planes.shape[0] == 1 and image_shape[0] == 3:
        planes = np.repeat(planes, 3, axis=0)
    scaled: Pixels = np.clip(planes / np.float32(127.5) - np.float32(1.0), -1.0, 1.0)
    return scaled
