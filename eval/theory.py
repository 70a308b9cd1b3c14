"""A linear world in which the rates are known: what does the subspace give, what the single shot?

Records are (x, y), x ~ N(0, I_d), y = x·θ + noise, and θ = Uβ lies in a k-dimensional subspace that
all tasks share and that public tasks reveal. φ(x, y) = Ûᵀxy has mean Ûᵀθ, so one noisy mean of
clipped φ estimates θ. All data here is synthetic; seeds are therefore allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperdp.budget import noise_multiplier

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]

QUANTILES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)  # of ‖φ‖, out of which C is chosen
STEPS = (1, 2, 4, 8, 16, 32, 64)
RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # the Hessian is I, so 1 is Newton's step where none clips
CLIPS = (0.1, 0.3, 1.0, 3.0)  # times the median norm of the first gradients


@dataclass(frozen=True, kw_only=True)
class LinearWorld:
    """The law that tasks and records are drawn from.

    Attributes:
        d: dimension of x. k: dimension of the subspace.
        noise_std: of y around x·θ; ‖θ‖ = 1.
        delta: δ of every guarantee; replace-one, n public.
    """

    d: int = 200
    k: int = 5
    noise_std: float = 0.5
    delta: float = 1e-5

    def basis(self, rng: np.random.Generator) -> Array:
        """U with orthonormal columns, float32 [d, k]."""
        q, _ = np.linalg.qr(rng.standard_normal((self.d, self.k)))
        return q.astype(np.float32)

    def task(self, basis: Array, rng: np.random.Generator) -> Array:
        """θ = Uβ with β uniform on the sphere, float32 [d]."""
        beta = rng.standard_normal(self.k).astype(np.float32)
        return basis @ (beta / np.linalg.norm(beta))

    def records(self, theta: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """N records of a task: x float32 [n, d], y float32 [n]."""
        x = rng.standard_normal((n, len(theta)), dtype=np.float32)
        noise = rng.standard_normal(n, dtype=np.float32)
        return x, x @ theta + np.float32(self.noise_std) * noise

    def multiplier(self, epsilon: float) -> float:
        """τ of one Gaussian release at (ε, δ); T steps need √T τ, exactly."""
        return noise_multiplier(epsilon, self.delta)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip norm and what public records say of clipped embeddings.

    Attributes:
        norm: C.
        signal: c, the factor that clipping leaves of the mean: E φ_clipped = cθ by symmetry.
        energy: E‖φ_clipped‖².
    """

    norm: float
    signal: float
    energy: float


def learn_subspace(
    world: LinearWorld, basis: Array, *, tasks: int, records: int, rng: np.random.Generator
) -> Array:
    """Û: the leading k directions of public tasks' least-squares estimates, float32 [d, k].

    Args:
        world: the law.
        basis: U, from which public tasks are drawn.
        tasks: number of public tasks.
        records: of each, more than d.
        rng: of the draw.
    """
    moment = np.zeros((world.d, world.d))
    for _ in range(tasks):
        x, y = world.records(world.task(basis, rng), records, rng)
        estimate = np.linalg.solve((x.T @ x).astype(np.float64), (x.T @ y).astype(np.float64))
        moment += np.outer(estimate, estimate) / tasks
    return np.linalg.eigh(moment)[1][:, -world.k :].astype(np.float32)


def subspace_error(basis: Array, learned: Array) -> float:
    """Mean share of a task's energy outside the learned subspace: 1 − ‖ÛᵀU‖² / k."""
    return float(1 - np.square(learned.T.astype(np.float64) @ basis).sum() / basis.shape[1])


def public_clips(
    world: LinearWorld, dim: int, *, records: int, rng: np.random.Generator
) -> list[Clip]:
    """What clip norms do, seen on public records.

    Args:
        world: the law.
        dim: of the embedding: k in the subspace, d without it.
        records: public records.
        rng: of the draw.
    """
    theta = np.zeros(dim, dtype=np.float32)
    theta[0] = 1.0
    x, y = world.records(theta, records, rng)
    norms = np.abs(y) * np.linalg.norm(x, axis=1)
    clips = []
    for norm in np.quantile(norms, QUANTILES):
        scale = np.minimum(1.0, norm / norms)
        clips.append(
            Clip(
                norm=float(norm),
                signal=float(np.mean(scale * y * x[:, 0])),
                energy=float(np.mean(np.square(scale * norms))),
            )
        )
    return clips


def predicted(clip: Clip, *, dim: int, n: int, multiplier: float) -> tuple[float, float]:
    """Relative squared error of the unshrunk one-shot estimate, exactly, in its two parts.

    With C ~ √dim these are the rates dim/n and dim²·ln(1/δ)/(n²ε²).

    Args:
        clip: C and its moments.
        dim: of the embedding.
        n: records.
        multiplier: τ.

    Returns:
        Sampling error and privacy error; their sum v shrinks to v / (1 + v).
    """
    sampling = (clip.energy - clip.signal**2) / n
    privacy = dim * (2 * clip.norm * multiplier / n) ** 2
    return sampling / clip.signal**2, privacy / clip.signal**2


