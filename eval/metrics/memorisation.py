"""Memorisation: are generated images nearer to the private records than to records left out?

The test is a permutation. Private and held-out records come from one source, so if the images
depend on the private ones no more than on others like them, exchanging the labels "private" and
"held out" changes nothing in law. Two statistics, each against the same permuted labels: the share
of images whose nearest record is private (many images repeat), and the mean logarithm of the ratio
of the two distances (a few images are copies). Each record is permuted whole, with all the images
beside it; so images that crowd around a handful of records cannot pass for many independent
findings, and no threshold on a distance has to be invented.

What it cannot see: records that private and held-out set share, and copies of so few records that
their labels come out this way by chance too often. With h times as many held-out as private records
all r copied ones are private with probability (1 + h)⁻ʳ: at p ≤ 0.01 r = 7 is the least for h = 1,
and r = 3 for h = 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from hyperdp.eval.features import Features
from hyperdp.eval.metrics.neighbours import Floats, Indices, nearest

PERMUTATIONS = 1999
MOST_HELD_OUT = 4  # times as many held-out as private records; more make the search long
FARTHEST = 1000.0  # a ratio beyond it, or below its inverse, counts as this: copies have 0
_TINY = 1e-30  # keeps the ratio of a copy of both sides at 1
_MISSED = 1e-6  # chance that a list of neighbours holds no record of the smaller set


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A generated image and the private record nearest to it.

    Attributes:
        generated, train, held_out: indices of the image, of the nearest private record and of the
            nearest held-out one.
        distance, held_out_distance: from the image to the two, in feature space.
    """

    generated: int
    train: int
    held_out: int
    distance: float
    held_out_distance: float

    @property
    def ratio(self) -> float:
        """Distance to the private record over distance to the held-out one: 0 is a copy."""
        return _ratio(self.distance, self.held_out_distance)


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """What the distances say.

    Attributes:
        extractor: the feature extractor's name.
        share: of images that are nearer to a private record than to any held-out one.
        expected_share: the same with labels permuted, on average.
        ratio, expected_ratio: geometric mean of the distance ratio, private over held-out, and the
            same with labels permuted. With more held-out than private records it is above 1 by
            chance alone.
        p_value: of the two statistics together: how often permuted labels give a smaller of their
            two p-values; exact.
        generated, train, held_out: numbers of images and records.
        pairs: the closest pairs by ratio, each private record once.
    """

    extractor: str
    share: float
    expected_share: float
    ratio: float
    expected_ratio: float
    p_value: float
    generated: int
    train: int
    held_out: int
    pairs: tuple[Pair, ...] = field(repr=False)


def memorisation(
    generated: Features,
    train: Features,
    held_out: Features,
    *,
    pairs: int = 8,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Memorisation:
    """Compares distances to private records with distances to held-out ones.

    Args:
        generated: features of ≥ 1 images.
        train: of ≥ 2 private records.
        held_out: of ≥ 2 records of the same source that the generator has not seen; of more than
            four times as many as the private ones, the first count.
        pairs: closest pairs to return.
        permutations: of the labels.
        seed: of the permutations.

    Returns:
        The findings; distances in float64.

    Raises:
        DataError: different extractors or too few records.
    """
    held_out = held_out.head(min(len(held_out), MOST_HELD_OUT * len(train)))
    near_train, near_held = (nearest(generated, part, 1) for part in (train, held_out))
    pool = Features(extractor=train.extractor, values=torch.cat([train.values, held_out.values]))
    distances, indices = nearest(generated, pool, _list_length(len(train), len(held_out)))
    own = np.arange(len(pool)) < len(train)
    rng = np.random.default_rng(seed)
    labels = np.stack([own, *(rng.permutation(own) for _ in range(permutations))])
    ratios = np.stack([_ratios(distances, indices, row) for row in labels])  # [1 + P, G]
    # A ratio of exactly 1 is a tie between a private and a held-out record.
    shares = (ratios < 1).mean(1) + (ratios == 1).mean(1) / 2
    logs = np.log(ratios.clip(1 / FARTHEST, FARTHEST)).mean(1)
    # Either statistic's p-value under every labelling; the smaller of both is compared once more.
    least = np.minimum(_rank_p(shares), _rank_p(-logs))
    return Memorisation(
        extractor=generated.extractor,
        share=float(shares[0]),
        expected_share=float(shares[1:].mean()),
        ratio=float(np.exp(logs[0])),
        expected_ratio=float(np.exp(logs[1:].mean())),
        p_value=float((least <= least[0]).mean()),
        generated=len(generated),
        train=len(train),
        held_out=len(held_out),
        pairs=_closest(near_train, near_held, pairs),
    )


def _list_length(train: int, held_out: int) -> int:
    """Neighbours to list so that hardly ever one of the two labels is missing among them."""
    larger = max(train, held_out) / (train + held_out)
    return min(train + held_out, math.ceil(math.log(_MISSED) / math.log(larger)))


def _ratios(distances: Floats, indices: Indices, own: NDArray[np.bool_]) -> Floats:
    """Ratio for every image under one labelling; where a label is missing the list's end counts.

    Args:
        distances: float64 [G, K], ascending.
        indices: int64 [G, K] into the pool.
        own: bool [N], which records count as private.
    """
    private = own[indices]  # [G, K]
    rows = np.arange(len(private))
    ends = [
        np.where(label.any(1), distances[rows, label.argmax(1)], distances[:, -1])
        for label in (private, ~private)
    ]
    return np.asarray((ends[0] + _TINY) / (ends[1] + _TINY), dtype=np.float64)


def _rank_p(statistics: Floats) -> Floats:
    """For each labelling the share of all labellings that reach its statistic: [1 + P]."""
    reached = rankdata(-statistics.round(12), method="max")
    return np.asarray(reached / len(statistics), dtype=np.float64)


def _ratio(one: float, other: float) -> float:
    return (one + _TINY) / (other + _TINY)


def _closest(
    near_train: tuple[Floats, Indices], near_held: tuple[Floats, Indices], count: int
) -> tuple[Pair, ...]:
    found = [
        Pair(
            generated=image,
            train=int(near_train[1][image, 0]),
            held_out=int(near_held[1][image, 0]),
            distance=float(near_train[0][image, 0]),
            held_out_distance=float(near_held[0][image, 0]),
        )
        for image in range(len(near_train[0]))
    ]
    first: dict[int, Pair] = {}
    for pair in sorted(found, key=lambda pair: pair.ratio):
        first.setdefault(pair.train, pair)
    return tuple(list(first.values())[:count])
