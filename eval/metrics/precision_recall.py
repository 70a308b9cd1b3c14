"""Fidelity and diversity apart: precision and recall, density and coverage, over k-NN balls.

FID mixes the two: few good images and many poor ones can score alike. Every figure here depends on
the sample sizes, so real images are measured at the same sizes, as a floor is for FID.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperdp.eval.features import Features
from hyperdp.eval.metrics.neighbours import balls_holding, check_pair, nearest, radii

MANIFOLD_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 4
SHARES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True, kw_only=True)
class ManifoldScores:
    """Four shares; all but density lie in [0, 1], larger is better.

    Attributes:
        extractor: the feature extractor's name.
        precision: share of generated images inside the real images' manifold: fidelity.
        recall: share of real images inside the generated images' manifold: diversity.
        density: how many real balls hold a generated image, over what is expected; may exceed 1.
        coverage: share of real images with a generated one in their ball: diversity again, but an
            odd generated image cannot raise it.
        generated, reference: number of images on either side.
    """

    extractor: str
    precision: float
    recall: float
    density: float
    coverage: float
    generated: int
    reference: int


def manifold_scores(
    generated: Features,
    reference: Features,
    *,
    manifold_neighbours: int = MANIFOLD_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> ManifoldScores:
    """Improved precision and recall, density and coverage.

    Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991), equations 1 to 3. Density and
    coverage: Naeem et al. 2020 (arXiv 2002.09797), equations 3 and 4.

    Args:
        generated: features of more than k images.
        reference: features of more than k real images by the same extractor.
        manifold_neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.

    Returns:
        The four figures.

    Raises:
        DataError: different extractors or too few images.
    """
    least = max(manifold_neighbours, density_neighbours) + 1
    check_pair(generated, reference, least=least)
    check_pair(reference, generated, least=manifold_neighbours + 1)
    real_radii = radii(reference, manifold_neighbours)
    made_radii = radii(generated, manifold_neighbours)
    ball = radii(reference, density_neighbours)
    to_made = nearest(reference, generated, 1)[0][:, 0]  # [R]
    return ManifoldScores(
        extractor=generated.extractor,
        precision=float((balls_holding(generated, reference, real_radii) > 0).mean()),
        recall=float((balls_holding(reference, generated, made_radii) > 0).mean()),
        density=float(balls_holding(generated, reference, ball).mean() / density_neighbours),
        coverage=float(np.mean(to_made <= ball * (1 + 1e-9))),
        generated=len(generated),
        reference=len(reference),
    )
