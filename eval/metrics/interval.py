"""How sure FID and KID are, and where real images' own scores lie.

Why not the plain bootstrap. FID's bias falls as 1/(number of distinct images). A set drawn with
replacement holds only 63 % distinct ones, so every bootstrap FID lies above the observed one and
percentile intervals need not even hold it. Subtracting the shift fails as well where there are
fewer images than dimensions, as is usual. Two constructions do without:

- *A method's FID*: halves of either set, drawn without replacement. Their level is of no use (they
  are smaller sets), but their spread is: for a smooth statistic the variance over random halves is
  its variance at full size (the delete-d jackknife with d = n/2, Shao & Wu 1989, whose factor
  (n − d)/d is 1). So the interval stands around the observed score, with that spread, and speaks of
  the expected FID *at these sample sizes*, which is what tables compare.
- *The floor*: the real images, reference and held-out together, are split again at random in parts
  of the same two sizes. If the images come from one source, the split that was used is exchangeable
  with these, so it lies between the l-th and u-th of B of them with probability (u − l)/(B + 1)
  exactly: a permutation interval, with no assumption on FID at all.

KID is a mean over pairs of different images. A bootstrap sample pairs an image with its own copy,
which biases it as well; here such pairs have no weight, and the rest is an ordinary bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.frechet import frechet
from hyperdp.eval.metrics.neighbours import check_pair

FLOOR_DRAWS = 39  # the least whose extremes are a 95 % interval: 38 / 40
HALVES = 24
KID_DRAWS = 1000
KID_LARGEST = 5000  # images a side that kernels are computed over: 200 MB each

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided interval.

    Attributes:
        low, high: its ends, in the metric's unit.
        confidence: in (0, 1).
        how: `halves`, `splits` or `bootstrap`: see the module.
    """

    low: float
    high: float
    confidence: float
    how: str

    def __contains__(self, value: float) -> bool:
        """Whether a value lies in it, ends included."""
        return self.low <= value <= self.high


