"""How ANADP shares noise out among modules, by the importance it gives them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noise_shares(importance: Tensor, sizes: Tensor, *, shrink: float, spread: float) -> Tensor:
    """Multipliers of the noise std, smaller where importance is larger.

    What is described of ANADP (Li et al. 2024, arXiv 2410.02912; the formulas from a third party's
    script) scales importance robustly, y = (I - median) / IQR, draws it towards its mean,
    ŷ = (1 - a) y + a mean(y), and divides the noise std by √ŷ. Below the median ŷ may be negative
    and the root has no value. Here the std is divided by √exp(ŷ - mean(y)), which agrees to first
    order with √(1 + ŷ - mean(y)) and is positive everywhere.

    Args:
        importance: float64 [L], one a module, not negative.
        sizes: [L], parameters of each.
        shrink: a, between 0 and 1.
        spread: the shares lie in [1/spread, spread] before they are normalised.

    Returns:
        float64 [L]; their mean square over parameters is 1, so that the total energy of the noise
        is what equal shares give. All 1 where importance says nothing (IQR of zero).
    """
    low, median, high = torch.quantile(
        importance, torch.tensor([0.25, 0.5, 0.75], dtype=importance.dtype)
    )
    if not float(high - low) > 0:
        return torch.ones_like(importance)
    scaled = (importance - median) / (high - low)
    limit = 2 * math.log(spread)
    shares = torch.exp(-((1 - shrink) * (scaled - scaled.mean())).clamp(-limit, limit) / 2)
    weight = sizes.to(shares.dtype) / sizes.sum()
    return shares / (weight * shares.square()).sum().sqrt()
