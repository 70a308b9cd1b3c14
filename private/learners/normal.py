"""Standard normals from the operating system's randomness: the noise of every private step."""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

_PARTS = 4  # independent normals behind each one


class Normal(Protocol):
    """Draws standard normals."""

    def __call__(self, *shape: int) -> Tensor:
        """Independent standard normals, float64 of the given shape."""


class SystemNormal:
    """Standard normals by inverse-CDF from `os.urandom`; nothing can seed or replay it.

    Each is the sum of four over 2, so that its value does not give away the uniform numbers behind
    it: one inverted draw has as few float neighbours as a uniform has bits (Holohan & Braghin 2021,
    arXiv 2107.10138, section 4). The 52-bit uniforms reach 8.2 standard deviations.
    """

    def __call__(self, *shape: int) -> Tensor:
        """Independent standard normals, float64 of the given shape."""
        count = math.prod(shape)
        words = np.frombuffer(os.urandom(8 * _PARTS * count), dtype=np.uint64) >> np.uint64(12)
        uniform = (words.astype(np.float64) + 0.5) * 2.0**-52  # in (0, 1), never 0 or 1
        parts = ndtri(uniform).reshape(_PARTS, count)
        return torch.from_numpy(parts.sum(0) / math.sqrt(_PARTS)).reshape(shape)