def best_clip(clips: list[Clip], *, dim: int, n: int, multiplier: float) -> Clip:
    """The clip norm of least predicted error: chosen on public records alone."""
    return min(clips, key=lambda c: sum(predicted(c, dim=dim, n=n, multiplier=multiplier)))


def one_shot(
    x: Array, y: Array, clip: Clip, multiplier: float, rng: np.random.Generator
) -> Doubles:
    """One noisy mean of clipped xy, shrunk by what noise and sampling are known to add.

    Args:
        x: float32 [n, m], records in the coordinates that are measured.
        y: float32 [n].
        clip: C and its moments.
        multiplier: τ.
        rng: of the noise.

    Returns:
        Estimate of θ in these coordinates, float64 [m].
    """
    n, dim = x.shape
    norms = np.abs(y) * np.linalg.norm(x, axis=1)
    weights = np.minimum(1.0, clip.norm / np.maximum(norms, 1e-30)) * y
    mean = (x.T @ weights.astype(np.float32)).astype(np.float64) / n
    mean += rng.normal(scale=2 * clip.norm * multiplier / n, size=dim)
    error = sum(predicted(clip, dim=dim, n=n, multiplier=multiplier))
    return np.asarray(mean / clip.signal / (1 + error), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of DP-SGD: noisy full-batch gradient descent on the squared loss.

    Attributes:
        steps: T. rate: learning rate. clip: times the median norm of the first gradients, taken on
            public records of the same law.
    """

    steps: int
    rate: float
    clip: float


def descend(
    x: Array,
    y: Array,
    settings: list[Descent],
    *,
    gradient_norm: float,
    multiplier: float,
    rng: np.random.Generator,
) -> Doubles:
    """Noisy gradient descent from 0, all settings of one T side by side.

    Args:
        x: float32 [n, m].
        y: float32 [n].
        settings: c settings with the same T.
        gradient_norm: the public median that clips are multiples of.
        multiplier: τ of one release; every step has √T τ.
        rng: of the noise.

    Returns:
        The last iterates, float64 [m, c].
    """
    (steps,) = {s.steps for s in settings}
    n, dim = x.shape
    rates = np.array([s.rate for s in settings])
    clips = np.array([s.clip * gradient_norm for s in settings])
    lengths = np.linalg.norm(x, axis=1)[:, None]  # [n, 1]
    iterate = np.zeros((dim, len(settings)))
    sigma = 2 * clips * multiplier * np.sqrt(steps) / n  # [c]
    for _ in range(steps):
        residual = x @ iterate.astype(np.float32) - y[:, None]  # [n, c]
        norms = np.maximum(np.abs(residual) * lengths, np.float32(1e-30))
        residual *= np.minimum(np.float32(1.0), clips.astype(np.float32) / norms)
        gradient = (x.T @ residual).astype(np.float64) / n
        gradient += rng.standard_normal((dim, len(settings))) * sigma
        iterate -= rates * gradient
    return iterate


def tune(
    draws: list[tuple[Array, Array, Array]],
    *,
    gradient_norm: float,
    multiplier: float,
    rng: np.random.Generator,
) -> Descent:
    """The T, rate and clip of least mean error on draws that are not measured.

    Args:
        draws: (x [n, m], y [n], θ in the same coordinates [m]) of separate tasks.
        gradient_norm: see `descend`.
        multiplier: τ.
        rng: of the noise.
    """
    best = (np.inf, Descent(steps=1, rate=RATES[0], clip=CLIPS[0]))
    for steps in STEPS:
        grid = [Descent(steps=steps, rate=r, clip=c) for r in RATES for c in CLIPS]
        errors = np.zeros(len(grid))
        for x, y, theta in draws:
            found = descend(x, y, grid, gradient_norm=gradient_norm, multiplier=multiplier, rng=rng)
            errors += np.square(found - theta[:, None]).sum(0) / len(draws)
        least = int(np.nan_to_num(errors, nan=np.inf).argmin())
        if errors[least] < best[0]:
            best = (float(errors[least]), grid[least])
    return best[1]


def slope(positions: list[float], errors: list[float]) -> float:
    """Exponent of error in a quantity: least squares on logarithms, shrinkage undone.

    Args:
        positions: n or ε, at least two.
        errors: mean relative errors e in (0, 1); v = e / (1 − e) is what obeys the rate.
    """
    e = np.asarray(errors)
    return float(np.polyfit(np.log(positions), np.log(e / (1 - e)), 1)[0])
