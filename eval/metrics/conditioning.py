"""Conditioning: can images made from the private measurement be told from a control's at all?

A hypernetwork may learn to ignore what it is given and emit one adapter for everyone; FID against
the base model then still improves. The test asks one thing: exchange the labels "made from z" and
"made from the control" at random; does the distance between the two sets stand out among these?
Where it does not, nothing of z is seen in the images. The control should be ρ's answer to another
embedding *at the same noise level*: ρ reads that level too, and may react to it alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hyperdp.eval.features import Features
from hyperdp.eval.metrics.interval import cubic_kernel, pairwise_mmd
from hyperdp.eval.metrics.neighbours import check_pair

PERMUTATIONS = 999
LARGEST = 1000  # images a side


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """One two-sample test.

    Attributes:
        extractor: the feature extractor's name.
        control: what the images are compared with.
        distance: kernel distance (KID over all pairs) between the two sets of images.
        p_value: share of labellings with at least this distance; large means: not told apart.
        images: number on either side.
    """

    extractor: str
    control: str
    distance: float
    p_value: float
    images: int


def conditioning(
    generated: Features,
    control: Features,
    *,
    name: str,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Conditioning:
    """Permutation test of the kernel distance (Gretton et al. 2012, section 5).

    Args:
        generated: features of ≥ 2 images made from the release.
        control: of ≥ 2 images made without it, by the same extractor. Of both sets the first
            min(G, number of controls, 1,000) count.
        name: of the control.
        permutations: of the labels.
        seed: of the permutations.

    Returns:
        Distance and p-value. Images drawn from the same starting noise on both sides only make the
        test more cautious: equal sets give 1.

    Raises:
        DataError: different extractors or too few images.
    """
    check_pair(generated, control, least=2)
    check_pair(control, generated, least=2)
    size = min(len(generated), len(control), LARGEST)
    pool = torch.cat([generated.values[:size], control.values[:size]]).double()
    kernel = cubic_kernel(pool, pool)
    rng = np.random.default_rng(seed)
    own = np.arange(2 * size) < size
    labels = np.stack([own, *(rng.permutation(own) for _ in range(permutations))])
    distances = pairwise_mmd(kernel, torch.from_numpy(labels).double()).numpy()
    reached = distances >= distances[0] - 1e-12 * abs(distances).max()
    return Conditioning(
        extractor=generated.extractor,
        control=name,
        distance=float(distances[0]),
        p_value=float(reached.mean()),
        images=size,
    )
