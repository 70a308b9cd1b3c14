"""Membership inference on the emitted adapter: does its loss on a record tell whether it was in?

The attacker knows all other records, the bundle, and draws as many adapters as they like from both
worlds. Records are made up: a canary of pure noise, and images that the base model drew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.lora import adapters
from hyperdp.mechanism import MechanismSpec, add_noise
from hyperdp.private.aggregate import aggregate
from hyperdp.private.emit import adapter_weights
from hyperdp.private.records import Record
from hyperdp.private.released import mean_and_noise

_GROUPS = 10  # adapters in one batched forward pass
_DRAWS = 8  # times and noises that a loss is averaged over


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well the loss tells members from others.

    Attributes:
        target: "canary" or "typical".
        units: records beside the target.
        rounds: adapters in each world.
        auc: area under the attack's ROC curve; 0.5 is a coin.
        auc_std: its standard error (Hanley & McNeil 1982, at its largest).
        auc_limit: what no attack on the release can exceed by the claim: Φ(μ / √2), μ = 1/τ.
    """

    target: str
    units: int
    rounds: int
    auc: float
    auc_std: float
    auc_limit: float


def attack_adapters(
    bundle: Bundle, budget: PrivacyBudget, *, rounds: int, units: int = 64
) -> list[Membership]:
    """Attack adapters of releases with and without a canary, and a typical record.

    Args:
        bundle: encoder, hypernetwork and base.
        budget: of every release.
        rounds: adapters in each world, for each target.
        units: records beside the target; few, so that the target weighs much.

    Returns:
        One line for the canary, one for the typical record.
    """
    drawn = bundle.base.sample(units + 1, seed=0)  # [units + 1, C, H, W]
    canary = torch.rand(drawn[0].shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    lines = []
    for name, target in (("canary", canary), ("typical", drawn[-1])):
        without, with_target = (
            _scores(bundle, budget, [*drawn[:-1], *([target] * present)], target, rounds)
            for present in (False, True)
        )
        lines.append(_line(name, units, without, with_target, _mu(bundle, budget)))
    return lines


def _scores(
    bundle: Bundle, budget: PrivacyBudget, images: list[Tensor], target: Tensor, rounds: int
) -> NDArray[np.float64]:
    """Minus the loss on the target, averaged over fixed draws, under `rounds` fresh adapters."""
    spec = _spec(bundle, budget)
    records = [Record(image=image.numpy()) for image in images]
    total = aggregate(records, bundle=bundle, spec=spec, unit="record", classes=[])
    sigma = spec.calibrate(budget).sigma
    rng = torch.Generator().manual_seed(2)
    s = torch.sigmoid(torch.randn(_DRAWS, generator=rng))
    noise = torch.randn((_DRAWS, *target.shape), generator=rng)
    result: list[float] = []
    while len(result) < rounds:
        groups = min(_GROUPS, rounds - len(result))
        pairs = [mean_and_noise(*add_noise(total, budget), spec, sigma) for _ in range(groups)]
        means, stds = (torch.cat(column) for column in zip(*pairs, strict=True))
        with torch.no_grad(), adapters(bundle.base.model, adapter_weights(bundle, means, stds)):
            losses = bundle.base.loss_at(
                target.expand(groups * _DRAWS, *target.shape),
                s.repeat(groups),
                noise.repeat(groups, 1, 1, 1),
            )
        result += (-losses.view(groups, _DRAWS).mean(1)).tolist()
    return np.array(result)


def _spec(bundle: Bundle, budget: PrivacyBudget) -> MechanismSpec:
    return MechanismSpec(
        embedding_dim=bundle.config.embed_dim,
        clip_norm=float(bundle.config.clip_norm),
        adjacency=budget.adjacency,
    )


def _mu(bundle: Bundle, budget: PrivacyBudget) -> float:
    return 1 / _spec(bundle, budget).calibrate(budget).noise_multiplier


def _line(
    name: str,
    units: int,
    without: NDArray[np.float64],
    with_target: NDArray[np.float64],
    mu: float,
) -> Membership:
    rounds = len(without)
    ranks = rankdata(np.concatenate([without, with_target]))[rounds:]
    auc = float((ranks.sum() - rounds * (rounds + 1) / 2) / rounds**2)
    return Membership(
        target=name,
        units=units,
        rounds=rounds,
        auc=auc,
        auc_std=float(np.sqrt((2 * rounds + 1) / (12 * rounds**2))),
        auc_limit=float(norm.cdf(mu / np.sqrt(2))),
    )
