"""The Fréchet distance itself, fast enough to be repeated over random splits."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, eq. 6).

    torchmetrics takes the eigenvalues of the covariances' product, which is not symmetric: 8 s for
    1,280 dimensions on one core, where this takes 1 s. With centred and scaled rows A, B the
    covariances are AᵀA and BᵀB, and the trace of (AᵀA BᵀB)^½ is the sum of the singular values of
    A Bᵀ, an n × m matrix: roots of the eigenvalues of a symmetric matrix of the least of n, m
    and D.

    Args:
        a: float64 [n, D].
        b: float64 [m, D]; n, m ≥ 2.
    """
    mean = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    trace = a.square().sum() + b.square().sum()
    if len(b) < len(a):
        a, b = b, a
    dim = a.shape[1]
    if len(a) <= dim:
        across = a @ b.T
        product = across @ across.T
    else:
        values, vectors = torch.linalg.eigh(a.T @ a)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        product = root @ (b.T @ b) @ root
    singular = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
    return float(mean + trace - 2 * singular.sum())
