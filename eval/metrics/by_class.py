"""Figures class by class, and the worst of them: an average can hide a group that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import recall_score
from torch import Tensor

from hyperdp.errors import DataError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.fid import Score, kid

LEAST = 20  # images of a class on either side; below it KID is noise


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class.

    Attributes:
        name: of the class.
        kid: of its generated images against its reference images; None where either side has
            fewer than 20, and a class without generated images is a failed class.
        generated, reference: numbers of images.
    """

    name: str
    kid: Score | None
    generated: int
    reference: int

    @property
    def missing(self) -> bool:
        """Whether the reference has this class and the generated images do not, or hardly."""
        return self.kid is None and self.reference >= LEAST


def kid_by_class(
    generated: Features,
    labels: Sequence[str],
    reference: Features,
    reference_labels: Sequence[str],
) -> list[ClassScore]:
    """KID of every class of the reference; unbiased, so classes of other sizes compare.

    Args:
        generated: features of G images.
        labels: their G class names.
        reference: features of R images by the same extractor.
        reference_labels: their R class names.

    Returns:
        One line for each class of the reference, by name.

    Raises:
        DataError: as many labels as images are not given, or no class is common to both.
    """
    if len(labels) != len(generated) or len(reference_labels) != len(reference):
        raise DataError(
            expected="a label for every image",
            found=f"{len(labels)} for {len(generated)} and {len(reference_labels)} for "
            f"{len(reference)}",
            todo="Label all images or none.",
        )
    if not set(labels) & set(reference_labels):
        raise DataError(
            expected="generated and reference images with classes in common",
            found=f"{sorted(set(labels))[:5]} and {sorted(set(reference_labels))[:5]}",
            todo="Name the folders of generated images by the reference's classes.",
        )
    lines = []
    for name in sorted(set(reference_labels)):
        made = generated.select(_where(labels, name))
        real = reference.select(_where(reference_labels, name))
        enough = min(len(made), len(real)) >= LEAST
        lines.append(
            ClassScore(
                name=name,
                kid=kid(made, real) if enough else None,
                generated=len(made),
                reference=len(real),
            )
        )
    return lines


def worst_class(lines: Sequence[ClassScore]) -> ClassScore | None:
    """The class that failed most: one that is missing, else the one of largest KID.

    Returns:
        The line; None where no class could be measured.
    """
    missing = [line for line in lines if line.missing]
    measured = [line for line in lines if line.kid is not None]
    if missing:
        return max(missing, key=lambda line: line.reference)
    return max(measured, key=lambda line: line.kid.value if line.kid else 0.0, default=None)


def accuracy_by_class(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Share of each class's records that a classifier got right (its recall), by scikit-learn.

    Args:
        predicted: N class names.
        truth: N class names.

    Returns:
        Class of `truth` → accuracy in [0, 1].
    """
    names = sorted(set(truth))
    values = recall_score(
        np.asarray(truth), np.asarray(predicted), labels=names, average=None, zero_division=0.0
    )
    return dict(zip(names, map(float, values), strict=True))


def _where(labels: Sequence[str], name: str) -> Tensor:
    return torch.tensor([i for i, label in enumerate(labels) if label == name], dtype=torch.int64)
