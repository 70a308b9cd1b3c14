"""Which of many samples lie on whose side of a labelled release: post-processing, from z alone.

An adapter of a class writes what all classes have in common far more often than what sets its own
apart, as z = mean φ differs little between classes. φ of a sample is exact, so more samples are
drawn than are wanted, and each class gets those that lie furthest on its side: rejection sampling,
by the rule of the nearest class mean (Fisher 1936, doi 10.1111/j.1469-1809.1936.tb02137.x) without
its whitening, as z is noisy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyperdp.errors import UsageError


def class_margins(embeddings: Tensor, means: Tensor) -> Tensor:
    """How much further each sample lies on a class's side than on any other's.

    The side of class c is ⟨φ(x), z_c - mean of the other z⟩, standardised over the samples: the
    noise in z adds the same to all samples' figures, which says nothing, and is taken off so.

    Args:
        embeddings: float32 [N, k], clipped embeddings of samples.
        means: float32 [L, k], z of each class, two or more.

    Returns:
        float32 [N, L].
    """
    count = len(means)
    others = (means.sum(0) - means) / (count - 1)  # [L, k]
    sides = embeddings @ (means - others).T  # [N, L]
    sides = (sides - sides.mean(0)) / sides.std(0).clamp(min=1e-12)
    rest = torch.stack(
        [torch.cat([sides[:, :c], sides[:, c + 1 :]], 1).amax(1) for c in range(count)], 1
    )
    return sides - rest


def select_by_class(embeddings: Tensor, means: Tensor, count: int) -> list[list[int]]:
    """`count` samples for each class, the clearest first; no sample is given to two.

    Args:
        embeddings: float32 [N, k], clipped embeddings of samples of all classes' adapters.
        means: float32 [L, k], z of each class.
        count: samples of each class.

    Returns:
        L lists of rows.

    Raises:
        UsageError: a release without classes, or fewer samples than are wanted.
    """
    if len(means) < 2:
        raise UsageError(
            expected="a labelled release, of two classes or more",
            found=f"{len(means)} class",
            todo="Release with labels, or sample without --candidates.",
        )
    if len(embeddings) < count * len(means):
        raise UsageError(
            expected=f"at least {count * len(means)} samples to choose from",
            found=str(len(embeddings)),
            todo="Draw more of them.",
        )
    margins = class_margins(embeddings, means).double().numpy()  # [N, L]
    chosen: list[list[int]] = [[] for _ in range(len(means))]
    taken: set[int] = set()
    for place in np.argsort(-margins, axis=None, kind="stable").tolist():
        row, label = divmod(place, len(means))
        if row not in taken and len(chosen[label]) < count:
            taken.add(row)
            chosen[label].append(row)
    return chosen
