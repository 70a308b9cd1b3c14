"""Noisy votes: each unit has one vote among public candidates, and the histogram is noised.

A unit's vote is a vector s >= 0 with ‖s‖ <= 1: one for the candidate that its record is nearest
to, or a user's shares over several. One histogram is Σ s over the units, in lattice steps of 2^-24,
with the discrete Gaussian of `hyperdp.mechanism` on it. T histograms, each asked in view of those
before, compose to one Gaussian (docs/privacy.md, "Votes").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hyperdp.budget import Adjacency, PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError
from hyperdp.mechanism import (
    STEPS_PER_UNIT,
    Calibration,
    add_discrete_gaussian,
    discretisation_delta,
)

MOST_CANDIDATES, MOST_ITERATIONS = 2**16, 10**4


@dataclass(frozen=True, kw_only=True)
class VoteSpec:
    """What is asked and how often: public, frozen before private data is opened.

    Attributes:
        candidates: N, numbers in one histogram.
        iterations: T, histograms.
        adjacency: which datasets are neighbours.
    """

    candidates: int
    iterations: int
    adjacency: Adjacency = "add-remove"

    def __post_init__(self) -> None:
        legal = {
            "candidates": self.candidates in range(1, MOST_CANDIDATES + 1),
            "iterations": self.iterations in range(1, MOST_ITERATIONS + 1),
            "adjacency": self.adjacency in get_args(Adjacency),
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, holds in legal.items() if not holds]
        if wrong:
            raise UsageError(
                expected=f"1 <= candidates <= {MOST_CANDIDATES}, 1 <= iterations <= "
                f"{MOST_ITERATIONS}, adjacency in {get_args(Adjacency)}",
                found=", ".join(wrong),
                todo="Correct that.",
            )

    @property
    def coordinates(self) -> int:
        """Noisy integers of one histogram."""
        return self.candidates

    @property
    def squared_sensitivity(self) -> int:
        """Δ² of one histogram, in squared lattice steps.

        Adding or removing a unit moves it by that unit's own s, ‖s‖ <= 1. Exchanging one moves it
        by at most √2, as two vectors without negative entries are at most at a right angle.
        """
        return STEPS_PER_UNIT**2 * (1 if self.adjacency == "add-remove" else 2)

    @property
    def sensitivity(self) -> float:
        """Δ of one histogram, in votes."""
        return math.sqrt(self.squared_sensitivity) / STEPS_PER_UNIT

    def calibrate(self, budget: PrivacyBudget) -> Calibration:
        """The least noise on each histogram that keeps all of them within `budget`.

        T Gaussians of noise multiplier τ compose to one of τ / √T (Dong, Roth & Su 2022, corollary
        3.3), also where each query depends on earlier answers.

        Args:
            budget: for all T; its adjacency must be this query's.

        Returns:
            `noise_multiplier` and `sigma` of one histogram; the two δ are of all of them.

        Raises:
            UsageError: the adjacencies differ, or δ is too small for the lattice.
        """
        if budget.adjacency != self.adjacency:
            raise UsageError(
                expected=f"a budget for the query's adjacency, {self.adjacency}",
                found=f"adjacency={budget.adjacency!r}",
                todo="Use one adjacency throughout.",
            )
        root, delta_of = math.sqrt(self.iterations), math.sqrt(self.squared_sensitivity)
        # A smaller δ only raises σ, which only lowers the discretisation cost charged here.
        first = root * noise_multiplier(budget.epsilon, budget.delta)
        cost = self.iterations * discretisation_delta(self, first * delta_of)
        if cost > budget.delta / 2:
            raise UsageError(
                expected=f"delta >= {2 * cost:.1e}, so that the integer lattice costs at most half",
                found=f"delta={budget.delta!r} for {self.iterations} x {self.candidates} votes",
                todo="Raise delta, or lower epsilon.",
            )
        rest = math.nextafter(budget.delta - cost, 0.0)  # so that the float sum stays below δ
        tau = root * noise_multiplier(budget.epsilon, rest)
        return Calibration(
            noise_multiplier=tau,
            sigma=tau * delta_of,
            delta_gaussian=rest,
            delta_discretisation=cost,
        )


class VoteSum:
    """One un-noised histogram: exact, private, inseparable from its sensitivity; shows no value."""

    __slots__ = ("_votes", "spec")

    def __init__(self, spec: VoteSpec) -> None:
        self.spec = spec
        self._votes = np.zeros(spec.candidates, dtype=np.int64)

    def __repr__(self) -> str:
        return f"VoteSum({self.spec}, private value not shown)"

    def add(self, chosen: NDArray[np.int64]) -> None:
        """Add one unit's vote, shared evenly among its records.

        Args:
            chosen: int64 [R], R >= 1, the candidate of each record of the unit.
        """
        counts = np.bincount(chosen, minlength=self.spec.candidates)
        # Rounded down, so that the shares' sum, which bounds their norm, is at most one.
        self._votes += counts * STEPS_PER_UNIT // len(chosen)


def noisy_votes(total: VoteSum, budget: PrivacyBudget) -> NDArray[np.int64]:
    """Make one of the T histograms private.

    Args:
        total: the histogram, which carries its query.
        budget: for all T.

    Returns:
        int64 [N], in lattice steps; may be negative.
    """
    return add_discrete_gaussian(total._votes, total.spec.calibrate(budget).sigma)
