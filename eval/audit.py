"""An attack on the real sum-and-noise code: what an adversary who knows all but one unit can tell.

Two neighbouring datasets that are as far apart as the sensitivity allows are released many times
each; a threshold on the one direction in which they differ tells them apart as often as anything
can (Neyman & Pearson). How often it is right bounds ε from below, with stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from dp_accounting import get_epsilon_gaussian
from numpy.typing import NDArray
from scipy.stats import beta, norm

from hyperdp.budget import PrivacyBudget
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec, add_noise

CONFIDENCE = 0.999
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What an attack that guesses "the unit is in it" above a threshold proves about ε.

    Attributes:
        trials: releases in each of the two worlds.
        true_positive_rate: guesses "in it" where it is, at least (Clopper-Pearson).
        false_positive_rate: guesses "in it" where it is not, at most.
        epsilon: lower bound on ε at δ, for any mechanism at all.
        epsilon_gaussian: lower bound on ε at δ, if the trade-off between the two error rates is a
            Gaussian mechanism's (Nasr et al. 2023, arXiv 2302.07956): tighter.
    """

    trials: int
    true_positive_rate: float
    false_positive_rate: float
    epsilon: float
    epsilon_gaussian: float


def bound_epsilon(
    without: Scores,
    with_unit: Scores,
    *,
    threshold: float,
    delta: float,
    confidence: float = CONFIDENCE,
) -> Bound:
    """Bound ε from below by the error rates of a threshold fixed beforehand.

    Args:
        without: float64 [trials], scores of releases without the unit.
        with_unit: float64 [trials], scores with it.
        threshold: above it the attack guesses "in it"; must not depend on the scores.
        delta: δ of the claim.
        confidence: that both error rates are within their bounds.

    Returns:
        The bound; Clopper-Pearson intervals, half of the doubt for each rate.
    """
    doubt = (1 - confidence) / 2
    hits, alarms = int((with_unit > threshold).sum()), int((without > threshold).sum())
    tpr = _lower(hits, len(with_unit), doubt)
    fpr = 1 - _lower(len(without) - alarms, len(without), doubt)
    mu = norm.ppf(tpr) - norm.ppf(fpr)
    return Bound(
        trials=min(len(without), len(with_unit)),
        true_positive_rate=tpr,
        false_positive_rate=fpr,
        epsilon=max(_ratio(tpr, fpr, delta), _ratio(1 - fpr, 1 - tpr, delta), 0.0),
        epsilon_gaussian=float(get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0,
    )


def audit(
    spec: MechanismSpec,
    budget: PrivacyBudget,
    *,
    trials: int,
    workers: int = 2,
    confidence: float = CONFIDENCE,
    worlds: tuple[ClippedSum, ClippedSum] | None = None,
    release: Callable[[ClippedSum, PrivacyBudget], Scores] | None = None,
) -> Bound:
    """Attack `ClippedSum` and `add_noise` on worst-case neighbours.

    Args:
        spec: the query, as a bundle and an adjacency make it.
        budget: the claim to be attacked.
        trials: releases in each world.
        workers: processes to share them.
        confidence: of the bound.
        worlds: neighbouring sums, without and with the unit; by default those of `neighbours`.
        release: stands in for the real noise, to try the audit itself on broken variants; it must
            be importable by name.

    Returns:
        The bound; its ε must not exceed the budget's.
    """
    attack = partial(_attack, worlds or neighbours(spec), budget, release or noisy_query)
    shares = [trials // workers + (i < trials % workers) for i in range(workers)]
    jobs = [(n, present) for present in (False, True) for n in shares]
    if workers == 1:
        parts = [attack(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = [f.result() for f in [pool.submit(attack, *job) for job in jobs]]
    without, with_unit = np.concatenate(parts[:workers]), np.concatenate(parts[workers:])
    return bound_epsilon(
        without, with_unit, threshold=0.5, delta=budget.delta, confidence=confidence
    )


def noisy_query(total: ClippedSum, budget: PrivacyBudget) -> Scores:
    """One real release as a flat vector in the embedding's units."""
    sums, counts = add_noise(total, budget)
    return np.concatenate([sums.ravel(), counts]) / STEPS_PER_UNIT


def neighbours(spec: MechanismSpec) -> tuple[ClippedSum, ClippedSum]:
    """Two neighbouring sums at the very distance of the sensitivity.

    Args:
        spec: the query.

    Returns:
        The sum without the canary (or with its opposite, under replace-one), and with it; beside
        it both hold 16 units that the adversary knows.
    """
    known = np.random.default_rng(0).standard_normal((16, spec.num_classes, spec.embedding_dim))
    shares = np.full((16, spec.num_classes), 1 / spec.num_classes)
    canary = np.zeros((1, spec.num_classes, spec.embedding_dim))
    own = np.zeros((1, spec.num_classes))
    canary[0, 0, 0], own[0, 0] = 2 * spec.clip_norm, 1.0  # twice C: the clip is under attack too
    without, with_unit = ClippedSum(spec), ClippedSum(spec)
    for total in (without, with_unit):
        total.add(known, shares)
    with_unit.add(canary, own)
    if spec.adjacency == "replace-one":
        without.add(-canary, np.roll(own, 1))
    return without, with_unit


def _attack(
    worlds: tuple[ClippedSum, ClippedSum],
    budget: PrivacyBudget,
    release: Callable[[ClippedSum, PrivacyBudget], Scores],
    trials: int,
    present: bool,
) -> Scores:
    """Scores of `trials` releases in one world: 0 on average without the unit, 1 with it."""
    spec = worlds[0].spec
    exact = [
        np.concatenate([w._sums.ravel(), w._counts]) / STEPS_PER_UNIT  # the adversary knows them
        for w in worlds
    ]
    direction = exact[1] - exact[0]
    direction[direction.size - spec.num_classes :] *= spec.counts_are_private
    direction /= float(direction @ direction)
    return np.array(
        [float((release(worlds[present], budget) - exact[0]) @ direction) for _ in range(trials)]
    )


def _lower(successes: int, trials: int, doubt: float) -> float:
    """Clopper-Pearson lower bound on a rate."""
    return float(beta.ppf(doubt, successes, trials - successes + 1)) if successes else 0.0


def _ratio(right: float, wrong: float, delta: float) -> float:
    """ε >= log((right - δ) / wrong), from right <= e^ε wrong + δ."""
    return math.log((right - delta) / wrong) if right > delta and wrong > 0 else -math.inf
