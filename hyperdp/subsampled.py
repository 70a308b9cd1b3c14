"""ε of Poisson-sampled Gaussian steps, a second way: Fourier transforms of the privacy loss.

`hyperdp.accounting` uses the privacy loss distributions of `dp_accounting`, which round so that ε
is an upper bound. Here the loss of one step is rounded to the nearest point of a grid and moved
back to its true mean, and the T-fold convolution is a power of its Fourier transform (Koskela,
Jälkö & Honkela 2020, arXiv 1906.03049; Gopi, Lee & Wutschitz 2021, arXiv 2106.02848). It is an
estimate, not a bound, and shares no code with the other: that the two agree is what
`hyperdp verify` checks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

MOST_STEPS = 10**6  # T that is still computed with
MOST_UNITS = 10**12  # n, of which a sampling probability is made
_POINTS = 2**18  # of the grid
_TAILS = 14.0  # standard deviations of the composed loss inside the grid


def subsampled_epsilon(
    noise_multiplier: float,
    probability: float,
    steps: int,
    delta: float,
    *,
    release_multiplier: float = math.inf,
) -> float:
    """ε of T Gaussian steps on Poisson samples, under add-remove adjacency.

    Args:
        noise_multiplier: σ, noise std over the sensitivity.
        probability: q in (0, 1].
        steps: T >= 1.
        delta: 0 < δ < 1.
        release_multiplier: τ of one Gaussian release of the same data beside the steps; infinite
            for none.

    Returns:
        The larger of the ε of adding and of removing a unit; an estimate.
    """
    return max(
        _one_way(
            noise_multiplier, probability, steps, delta, 1 / release_multiplier, removing=removing
        )
        for removing in (True, False)
    )


def _one_way(
    sigma: float, q: float, steps: int, delta: float, mu: float, *, removing: bool
) -> float:
    mean, std = _moments(sigma, q, removing=removing)
    # Room for the composed loss on either side, and for the bulk of one step's.
    farthest = float(_loss(np.array([1 + _TAILS * sigma]), sigma, q)[0])
    reach = steps * abs(mean) + _TAILS * math.sqrt(steps) * std + farthest + 0.1
    reach += mu**2 / 2 + _TAILS * mu
    width = 2 * reach / _POINTS
    grid = (np.arange(_POINTS) - _POINTS // 2) * width  # losses, ascending
    edges = np.concatenate([grid - width / 2, grid[-1:] + width / 2])
    mass = np.diff(_cdf(edges, sigma, q, removing=removing))
    # Of one step; all of it is counted into δ. From its ends: 1 - Σ is rounding, T times over.
    beyond = _beyond(edges[[0, -1]], sigma, q, removing=removing)
    mass /= mass.sum()
    shift = mean - float(mass @ grid)
    transformed = _power(np.fft.ifftshift(mass), steps)
    # The loss of a release is N(μ²/2, μ²) (Dong, Roth & Su 2022), whose transform is known.
    angle = 2 * math.pi * np.fft.rfftfreq(_POINTS, width)
    transformed *= np.exp(-1j * angle * mu**2 / 2 - (angle * mu) ** 2 / 2)
    composed: NDArray[np.float64] = np.maximum(
        np.fft.fftshift(np.fft.irfft(transformed, _POINTS)), 0.0
    )
    # The rounded steps' sum may have drifted off the grid and in again at its other end.
    drift = round(steps * shift / width)
    losses = np.asarray(grid + (steps * shift - drift * width), dtype=np.float64)
    composed = np.roll(composed, drift)
    return _epsilon_at(losses, composed, delta - steps * beyond)


def _power(mass: NDArray[np.float64], steps: int) -> NDArray[np.complex128]:
    """The T-th power of the transform of a mass, of which most is at index 0.

    By way of log(1 + z) with z the transform of what is elsewhere, less what is missing at 0:
    rounding of the transform itself, T times over, would be larger than a small δ.
    """
    moved = mass.copy()
    moved[0] = -mass[1:].sum()
    z = np.fft.rfft(moved)
    whole = np.hypot(1 + z.real, z.imag)
    with np.errstate(divide="ignore"):  # -inf where the transform is 0
        near = 0.5 * np.log1p(z.real * (2 + z.real) + z.imag**2)
        log = np.where(whole > 0.5, near, np.log(whole))
    size = np.exp(steps * log)
    return np.asarray(size * np.exp(1j * steps * np.arctan2(z.imag, 1 + z.real)))


def _moments(sigma: float, q: float, *, removing: bool) -> tuple[float, float]:
    """Mean and std of one step's loss, by quadrature over x."""
    x = np.linspace(-12 * sigma - 1, 12 * sigma + 2, 100_001)
    step = x[1] - x[0]
    at_0 = np.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    at_1 = np.exp(-0.5 * ((x - 1) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    loss = _loss(x, sigma, q)
    density, loss = ((1 - q) * at_0 + q * at_1, loss) if removing else (at_0, -loss)
    mean = float((density * loss).sum() * step)
    return mean, math.sqrt(max(0.0, float((density * (loss - mean) ** 2).sum() * step)))


def _loss(x: NDArray[np.float64], sigma: float, q: float) -> NDArray[np.float64]:
    """Logarithm of (1-q) N(0, σ²) + q N(1, σ²) over N(0, σ²), at x."""
    with np.errstate(divide="ignore"):
        keep = np.log1p(-q) if q < 1 else -np.inf
    result: NDArray[np.float64] = np.logaddexp(keep, np.log(q) + (2 * x - 1) / (2 * sigma**2))
    return result


def _at(losses: NDArray[np.float64], sigma: float, q: float, *, removing: bool) -> NDArray:  # type: ignore[type-arg]
    """The x of a loss, which is a monotone function of it: rising where `removing`."""
    signed = losses if removing else -losses
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where log((1-q) + q exp(…)) = l; a large l by itself, as its exponential overflows.
        inside = np.where(signed > 30, signed, np.log(np.maximum(np.expm1(signed) + q, 0.0)))
        x: NDArray[np.float64] = sigma**2 * (inside - np.log(q)) + 0.5
    return x  # -inf below the smallest loss, log(1-q)


def _cdf(losses: NDArray[np.float64], sigma: float, q: float, *, removing: bool) -> NDArray:  # type: ignore[type-arg]
    """P[loss <= l]: a Gaussian's, or two Gaussians'."""
    x = _at(losses, sigma, q, removing=removing)
    if removing:
        return (1 - q) * ndtr(x / sigma) + q * ndtr((x - 1) / sigma)  # type: ignore[no-any-return]
    return np.exp(log_ndtr(-x / sigma))  # type: ignore[no-any-return]


def _beyond(ends: NDArray[np.float64], sigma: float, q: float, *, removing: bool) -> float:
    """P[loss <= the first end, or > the second], each tail by itself."""
    low = _cdf(ends[:1], sigma, q, removing=removing)
    x = _at(ends[1:], sigma, q, removing=removing)
    two = (1 - q) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma)
    high = two if removing else ndtr(x / sigma)
    return float(low[0] + high[0])


def _epsilon_at(losses: NDArray[np.float64], mass: NDArray[np.float64], delta: float) -> float:
    """Smallest ε >= 0 with Σ (1 - e^{ε-l}) P[l] over l > ε at most δ, by bisection."""
    if delta <= 0:
        return math.inf

    def exceeds(epsilon: float) -> bool:
        above = losses > epsilon
        return float(mass[above] @ -np.expm1(epsilon - losses[above])) > delta

    low, high = 0.0, float(losses[-1])
    if not exceeds(low):
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high
