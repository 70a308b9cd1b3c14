"""Poisson sampling: every unit is in a batch by its own coin, from the operating system."""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from hyperdp.errors import UsageError


class PoissonSampler:
    """Batches of units, each unit in each batch with probability q, all independent.

    The size of a batch is private, as it tells n; it may be 0.

    Args:
        probability: q in (0, 1]; 1 is every unit in every batch.
    """

    def __init__(self, probability: float) -> None:
        if not 0 < probability <= 1:
            raise UsageError(
                expected="a sampling probability 0 < q <= 1",
                found=f"q={probability!r}",
                todo="Choose an expected batch of at least 1 and at most the number of units.",
            )
        # Rounded down, so that the probability is q or up to 2^-64 below it, never above.
        self._below = math.floor(probability * 2**64)

    def draw(self, units: int) -> NDArray[np.int64]:
        """One batch.

        Args:
            units: n, private.

        Returns:
            Positions in ascending order, int64 [b], b >= 0.
        """
        if self._below >= 2**64:
            return np.arange(units, dtype=np.int64)
        coins = np.frombuffer(os.urandom(8 * units), dtype=np.uint64)
        return np.flatnonzero(coins < np.uint64(self._below)).astype(np.int64)


def choose_each(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """One position below each size, uniform, from the operating system.

    Args:
        sizes: int64 [b], each >= 1 and below 2^32.

    Returns:
        int64 [b]; the bias is below size / 2^64.
    """
    words = np.frombuffer(os.urandom(8 * len(sizes)), dtype=np.uint64)
    return (words % sizes.astype(np.uint64)).astype(np.int64)
