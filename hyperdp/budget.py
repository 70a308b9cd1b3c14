"""The privacy budget of one release: what is promised, to whom, and the noise it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from dp_accounting import get_sigma_gaussian

from hyperdp.errors import UsageError

Adjacency = Literal["add-remove", "replace-one"]
"""Which datasets count as neighbours: one unit more or less (n is private), or one exchanged."""
Unit = Literal["record", "user"]
"""Whom the promise protects: one record, or all records of one user."""

_ROOT_TOLERANCE = 1e-12  # where dp_accounting's root search stops, on either side of the root
_MARGIN = 1e-8  # of τ, above what rounding can take from it; at most 2e-7 of ε where ε <= 16


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """An (ε, δ) promise together with the adjacency and the unit it is about.

    Attributes:
        epsilon: 1e-4 <= ε < 500; beyond, no second method could verify it (docs/privacy.md).
        delta: 1e-10 <= δ < 1, likewise; the whole δ, the cost of the integer lattice included.
        adjacency: "add-remove" or "replace-one".
        unit: "record" or "user".

    Raises:
        UsageError: a value is outside its range (NaN and infinity are).
    """

    epsilon: float
    delta: float
    adjacency: Adjacency = "add-remove"
    unit: Unit = "record"

    def __post_init__(self) -> None:
        for name, low, high in (("epsilon", 1e-4, 500.0), ("delta", 1e-10, 1.0)):
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        for name, value, legal in (
            ("adjacency", self.adjacency, get_args(Adjacency)),
            ("unit", self.unit, get_args(Unit)),
        ):
            if value not in legal:
                raise UsageError(
                    expected=f"{name} to be one of {', '.join(legal)}",
                    found=f"{name}={value!r}",
                    todo=f"Choose one of the legal values of {name}.",
                )


def _number(name: str, value: object, low: float, high: float) -> float:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not (real and low <= value < high):  # type: ignore[operator]
        raise UsageError(
            expected=f"{low:g} <= {name} < {high:g}",
            found=f"{name}={value!r}",
            todo="Common choices: 0.1 <= epsilon <= 10, and delta well below 1 / number of units.",
        )
    return float(value)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest τ = σ / Δ at which one Gaussian release is (ε, δ)-differentially private.

    Args:
        epsilon: ε, in a `PrivacyBudget`'s range.
        delta: δ, likewise.

    Returns:
        τ, dimensionless: the root of equation (6) of Balle & Wang 2018 (arXiv 1805.06530) as
        float64 finds it, and a relative 1e-8 more, for what rounding can take from it.
    """
    root = float(get_sigma_gaussian(epsilon, delta, _ROOT_TOLERANCE)) + 4 * _ROOT_TOLERANCE
    return root * (1 + _MARGIN)
