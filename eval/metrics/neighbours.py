"""Exact nearest neighbours and ball membership among feature vectors.

faiss finds the candidates in float32, where ‖x‖² + ‖y‖² − 2x·y loses digits exactly for near
copies, the pairs that matter most here. So vectors are centred, a few candidates more than asked
for are taken, and their distances are computed again in float64 from the differences.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from hyperdp.errors import DataError
from hyperdp.eval.features import Features

SLACK = 8  # candidates beyond k: float32 may exchange neighbours that are almost equally near
# A point on a ball's very rim is in it, also where rounding moved it: a copied image is one.
RIM = 1e-9
_BLOCK = 256  # rows at once, so that memory does not grow with the square of the set

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def nearest(queries: Features, base: Features, k: int) -> tuple[Floats, Indices]:
    """The k nearest of `base` for every query.

    Args:
        queries: features of Q images.
        base: features of N ≥ k images by the same extractor.
        k: neighbours, ≥ 1.

    Returns:
        Euclidean distances float64 [Q, k], ascending, and indices int64 [Q, k] into `base`.

    Raises:
        DataError: different extractors, or fewer than k images.
    """
    check_pair(queries, base, least=k)
    centre = base.values.double().mean(0).numpy()
    x, y = queries.values.double().numpy() - centre, base.values.double().numpy() - centre
    index = faiss.IndexFlatL2(y.shape[1])
    index.add(np.ascontiguousarray(y, dtype=np.float32))
    wanted = min(k + SLACK, len(y))
    _, found = index.search(np.ascontiguousarray(x, dtype=np.float32), wanted)  # [Q, wanted]
    distances = np.empty((len(x), wanted))
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        difference = x[rows, None, :] - y[found[rows]]  # [block, wanted, D]
        distances[rows] = np.sqrt(np.square(difference).sum(-1))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(distances, order, axis=1)
    return near, np.take_along_axis(found, order, axis=1).astype(np.int64)


def radii(features: Features, k: int) -> Floats:
    """Distance of every image to its k-th nearest *other* image of the set, float64 [N].

    Args:
        features: of N > k images.
        k: which neighbour, ≥ 1.
    """
    # The image itself is the nearest; where others are equal to it, which one is no matter.
    return nearest(features, features, k + 1)[0][:, k]


def balls_holding(points: Features, centres: Features, radius: Floats) -> Indices:
    """How many of the balls around `centres` hold each point.

    Args:
        points: features of P images.
        centres: features of N images by the same extractor.
        radius: float64 [N].

    Returns:
        int64 [P], each between 0 and N; a point on the rim is inside.
    """
    check_pair(points, centres, least=1)
    centre = centres.values.double().mean(0).numpy()
    x = points.values.double().numpy() - centre
    y = centres.values.double().numpy() - centre
    limit = np.square(radius) * (1 + RIM)
    counts = np.empty(len(x), dtype=np.int64)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squared = (
            np.square(x[rows]).sum(1)[:, None] + np.square(y).sum(1) - 2 * x[rows] @ y.T
        )  # [block, N]
        counts[rows] = (squared <= limit).sum(1)
    return counts


def check_pair(one: Features, other: Features, *, least: int) -> None:
    """Raises DataError where two sets cannot be compared or the second has too few images."""
    if one.extractor != other.extractor:
        raise DataError(
            expected=f"both sets' features from {other.extractor}",
            found=one.extractor,
            todo="Extract both with the same extractor.",
        )
    if len(other) < least or not len(one):
        raise DataError(
            expected=f"at least {least} images to look among, and one to look for",
            found=f"{len(other)} and {len(one)}",
            todo="Add images, or look at fewer neighbours.",
        )
