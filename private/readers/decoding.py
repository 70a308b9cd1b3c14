"""How this process reads: a digest that differs where two machines may read a record differently.

Launched processes each read all records, and whose a record is follows from what was read: where
two decoders round a pixel differently, both could take it, or neither.
"""

from __future__ import annotations

import base64
import hashlib
import io
import unicodedata
from importlib.metadata import version

import numpy as np
from PIL import Image, features

from hyperdp.private.readers.images import Shape, to_pixels
from hyperdp.private.release_bundle import ReleaseBundle, TextConfig
from hyperdp.text_bundle import TextBundle

# Public: 20 x 24 pixels by formula, in colour, encoded with halved chroma by libjpeg-turbo 3.2.
_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
    "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT0//wAARCAAYABQDASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAAMFAQT/xAAp"
    "EAABAwMDAwIHAAAAAAAAAAABAgMRAAQhBRIxEyJBMlEUYXFzgZGx/8QAFgEBAQEAAAAAAAAAAAAAAAAAAgQB/8QAJxEA"
    "AgAFAwEJAAAAAAAAAAAAAQIAAxESYQQhMUFicYGRscHR4vD/2gAMAwEAAhEDEQA/AMTTtEcbslqUj1DaJxzit8IZ0fTU"
    "BxKVPOFOxie9YyZjwJHPH5rl2Xlrs7cXF66EguHoNBsScCfSTwansbau1W7bTTBZgEuELWJGDsAmYKT5AjiM0EVZiLcA"
    "a7/q7+QrCnO0wWMegWgzznjEW07TW7exaS52kiYCCf4DSs/VEMOXq1Psh1XG+4dS0TBIkCD24xx7QIpRbSGYb684HzAf"
    "W6oMRLpTu+w9I9FkizXeLU5a2oSjtztwAPufU1S0W42m6uHAohkKdSpKtswCQNyUgRxjdH6pStuJBBx7Qixv37R8RErd"
    "np27fw7KdikgwhsEJ+WEr9pyfNKUq9AGUEiKpGnlmWCRH//Z"
)
_TEXT = "Öffnen 🙂 \u202eשלום\r\nx\x00 naïve cafe\u0301 \ud800 数 12,345.67 \u3000end\u2028."


def reading(bundle: ReleaseBundle) -> bytes:
    """Digest of public samples as this process reads them, and of the decoders' versions.

    Args:
        bundle: its form of records, and its tokenizer where it is of texts.

    Returns:
        32 bytes.
    """
    digest = hashlib.sha256()
    for told in (*_decoders(), version("tokenizers"), unicodedata.unidata_version):
        digest.update(f"{told}\n".encode())
    if isinstance(bundle, TextBundle):
        digest.update(bundle.base.tokenizer.encode(_TEXT).tobytes())
    if not isinstance(bundle.config, TextConfig):
        for sample in _images():
            digest.update(_pixels(sample, bundle.config.image_shape))
    return digest.digest()


def _pixels(sample: object, shape: Shape) -> bytes:
    return to_pixels(sample, shape, "a public sample").tobytes()


def _decoders() -> list[str]:
    """Pillow and the libraries that it decodes with, each with its version."""
    names = [*features.get_supported_modules(), *features.get_supported_codecs()]
    names += features.get_supported_features()
    found = [f"{name} {features.version(name)}" for name in sorted(names)]
    return [f"Pillow {version('pillow')}", *found]


def _images() -> list[object]:
    """A JPEG, a PNG, and floats in colour, all of them unlike the sizes of a bundle."""
    y, x = np.mgrid[0:19, 0:23]
    planes = np.stack([x * 37 + y * 11, x * x + y * y * 3, x * y * 7], 2) % 256  # [h, w, c]
    stream = io.BytesIO()
    Image.fromarray(planes.astype(np.uint8)).save(stream, "PNG")
    return [_JPEG, stream.getvalue(), planes / 255]
