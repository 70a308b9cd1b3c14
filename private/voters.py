"""Who votes for which candidate: private embeddings, and distances that are exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.errors import DataError
from hyperdp.mechanism import clip_to_lattice
from hyperdp.private.embed import BATCH_SIZE, embed_batch, silent_logs
from hyperdp.private.forms import Form
from hyperdp.private.learners.units import Units
from hyperdp.private.records import Record
from hyperdp.votes import VoteSpec, VoteSum

T = TypeVar("T")


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
            DataError: as in `Units.read`, or of anything else; its text tells of no record.
        """
        units = Units.read(records, form=Form.of(bundle.config), unit=budget.unit)
        return cls(
            _quietly(lambda: on_lattice(embed_all(bundle, units.images), bundle)), units.members
        )

    def vote(self, candidates: NDArray[np.float64], spec: VoteSpec) -> VoteSum:
        """The exact histogram.

        Args:
            candidates: float64 [N, k], whole numbers, as `on_lattice` makes them.
            spec: the query.

        Raises:
            DataError: something went wrong. The text tells of no record.
        """
        return _quietly(lambda: self._vote(candidates, spec))

    def _vote(self, candidates: NDArray[np.float64], spec: VoteSpec) -> VoteSum:
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


def _quietly(work: Callable[[], T]) -> T:
    """Does what reads private values, and lets neither a warning nor an error tell of them."""
    done: list[T] = []
    try:
        with silent_logs(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            done.append(work())
    except Exception:  # noqa: BLE001, S110  # even its type may depend on a record, its text on n
        pass
    if not done:  # out here, so that the error has no context to show
        raise DataError(
            expected="records that can be embedded and counted",
            found="an error whose text may hold private values and is not shown",
            todo="Try public data of the same form and size. The budget is spent.",
        )
    return done[0]


def embed_all(bundle: Bundle, images: Tensor) -> NDArray[np.float32]:
    """Embeddings, float32 [N, k], of images float32 [N, C, H, W], in batches of one shape."""
    parts = [embed_batch(bundle.encoder, part.numpy()) for part in torch.split(images, BATCH_SIZE)]
    return np.concatenate(parts)


def on_lattice(embeddings: NDArray[np.float32], bundle: Bundle) -> NDArray[np.float64]:
    """Clipped to norm C and in steps of C · 2^-24: whole numbers in float64 [N, k]."""
    scaled = embeddings.astype(np.float64) / bundle.config.clip_norm
    return clip_to_lattice(scaled, 1.0).astype(np.float64)