def fid_interval(
    generated: Features,
    reference: Features,
    *,
    value: float,
    confidence: float = 0.95,
    draws: int = HALVES,
    seed: int = 0,
) -> Interval:
    """Interval for the FID that these two sample sizes give on average.

    Args:
        generated: features of ≥ 8 images.
        reference: features of ≥ 8 images by the same extractor.
        value: the FID of the two sets, which it stands around.
        confidence: of the interval.
        draws: pairs of random halves; the t quantile pays for there being few of them.
        seed: of the halves.

    Returns:
        The interval; its lower end is at least 0.

    Raises:
        DataError: different extractors or too few images.
    """
    _check_sizes(generated, reference, least=8)
    rng = np.random.default_rng(seed)
    a, b = _doubles(generated, reference)
    scores = []
    for _ in range(draws):
        half_a = rng.permutation(len(a))[: len(a) // 2]
        half_b = rng.permutation(len(b))[: len(b) // 2]
        scores.append(frechet(a[half_a], b[half_b]))
    spread = float(np.std(scores, ddof=1))
    reach = float(student.ppf(0.5 + confidence / 2, draws - 1)) * spread
    low, high = max(value - reach, 0.0), value + reach
    return Interval(low=low, high=high, confidence=confidence, how="halves")


def fid_floor_interval(
    held_out: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    draws: int = FLOOR_DRAWS,
    seed: int = 0,
) -> Interval:
    """Where the FID of real images against other real images lies, at these two sizes.

    Args:
        held_out: features of ≥ 2 real images, as many as a method generates.
        reference: features of ≥ 2 other images of the same source.
        confidence: of the interval; at most (draws − 1) / (draws + 1).
        draws: random splits.
        seed: of the splits.

    Returns:
        The interval: a further random split of these images falls in it with at least this
        probability, exactly.

    Raises:
        DataError: different extractors or too few images.
        UsageError: too few draws for this confidence.
    """
    a, b = _doubles(held_out, reference)
    pool = torch.cat([a, b])
    scores = [
        frechet(pool[order[: len(a)]], pool[order[len(a) :]])
        for order in _splits(held_out, reference, confidence, draws, seed)
    ]
    return _between(scores, confidence)


def kid_floor_interval(
    held_out: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    draws: int = 199,
    seed: int = 0,
) -> Interval:
    """Where the KID of real images against other real images lies; see `fid_floor_interval`."""
    kernel = cubic_kernel(*[torch.cat(_doubles(held_out, reference))] * 2)
    first = torch.zeros(draws, len(kernel), dtype=torch.float64)  # which part an image falls in
    for row, order in zip(
        first, _splits(held_out, reference, confidence, draws, seed), strict=True
    ):
        row[order[: len(held_out)]] = 1
    return _between(pairwise_mmd(kernel, first).tolist(), confidence)


def kid_interval(
    generated: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    draws: int = KID_DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of KID in which no image is paired with its own copy.

    Args:
        generated: features of ≥ 8 images; of more than 5,000 the first count.
        reference: features of ≥ 8 images by the same extractor; likewise.
        confidence: of the interval.
        draws: bootstrap samples.
        seed: of the samples.

    Returns:
        The interval, for the kernel distance of the two distributions; may reach below 0.

    Raises:
        DataError: different extractors or too few images.
    """
    _check_sizes(generated, reference, least=8)
    rng = np.random.default_rng(seed)
    a, b = generated.values[:KID_LARGEST].double(), reference.values[:KID_LARGEST].double()
    u, v = (torch.from_numpy(_weights(rng, draws, len(x))) for x in (a, b))  # [draws, n]
    scores = (
        _pairs(u, cubic_kernel(a, a))
        + _pairs(v, cubic_kernel(b, b))
        - 2 * ((u @ cubic_kernel(a, b)) * v).sum(1) / (len(a) * len(b))
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores.numpy(), [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), confidence=confidence, how="bootstrap")


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(x·y / D + 1)³ of Bińkowski et al. 2018: float64 [n, D], [m, D] → [n, m]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def pairwise_mmd(kernel: Tensor, first: Tensor) -> Tensor:
    """KID over all pairs (Gretton et al. 2012, eq. 3) of many splits of one pool.

    Args:
        kernel: float64 [N, N] of the pool.
        first: float64 [draws, N], 1 where an image is on the first side and 0 on the second.

    Returns:
        float64 [draws].
    """
    second = 1 - first
    across = ((first @ kernel) * second).sum(1) / (first.sum(1) * second.sum(1))
    return _pairs(first, kernel) + _pairs(second, kernel) - 2 * across


def _pairs(weights: Tensor, kernel: Tensor) -> Tensor:
    """Weighted mean of a kernel over pairs of different images: [draws, n], [n, n] → [draws]."""
    own = weights.square()
    total = ((weights @ kernel) * weights).sum(1) - own @ kernel.diagonal()
    return total / (weights.sum(1).square() - own.sum(1))


def _weights(rng: np.random.Generator, draws: int, count: int) -> Floats:
    """How often a bootstrap sample holds each image: float64 [draws, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _splits(
    held_out: Features, reference: Features, confidence: float, draws: int, seed: int
) -> list[Tensor]:
    """Random orders of both sets together; the first as many as `held_out` has are one part."""
    _check_sizes(held_out, reference, least=2)
    if _outside(confidence, draws) < 1:
        raise UsageError(
            expected=f"at least {math.ceil(2 / (1 - confidence) - 1e-9) - 1} draws for "
            f"{confidence:.0%} confidence",
            found=str(draws),
            todo="Draw more, or be content with less confidence.",
        )
    rng = np.random.default_rng(seed)
    count = len(held_out) + len(reference)
    return [torch.from_numpy(rng.permutation(count)) for _ in range(draws)]


def _between(scores: list[float], confidence: float) -> Interval:
    """The order statistics that a further draw lies between with this probability."""
    outside, ordered = _outside(confidence, len(scores)), sorted(scores)
    return Interval(
        low=ordered[outside - 1], high=ordered[-outside], confidence=confidence, how="splits"
    )


def _outside(confidence: float, draws: int) -> int:
    """Which order statistic, from either end, the interval ends at; 0 if there is none."""
    return math.floor((1 - confidence) * (draws + 1) / 2 + 1e-9)


def _doubles(a: Features, b: Features) -> tuple[Tensor, Tensor]:
    return a.values.double(), b.values.double()


def _check_sizes(a: Features, b: Features, *, least: int) -> None:
    check_pair(a, b, least=least)
    if len(a) < least:
        raise DataError(
            expected=f"at least {least} images on either side",
            found=str(len(a)),
            todo="Add images; an interval of so few says nothing.",
        )
