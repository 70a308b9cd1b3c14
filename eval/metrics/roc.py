"""Membership inference, scored: AUC, and the true-positive rate where false alarms are rare.

An attack that is sure of a few members and blind to the rest has an AUC near 0.5 and still harms
those few, so the rate at 0.1 % false positives is the figure to watch (Carlini et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from hyperdp.errors import DataError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.neighbours import nearest

LOW_RATE = 0.001
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How well a score tells members from others.

    Attributes:
        auc: area under the ROC curve; 0.5 is a coin.
        tpr: share of members found at `fpr` false positives: the highest that no more than this
            share of others reaches.
        tpr_high: upper end of its 95 % Clopper-Pearson interval (one-sided) at the threshold that
            these others gave. How well they place it is not in it: with few others `tpr` is too
            high on average, and what `tpr_high` covers falls below 95 %.
        fpr: the rate of false positives that was asked for.
        members, others: scores on either side. Below 1 / fpr others, `tpr` is that of an attack
            without a single false alarm.
    """

    auc: float
    tpr: float
    tpr_high: float
    fpr: float
    members: int
    others: int


def attack(members: Scores, others: Scores, *, fpr: float = LOW_RATE) -> Attack:
    """Scores an attack by scikit-learn's ROC curve.

    Args:
        members: float64 [M ≥ 1], larger means "was in it".
        others: float64 [N ≥ 1].
        fpr: false positives that are allowed, in (0, 1).

    Returns:
        AUC (ties count half) and the rate at `fpr`.

    Raises:
        DataError: no scores on one side, or one that is not finite.
    """
    scores = np.concatenate([members, others])
    if not (len(members) and len(others) and np.isfinite(scores).all()):
        raise DataError(
            expected="at least one finite score of members and of others",
            found=f"{len(members)} and {len(others)} scores",
            todo="Give held-out records of the same source.",
        )
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    false_rates, true_rates, _ = roc_curve(labels, scores, drop_intermediate=False)
    tpr = float(true_rates[false_rates <= fpr].max())
    hits = round(tpr * len(members))
    return Attack(
        auc=float(roc_auc_score(labels, scores)),
        tpr=tpr,
        tpr_high=1.0
        if hits == len(members)
        else float(beta.ppf(0.95, hits + 1, len(members) - hits)),
        fpr=fpr,
        members=len(members),
        others=len(others),
    )


def distance_attack(
    generated: Features, train: Features, held_out: Features, *, fpr: float = LOW_RATE
) -> Attack:
    """Membership inference from the images alone: is a record near a generated image?

    The score of a record is minus its distance to the nearest generated image (Chen et al. 2020,
    GAN-Leaks, arXiv 1909.03935, full black box).

    Args:
        generated: features of the images that were published.
        train: of the private records.
        held_out: of records of the same source that were not used.
        fpr: false positives that are allowed.

    Raises:
        DataError: different extractors or an empty set.
    """
    near_train, near_others = (-nearest(part, generated, 1)[0][:, 0] for part in (train, held_out))
    return attack(near_train, near_others, fpr=fpr)
