"""MAUVE: how far apart two distributions are, both ways at once, from samples of each.

Pillutla et al. 2021 (arXiv 2102.01454). Embeddings of both sets are quantised together by k-means.
Of the two histograms P and Q every mixture R_λ = λP + (1 - λ)Q is taken; the curve of
(exp -c KL(Q‖R_λ), exp -c KL(P‖R_λ)) is the divergence frontier, and the area under it the figure:
1 where the histograms are the same, 0 where they have no cell in common.

Theirs are embeddings of a large language model, centred by PCA; here they are whatever the caller
has, so figures of another embedding cannot be compared with these. The figure depends on the sizes
of both sets as well: two samples of one distribution stay below 1, and smaller ones further.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from hyperdp.errors import DataError

SCALING = 5.0  # c of the paper
MIXTURES = 25  # points of the curve, as theirs
EDGE = 1e-6  # of λ: at 0 and 1 themselves a divergence may be infinite
PER_CELL = 10  # vectors of the smaller set for each k-means cell, as theirs
ITERATIONS, REDO = 100, 5

Floats = NDArray[np.float64]


def mauve(
    generated: Floats, reference: Floats, *, cells: int | None = None, seed: int = 0
) -> float:
    """Area under the divergence frontier of two sets of embeddings.

    Args:
        generated: [G, k].
        reference: [R, k], by the same encoder.
        cells: of k-means; a tenth of the smaller set, and 2 at least, when None.
        seed: of k-means.

    Returns:
        In [0, 1], larger is nearer; the same when the two are exchanged, but for k-means.

    Raises:
        DataError: widths differ, values that are not finite, or fewer vectors than cells.
    """
    fewest = min(len(generated), len(reference))
    count = max(2, round(fewest / PER_CELL)) if cells is None else cells
    if generated.shape[1:] != reference.shape[1:] or generated.ndim != 2:
        raise DataError(
            expected="embeddings [G, k] and [R, k] by the same encoder",
            found=f"{list(generated.shape)} and {list(reference.shape)}",
            todo="Embed both with the same encoder.",
        )
    if fewest < count or not (np.isfinite(generated).all() and np.isfinite(reference).all()):
        raise DataError(
            expected=f"at least {count} finite embeddings on either side",
            found=f"{len(generated)} and {len(reference)}",
            todo="Give more, or ask for fewer cells.",
        )
    together = np.ascontiguousarray(np.concatenate([generated, reference]), dtype=np.float32)
    kmeans = faiss.Kmeans(
        together.shape[1], count, niter=ITERATIONS, nredo=REDO, seed=seed, verbose=False,
        min_points_per_centroid=1, max_points_per_centroid=len(together),
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )  # fmt: skip
    kmeans.train(together)
    cell = kmeans.index.search(together, 1)[1][:, 0]
    made = np.bincount(cell[: len(generated)], minlength=count) / len(generated)
    real = np.bincount(cell[len(generated) :], minlength=count) / len(reference)
    return frontier_area(made, real)


def frontier_area(p: Floats, q: Floats) -> float:
    """Area under the divergence frontier of two histograms.

    Args:
        p: [cells], sum 1.
        q: [cells], sum 1.

    Returns:
        In [0, 1].
    """
    share = np.linspace(EDGE, 1 - EDGE, MIXTURES)[:, None]  # λ [M, 1]
    mixed = share * p + (1 - share) * q  # R_λ [M, cells]
    x = np.concatenate([[1.0], np.exp(-SCALING * _divergences(q, mixed)), [0.0]])
    y = np.concatenate([[0.0], np.exp(-SCALING * _divergences(p, mixed)), [1.0]])
    # λ from 0 to 1 goes from Q to P: x falls from 1 to 0, y rises from 0 to 1.
    return float(np.clip(np.trapezoid(y[::-1], x[::-1]), 0.0, 1.0))


def _divergences(p: Floats, mixed: Floats) -> Floats:
    """KL(p ‖ R) in nats for each R of `mixed` [M, cells]; R is positive wherever p is."""
    there = p > 0
    found: Floats = (p[there] * np.log(p[there] / mixed[:, there])).sum(1)
    return found
