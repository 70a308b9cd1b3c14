"""Clip each example's contribution and add them up, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperdp.lora import Weights
from hyperdp.private.learners.step_rule import PerExample, StepRule

Total = dict[str, tuple[Tensor, Tensor]]
"""Keys of a rule's contributions → sums, float64, [1, …]. Private until noise is added."""

_SLACK = 1e-9  # of C: what float64 can lose in a norm of 10^7 numbers, many times over


def clipped_sum(
    rule: StepRule, weights: Weights, grads: PerExample, *, clip_norm: float, valid: int
) -> Total:
    """Σ_i min(1, C/‖c_i‖) c_i over the first `valid` examples.

    An example whose gradient or contribution is not finite counts, as zero.

    Args:
        rule: its contributions and its norm.
        weights: the adapter before the step.
        grads: per-example gradients, [B, …].
        clip_norm: C, in the units of `rule.norms`.
        valid: number of examples that are records; the rest only fill the batch up.

    Returns:
        The sum.
    """
    finite = _finite(grads)
    finite[valid:] = False
    clean = {name: (_keep(a, finite), _keep(b, finite)) for name, (a, b) in grads.items()}
    contributions = rule.contributions(weights, clean)
    finite &= _finite(contributions)
    contributions = {k: (_keep(a, finite), _keep(b, finite)) for k, (a, b) in contributions.items()}
    norms = rule.norms(weights, contributions)  # float64 [B]
    factors = (clip_norm * (1 - _SLACK) / norms).clamp(max=1.0)  # C/0 is infinite: 1
    factors = torch.where(finite & norms.isfinite(), factors, 0.0)

    def add(part: Tensor) -> Tensor:
        total: Tensor = torch.tensordot(factors, part.double(), 1)
        return total[None]

    return {key: (add(a), add(b)) for key, (a, b) in contributions.items()}


def _finite(pairs: PerExample) -> Tensor:
    """Which examples are finite in all of their numbers, bool [B]."""
    parts = [p.flatten(1).isfinite().all(1) for pair in pairs.values() for p in pair]
    return torch.stack(parts).all(0)


def _keep(part: Tensor, which: Tensor) -> Tensor:
    """Zeros in place of the other examples; a product would keep their NaN."""
    return part if bool(which.all()) else part.masked_fill(~_like(which, part), 0.0)


def _like(which: Tensor, part: Tensor) -> Tensor:
    return which.view(-1, *(1,) * (part.dim() - 1))
