"""An attack on one private step: was the canary in the batch, given the noisy sum?

Any `StepRule` can be attacked, with its own clip, sum and noise. The adversary knows the adapter,
every other example and the noise's law, and looks along the canary's own contribution, where
nothing tells the two worlds better apart (Neyman & Pearson). Every example takes part, so what the
step may cost is the ε of one Gaussian of its noise multiplier.
"""

from __future__ import annotations

import torch

from hyperdp.eval.audit import CONFIDENCE, Bound, Scores, bound_epsilon
from hyperdp.lora import Weights
from hyperdp.private.learners.clipping import clipped_sum
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.learners.step_rule import PerExample, StepRule


def audit_step(
    rule: StepRule,
    weights: Weights,
    known: PerExample,
    canary: PerExample,
    *,
    clip_norm: float,
    noise_multiplier: float,
    delta: float,
    trials: int,
    confidence: float = CONFIDENCE,
) -> Bound:
    """Release one step `trials` times without and with the canary, and bound ε from below.

    Args:
        rule: in the state that the step is taken in.
        weights: the adapter before the step.
        known: gradients of the examples in both worlds, [B, …] a site.
        canary: those of the one in question, [1, …] a site; worst where its norm is C or more.
        clip_norm: C.
        noise_multiplier: σ.
        delta: δ of the claim.
        trials: releases in each world.
        confidence: of the bound.

    Returns:
        The bound; its ε must not exceed that of one Gaussian of noise multiplier σ.
    """
    both = {
        name: (torch.cat([known[name][0], canary[name][0]]),
               torch.cat([known[name][1], canary[name][1]]))
        for name in known
    }  # fmt: skip
    count = len(next(iter(known.values()))[1])
    without = clipped_sum(rule, weights, known, clip_norm=clip_norm, valid=count)
    present = clipped_sum(rule, weights, both, clip_norm=clip_norm, valid=count + 1)
    shift = _combine(present, without, -1.0)
    std = noise_multiplier * clip_norm
    scores = [
        _scores(rule, weights, _combine(world, without, -1.0), shift, std, trials)
        for world in (without, present)
    ]
    return bound_epsilon(scores[0], scores[1], threshold=0.5, delta=delta, confidence=confidence)


def _scores(
    rule: StepRule, weights: Weights, exact: PerExample, shift: PerExample, std: float, trials: int
) -> Scores:
    """⟨release - known, shift⟩ / ⟨shift, shift⟩: 0 on average without the canary, 1 with it."""
    normal, scores, at_once = SystemNormal(), [], 500
    for first in range(0, trials, at_once):
        drawn = [rule.noise(weights, std, normal) for _ in range(min(at_once, trials - first))]
        released = {
            name: (
                torch.cat([d[name][0] for d in drawn]) + pair[0],
                torch.cat([d[name][1] for d in drawn]) + pair[1],
            )
            for name, pair in exact.items()
        }
        # The norm that clipping bounds is the one the noise is isotropic in; by polarisation it
        # gives the inner product, whatever the rule's geometry.
        more = rule.norms(weights, _combine(released, shift, 1.0)).square()
        less = rule.norms(weights, _combine(released, shift, -1.0)).square()
        scores.append((more - less) / 4)
    found: Scores = (torch.cat(scores) / rule.norms(weights, shift).square()).numpy()
    return found


def _combine(first: PerExample, second: PerExample, scale: float) -> PerExample:
    return {
        name: (pair[0] + scale * second[name][0], pair[1] + scale * second[name][1])
        for name, pair in first.items()
    }
