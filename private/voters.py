"""Who votes for which candidate: private embeddings, and distances that are exact."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.mechanism import clip_to_lattice
from hyperdp.private.embed import BATCH_SIZE, embed_batch
from hyperdp.private.learners.units import Units
from hyperdp.private.records import Record
from hyperdp.votes import VoteSpec, VoteSum


class Voters:
    """The private embeddings by unit. Everything here is private, the number of units too.

    A vote depends on its own record and the candidates alone, to the bit: embeddings are rounded to
    integers of norm 2^24 at most, so that every product and every sum of a distance is below 2^53
    and exact in float64, whatever the order in which they are added up. A tie goes to the first.
    """

    def __init__(self, embeddings: NDArray[np.float64], members: list[NDArray[np.int64]]) -> None:
        self._embeddings, self._members = embeddings, members

    def __repr__(self) -> str:
        return "Voters(private)"

    @classmethod
    def read(cls, records: Iterable[Record], *, bundle: Bundle, budget: PrivacyBudget) -> Voters:
        """Read and embed every record once.

        Raises:
            DataError: as in `Units.read`.
        """
        units = Units.read(records, shape=bundle.config.image_shape, unit=budget.unit)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a library's warning may tell of a record
            return cls(on_lattice(embed_all(bundle, units.images), bundle), units.members)

    def vote(self, candidates: NDArray[np.float64], spec: VoteSpec) -> VoteSum:
        """The exact histogram.

        Args:
            candidates: float64 [N, k], whole numbers, as `on_lattice` makes them.
            spec: the query.
        """
        total = VoteSum(spec)
        squares = np.square(candidates).sum(axis=1)
        nearest = np.concatenate(
            [
                (squares - 2 * (part @ candidates.T)).argmin(axis=1)
                for part in np.array_split(self._embeddings, len(self._embeddings) // 1024 + 1)
            ]
        )
        for positions in self._members:
            total.add(nearest[positions])
        return total


def embed_all(bundle: Bundle, images: Tensor) -> NDArray[np.float32]:
    """Embeddings, float32 [N, k], of images float32 [N, C, H, W], in batches of one shape."""
    parts = [embed_batch(bundle.encoder, part.numpy()) for part in torch.split(images, BATCH_SIZE)]
    return np.concatenate(parts)


def on_lattice(embeddings: NDArray[np.float32], bundle: Bundle) -> NDArray[np.float64]:
    """Clipped to norm C and in steps of C · 2^-24: whole numbers in float64 [N, k]."""
    scaled = embeddings.astype(np.float64) / bundle.config.clip_norm
    return clip_to_lattice(scaled, 1.0).astype(np.float64)
