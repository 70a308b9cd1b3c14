"""What a release reveals and what it does not, in plain words, from its certificate alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from scipy.stats import norm

LOW_RATE = 0.001


class Promise(Protocol):
    """What is read of a release; `ReleaseFacts` has it."""

    @property
    def unit(self) -> str:
        """`record` or `user`."""

    @property
    def noise_multiplier(self) -> float:
        """τ."""

    @property
    def num_classes(self) -> int:
        """L, 1 for an unlabelled release."""

    @property
    def embedding_dim(self) -> int:
        """K."""

    @property
    def count_is_noisy(self) -> bool:
        """False where n is public."""


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """Three lists of sentences.

    Attributes:
        tells: what anyone may learn from the release.
        hides: what nobody can learn from it, and how surely.
        beyond: what the promise is not about.
    """

    tells: tuple[str, ...]
    hides: tuple[str, ...]
    beyond: tuple[str, ...]


def best_attack(noise_multiplier: float, *, fpr: float = LOW_RATE) -> tuple[float, float]:
    """The most that any test for one unit's presence can achieve against one Gaussian release.

    The trade-off between its errors is that of N(0, 1) against N(1/τ, 1) (Dong, Roth & Su 2019,
    theorem 2.7).

    Args:
        noise_multiplier: τ.
        fpr: rate of false alarms, in (0, 1).

    Returns:
        The largest area under the ROC curve, and the largest true-positive rate at `fpr`.
    """
    mu = 1 / noise_multiplier
    return float(norm.cdf(mu / math.sqrt(2))), float(norm.cdf(norm.ppf(fpr) + mu))


def reveal(release: Promise) -> Reveal:
    """Says it for one release.

    Args:
        release: its promise.
    """
    auc, tpr = best_attack(release.noise_multiplier)
    unit, k, classes = release.unit, release.embedding_dim, release.num_classes
    average = f"{k} numbers" if classes == 1 else f"{k} numbers for each of {classes} classes"
    count = "roughly how many units there are" if release.count_is_noisy else "how many there are"
    return Reveal(
        tells=(
            f"What the {unit}s have in common: {average}, their average look with noise on it. "
            "That is what the adapter learns from, and it is meant to be seen.",
            f"{count.capitalize()}, and when, with which bundle and at which ε it was made.",
        ),
        hides=(
            f"Whether any one {unit} was in the data. Someone who knows all others, and tests as "
            f"well as can be, is right about a {unit} in at most {auc:.0%} of comparisons between "
            "one that is in and one that is not (50% is guessing).",
            f"If they may wrongly accuse only 1 in 1,000, they find at most {tpr:.2%} of those who "
            "are in.",
            f"What one {unit} looks like, beyond what the others tell. All that is made from the "
            "release inherits this: adapter, what it generates, and whatever is done with that.",
        ),
        beyond=(
            "What is true of the whole group, whoever is in it: if all handwriting of a country "
            "slants, or all mail of a firm ends alike, the release may say so, and it would "
            "without you.",
            f"People with several {unit}s, if one {unit} is the unit: each further one weakens the "
            "promise for them."
            if unit == "record"
            else "Someone whose data is also under another user's name.",
            "Other releases of the same data: their budgets add up, which the ledger keeps count "
            "of. And this page: its metrics are not protected, nor private records that it shows.",
        ),
    )
