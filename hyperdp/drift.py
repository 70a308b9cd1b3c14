"""Whether a source has changed between two releases of it; post-processing, free.

Under no change both means have one expectation, and their difference holds noise, whose level is
known, and sampling error, whose covariance is never read from private data. Its trace is at most
C² − ‖mean‖², which the releases themselves tell; how it is spread over directions is taken from
held-out public tasks. A second p-value asks nothing of the source but the clip norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from hyperdp.errors import UsageError
from hyperdp.guard import Guard, simes

Float = npt.NDArray[np.float64]

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What one release tells of one class.

    Attributes:
        mean: float64 [k], noisy. noise_std: on each coordinate.
        units: noisy number of units, as the release tells it.
        units_std: std of the noise on it; 0 where n is public.
    """

    mean: Float
    noise_std: float
    units: float
    units_std: float = 0.0

    @property
    def count_ratio(self) -> float:
        """Relative error of the divisor, one standard deviation."""
        return self.units_std / max(self.units, 1.0)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How two releases compare.

    Attributes:
        distance: ‖mean A − mean B‖ of each class, in the embedding's units.
        expected: what noise and sampling alone make of it, root mean square.
        p_values: of each class, for a source like the public tasks.
        p_bounds: of each class, an upper bound for any source whatever.
        p_value, p_bound: of all classes together (Simes 1986).
        changed: p_value <= `LEVEL`.
    """

    distance: tuple[float, ...]
    expected: tuple[float, ...]
    p_values: tuple[float, ...]
    p_bounds: tuple[float, ...]
    p_value: float
    p_bound: float
    changed: bool


def compare(first: list[Measured], second: list[Measured], guard: Guard) -> Drift:
    """Compares two releases of one source, class by class.

    The records of the two releases are taken for independent draws. Where they share records the
    p-values are too large, never too small.

    Args:
        first: one `Measured` a class.
        second: the same of the later release, in the same order.
        guard: of the bundle that both were made with.

    Raises:
        UsageError: the classes or dimensions differ.
    """
    shapes = [{m.mean.shape for m in side} for side in (first, second)]
    if len(first) != len(second) or not first or shapes[0] | shapes[1] != {guard.spread.shape[:1]}:
        raise UsageError(
            expected=f"the same classes on both sides, means of {len(guard.spread)} coordinates",
            found=f"{len(first)} and {len(second)} classes",
            todo="Compare releases of one source, made with one bundle and the same --classes.",
        )
    pairs = list(zip(first, second, strict=True))
    distances = [float(np.linalg.norm(a.mean - b.mean)) for a, b in pairs]
    spectra = [null_spectra(a, b, guard) for a, b in pairs]
    values = tuple(
        p_value(square, distance**2) for square, distance in zip(spectra, distances, strict=True)
    )
    bounds = tuple(p_bound(a, b, guard.clip_norm) for a, b in pairs)
    together = simes(values)
    return Drift(
        distance=tuple(distances),
        expected=tuple(math.sqrt(float(s.sum(1).mean())) for s in spectra),
        p_values=values,
        p_bounds=bounds,
        p_value=together,
        # Simes' test assumes that classes do not counteract; Bonferroni assumes nothing.
        p_bound=min(1.0, len(bounds) * min(bounds)),
        changed=together <= LEVEL,
    )


def null_spectra(a: Measured, b: Measured, guard: Guard) -> Float:
    """Eigenvalues of the difference's covariance under no change, for each public task.

    Sampling adds Σ(1/n_A + 1/n_B), with Σ's trace from the releases and its shape from the task;
    the noisy divisors scale the means, which adds variance along their direction.

    Returns:
        float64 [N, k + 1].
    """
    weights = np.array([1 / max(m.noise_std, 1e-9) ** 2 for m in (a, b)])
    mean = (weights[0] * a.mean + weights[1] * b.mean) / weights.sum()
    noise = a.noise_std**2 + b.noise_std**2
    # ‖z‖² counts the noise's own length too, which is known and taken off.
    square = max(float(mean @ mean) - mean.size / float(weights.sum()), 0.0)
    trace = max(guard.clip_norm**2 - square, 1e-3 * guard.clip_norm**2)
    shapes = guard.spectra / guard.spectra.sum(1, keepdims=True)  # [N, k]
    sampling = trace * shapes * (1 / max(a.units, 1.0) + 1 / max(b.units, 1.0))
    scale = square * (a.count_ratio**2 + b.count_ratio**2)
    return np.concatenate([noise + sampling, np.full((len(shapes), 1), scale)], 1)


def p_value(spectra: Float, square: float) -> float:
    """P[Σ λ χ²₁ ≥ square], averaged over rows of eigenvalues.

    Each tail is the saddlepoint approximation of Kuonen 1999 (Biometrika 86(4), equation 2), after
    Lugannani & Rice 1980; a relative error of about a tenth at most, far out too, where a
    simulation has no draw.

    Args:
        spectra: float64 [N, k], eigenvalues >= 0, one row a public task.
        square: squared distance.
    """
    if square <= 0:  # the same release twice, say
        return 1.0
    rows = np.asarray(spectra, dtype=np.float64)
    largest = rows.max(1)
    low = -0.5 * rows.shape[1] / square - 0.5 / largest  # K' is below `square` there
    high = 0.5 / largest * (1 - 1e-12)
    for _ in range(60):  # K' rises on the whole of (low, high)
        middle = (low + high) / 2
        slope = (rows / (1 - 2 * middle[:, None] * rows)).sum(1)
        low, high = np.where(slope < square, middle, low), np.where(slope < square, high, middle)
    at = (low + high) / 2
    part = 1 - 2 * at[:, None] * rows
    cumulant, curvature = -0.5 * np.log(part).sum(1), 2 * np.square(rows / part).sum(1)
    w = np.sign(at) * np.sqrt(np.maximum(2 * (at * square - cumulant), 0.0))
    v = at * np.sqrt(curvature)
    near = np.abs(w) < 1e-4  # at the mean the formula is 0/0: three moments tell the tail there
    w, v = np.where(near, 1.0, w), np.where(near, 1.0, v)
    tail = norm.sf(w + np.log(v / w) / w)
    tail = np.where(near, _tail_at_mean(rows, square), tail)
    return float(np.clip(tail, 0.0, 1.0).mean())


def _tail_at_mean(rows: Float, square: float) -> Float:
    """The tail by a scaled and shifted χ² of the same three moments (Pearson 1959)."""
    first, second, third = (np.power(rows, power).sum(1) for power in (1, 2, 3))
    degrees = second**3 / third**2
    scaled = (square - first) / np.sqrt(2 * second) * np.sqrt(2 * degrees) + degrees
    return np.asarray(chi2.sf(scaled, degrees))


def p_bound(a: Measured, b: Measured, clip_norm: float) -> float:
    """An upper bound on the p-value for any source, by the clip norm alone.

    The difference of two independent sample means of vectors of norm ≤ C is longer than
    C√b(1 + √(2 log 1/β)), b = 1/n_A + 1/n_B, with probability at most β (McDiarmid 1989, as one
    record moves the length by 2C/n at most). What is left of the distance must be noise: of the
    sums, χ with k degrees of freedom, and of the divisors, which scale means of norm ≤ C.

    Args:
        a: the earlier release.
        b: the later one.
        clip_norm: C.
    """
    distance = float(np.linalg.norm(a.mean - b.mean))
    noise = math.sqrt(a.noise_std**2 + b.noise_std**2)
    beta = np.geomspace(1e-12, 0.3, 80)
    reach = norm.isf(beta)  # standard deviations that a noisy count may be off
    spread = sum(1 / np.maximum(m.units - reach * m.units_std, 1.0) for m in (a, b))
    sampling = clip_norm * np.sqrt(spread) * (1 + np.sqrt(2 * np.log(1 / beta)))
    scale = clip_norm * norm.isf(beta / 2) * (a.count_ratio + b.count_ratio)
    rest = np.maximum(distance - sampling - scale, 0.0) / noise
    # Five events of probability β: the sampling error, and for each count its size and its scale.
    return float(min(1.0, (5 * beta + chi2.sf(rest**2, a.mean.size)).min()))
