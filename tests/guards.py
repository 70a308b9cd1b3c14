"""A guard made of Gaussians for tests: public means about one point, foreign ones about another."""

from __future__ import annotations

import numpy as np

from hyperdp.guard import Guard

K = 8


def draw_means(count: int, centre: float, seed: int) -> np.ndarray:
    """float64 [count, K] about `centre` on the first axis."""
    means = 0.12 * np.random.default_rng(seed).standard_normal((count, K))
    means[:, 0] += centre
    return means


def gaussian_guard(bundle_hash: str = "ab" * 32, *, k_seed: int = 0) -> Guard:
    rng = np.random.default_rng(k_seed)
    shapes = rng.gamma(1.0, size=(200, K))
    return Guard(
        bundle_hash=bundle_hash,
        clip_norm=1.0,
        records=4000,
        reference=draw_means(200, 0.3, 1),
        foreign=draw_means(100, -0.5, 2),
        calibration=draw_means(200, 0.3, 3),
        spectra=np.sort(shapes / shapes.sum(1, keepdims=True), axis=1),
        scatter=np.eye(K) / K,
    )
