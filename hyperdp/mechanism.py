"""The one measurement: clip to an integer lattice, add up exactly, add exact Gaussian noise once.

A unit contributes, to each class l of L, a vector v[l] of R^k and a share s[l] >= 0 (1 for its own
class; a user with records of several classes has one share in each). All of v together has norm at
most C, all of w·s together norm at most w = C/4. The query is the sum of (v, w·s) over the units.
Every number is an integer count of lattice steps of 2^-24, so sums do not depend on order, batches,
workers or machine, and the noise is the discrete Gaussian, exactly. docs/privacy.md has the proofs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast, get_args

import numpy as np
import opendp.prelude as dp
from numpy.typing import NDArray

from hyperdp.budget import Adjacency, PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError

FRACTIONAL_BITS = 24
STEPS_PER_UNIT: int = 2**FRACTIONAL_BITS  # lattice steps in 1.0
MAX_CLIP_NORM = 64.0  # keeps every int64 sum exact for fewer than 2^32 units
_TAIL = 10.0  # coordinates beyond 10 σ are charged to δ outright


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The noise of one release, and how its δ is made up.

    Attributes:
        noise_multiplier: τ = σ / Δ, dimensionless.
        sigma: noise std, in lattice steps.
        delta_gaussian: the δ at which the continuous Gaussian of this τ is (ε, δ)-DP.
        delta_discretisation: what the lattice adds to it; together they are at most the budget's.
    """

    noise_multiplier: float
    sigma: float
    delta_gaussian: float
    delta_discretisation: float


@dataclass(frozen=True, kw_only=True)
class MechanismSpec:
    """What is measured and how: public configuration, frozen before private data is opened.

    Attributes:
        embedding_dim: k, numbers in one embedding.
        clip_norm: C, bound on the norm of a unit's contribution, in the embedding's units.
        num_classes: L; 1 is an unlabelled release.
        adjacency: which datasets are neighbours.
    """

    embedding_dim: int
    clip_norm: float
    num_classes: int = 1
    adjacency: Adjacency = "add-remove"

    def __post_init__(self) -> None:
        legal = {
            "embedding_dim": self.embedding_dim in range(1, 2**16 + 1),
            "num_classes": self.num_classes in range(1, 2**12 + 1),
            "clip_norm": 2.0**-10 <= self.clip_norm <= MAX_CLIP_NORM,
            "adjacency": self.adjacency in get_args(Adjacency),
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, holds in legal.items() if not holds]
        if wrong:
            raise UsageError(
                expected="1 <= embedding_dim <= 65536, 1 <= num_classes <= 4096, "
                f"2^-10 <= clip_norm <= {MAX_CLIP_NORM:g}, adjacency in {get_args(Adjacency)}",
                found=", ".join(wrong),
                todo="Correct that.",
            )

    @property
    def clip_bound(self) -> int:
        """C in whole lattice steps, rounded down."""
        return math.floor(self.clip_norm * STEPS_PER_UNIT)

    @property
    def count_bound(self) -> int:
        """The count weight w = C/4 in whole lattice steps, rounded down."""
        return math.floor(self.clip_norm / 4 * STEPS_PER_UNIT)

    @property
    def counts_are_private(self) -> bool:
        """Whether the query has count coordinates; only an unlabelled, public n needs none."""
        return self.adjacency == "add-remove" or self.num_classes > 1

    @property
    def coordinates(self) -> int:
        """Number of noisy integers: L·k, and L more where the counts are private."""
        return self.num_classes * (self.embedding_dim + self.counts_are_private)

    @property
    def squared_sensitivity(self) -> int:
        """Δ², in squared lattice steps: exact, since both bounds hold on the integers.

        Adding or removing a unit moves the query by that unit's own (v, w·s). Exchanging one moves
        v by at most 2C, and w·s by at most √2·w, as two vectors without negative entries are at
        most at a right angle (docs/privacy.md, lemma 2).
        """
        clip, count = self.clip_bound**2, self.count_bound**2
        if self.adjacency == "add-remove":
            return clip + count
        return 4 * clip + (2 * count if self.counts_are_private else 0)

    @property
    def sensitivity(self) -> float:
        """Δ, in the embedding's units."""
        return math.sqrt(self.squared_sensitivity) / STEPS_PER_UNIT

    def calibrate(self, budget: PrivacyBudget) -> Calibration:
        """The least noise that keeps this query within `budget`.

        Args:
            budget: its adjacency must be this query's.

        Returns:
            The calibration, with delta_gaussian + delta_discretisation <= budget.delta.

        Raises:
            UsageError: the adjacencies differ, or δ is too small for the lattice.
        """
        if budget.adjacency != self.adjacency:
            raise UsageError(
                expected=f"a budget for the query's adjacency, {self.adjacency}",
                found=f"adjacency={budget.adjacency!r}",
                todo="Use one adjacency throughout.",
            )
        # A smaller δ only raises σ, which only lowers the discretisation cost charged here.
        first = noise_multiplier(budget.epsilon, budget.delta)
        cost = discretisation_delta(self, first * math.sqrt(self.squared_sensitivity))
        if cost > budget.delta / 2:
            raise UsageError(
                expected=f"delta >= {2 * cost:.1e}, so that the integer lattice costs at most half",
                found=f"delta={budget.delta!r} for {self.coordinates} coordinates",
                todo="Raise delta, or lower epsilon.",
            )
        rest = math.nextafter(budget.delta - cost, 0.0)  # so that the float sum stays below δ
        tau = noise_multiplier(budget.epsilon, rest)
        return Calibration(
            noise_multiplier=tau,
            sigma=tau * math.sqrt(self.squared_sensitivity),
            delta_gaussian=rest,
            delta_discretisation=cost,
        )


class Query(Protocol):
    """What the cost of the lattice depends on, of any query on it."""

    @property
    def coordinates(self) -> int:
        """Number of noisy integers."""

    @property
    def squared_sensitivity(self) -> int:
        """Δ², in squared lattice steps."""


def discretisation_delta(spec: Query, sigma: float) -> float:
    """What the discrete Gaussian costs in δ over the continuous one, at the same σ.

    With m coordinates the two densities' log ratio lies within m / 8σ² on one side and
    r² / 8σ⁴ on the other, where r = √m·10σ + Δ bounds the noise outside an event of probability
    2m·exp(-10²/2) (docs/privacy.md, theorem 3). Such costs add up under composition.

    Args:
        spec: the query, for m and Δ.
        sigma: noise std, in lattice steps.

    Returns:
        δ, dimensionless; infinity where σ is under 10 lattice steps and the bound says nothing.
    """
    if sigma < 10:
        return math.inf
    m, reach = spec.coordinates, math.sqrt(spec.squared_sensitivity) / sigma
    log_ratio = (m + (math.sqrt(m) * _TAIL + reach) ** 2) / (8 * sigma**2)
    return 4 * log_ratio + 2 * m * math.exp(-(_TAIL**2) / 2) if log_ratio < 0.1 else math.inf


def clip_to_lattice(vectors: NDArray[np.floating], norm: float) -> NDArray[np.int64]:
    """Scale each row to at most `norm` and round it toward zero onto the lattice.

    Each row's result depends on that row alone, to the bit. A row with a NaN or an infinity becomes
    zero: an error would reveal the record.

    Args:
        vectors: float [B, d], in the embedding's units.
        norm: bound on the L2 norm of a row, in the embedding's units.

    Returns:
        int64 [B, d], in lattice steps, each row's norm at most floor(norm · 2^24), as integers.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # math.hypot row by row: numpy's own sum may round differently at another batch shape.
    norms = np.array([[math.hypot(*row)] for row in rows.tolist()]).reshape(len(rows), 1)
    scaled = rows * (norm / np.maximum(norms, norm)) * STEPS_PER_UNIT
    lattice: NDArray[np.int64] = np.trunc(scaled).astype(np.int64)
    bound = math.floor(norm * STEPS_PER_UNIT)
    # Floating point may leave a row a few steps outside; each pass takes a step off every entry.
    while (over := (lattice * lattice).sum(axis=1, keepdims=True) > bound * bound).any():
        lattice -= np.sign(lattice) * over
    return lattice


class ClippedSum:
    """The un-noised aggregate: exact, private, inseparable from its sensitivity; shows no value."""

    __slots__ = ("_counts", "_sums", "spec")

    def __init__(self, spec: MechanismSpec) -> None:
        self.spec = spec
        self._sums = np.zeros((spec.num_classes, spec.embedding_dim), dtype=np.int64)
        self._counts = np.zeros(spec.num_classes, dtype=np.int64)

    def __repr__(self) -> str:
        return f"ClippedSum({self.spec}, private value not shown)"

    def add(self, embeddings: NDArray[np.floating], shares: NDArray[np.floating]) -> None:
        """Clip the contributions of B units and add them.

        Args:
            embeddings: float [B, L, k], each unit's embedding in each class, in its units.
            shares: float [B, L], the share of each unit in each class; negative counts as none.
        """
        classes, dim = self._sums.shape
        flat = np.asarray(embeddings).reshape(len(shares), classes * dim)
        clipped = clip_to_lattice(flat, self.spec.clip_norm)
        self._sums += clipped.sum(axis=0).reshape(classes, dim)
        weighted = np.maximum(shares, 0.0) * (self.spec.clip_norm / 4)
        self._counts += clip_to_lattice(weighted, self.spec.clip_norm / 4).sum(axis=0)

    def to_vector(self) -> NDArray[np.int64]:
        """The exact sums for another process of the operator: int64 [L·k + L], private."""
        return np.concatenate([self._sums.ravel(), self._counts])

    def add_vector(self, vector: NDArray[np.int64]) -> None:
        """Add what others have added up of other units under the same query, by `to_vector`."""
        sums, counts = np.split(np.asarray(vector), [self._sums.size])
        if sums.dtype != np.int64 or counts.shape != self._counts.shape:
            raise ValueError("expected int64 [L·k + L], as to_vector gives it")
        self._sums += sums.reshape(self._sums.shape)
        self._counts += counts


def add_noise(
    total: ClippedSum, budget: PrivacyBudget
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make the sum private: add the discrete Gaussian once, seeded by the operating system.

    Args:
        total: the exact aggregate, which carries its query.
        budget: what may be spent.

    Returns:
        sums int64 [L, k] and counts int64 [L], both in lattice steps (a count of one unit is
        `spec.count_bound` steps). Where n is public and unlabelled the count is exact.
    """
    spec = total.spec
    query = total._sums.ravel()
    if spec.counts_are_private:
        query = np.concatenate([query, total._counts])
    noisy = add_discrete_gaussian(query, spec.calibrate(budget).sigma)
    counts = noisy[total._sums.size :] if spec.counts_are_private else total._counts.copy()
    return noisy[: total._sums.size].reshape(total._sums.shape), counts


def add_discrete_gaussian(values: NDArray[np.int64], sigma: float) -> NDArray[np.int64]:
    """Add independent discrete Gaussians, seeded by the operating system.

    The sampler is OpenDP's, exact (Canonne, Kamath & Steinke 2020, arXiv 2004.00010).

    Args:
        values: int64 [m], private, in lattice steps.
        sigma: noise std, in lattice steps.

    Returns:
        int64 [m], in lattice steps.
    """
    dp.enable_features("contrib")
    domain, metric = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    measurement = dp.m.make_gaussian(domain, metric, scale=sigma)
    return np.array(cast(list[int], measurement(values.tolist())), dtype=np.int64)
