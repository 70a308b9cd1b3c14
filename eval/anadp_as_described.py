"""ANADP's noise allocation as it is publicly described, to measure what it costs. Never to be used.

**The proof of the paper (Li et al. 2024, arXiv 2410.02912) was not at hand.** What is described, by
summaries and by a third party's script, is noise of unequal std under one common clip, with the
std taken from the importance of raw private gradients and normalised to the total of plain DP-SGD.
Where the script's formula has no value, the reading most in its favour is taken (`noise_shares`:
positive, bounded, the same total energy). Nothing here touches the ledger, and no learner calls it.

Two flaws are measured apart, one full-batch step each, on worst-case neighbours:

- *fixed*: shares that are public. A unit whose gradient lies in the module of smallest share s is
  hidden by σ s, not by σ: the trade-off is exactly that of a Gaussian of noise multiplier σ s.
- *raw*: shares from the very gradients that they protect. The covariance tells the worlds apart:
  the energy of one module is v χ²_d in one world and v' χ²_d(C²/v') in the other, in closed form.

The figures are made by `hyperdp.eval.step_audit_bench`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, ncx2
from torch import Tensor

from hyperdp.eval.audit import CONFIDENCE, Bound, bound_epsilon
from hyperdp.private.learners.allocation import noise_shares
from hyperdp.private.learners.normal import SystemNormal

Curve = NDArray[np.float64]
_BETA_1, _BETA_2, _SHRINK, _SPREAD = 0.9, 0.999, 0.9, 4.0


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Gradients of two neighbouring batches.

    Attributes:
        known: float64 [n, L, d], in both.
        canary: float64 [1, L, d], in one; all of it in module 0.
    """

    known: Tensor
    canary: Tensor


def worst_neighbours(modules: int, size: int, *, clip_norm: float = 1.0) -> Neighbours:
    """Sixteen examples that leave module 0 alone, and one that has ten times C there.

    Args:
        modules: L.
        size: d, parameters of a module.
        clip_norm: C.
    """
    rng = torch.Generator().manual_seed(0)
    known = torch.randn(16, modules, size, generator=rng, dtype=torch.float64)
    known[:, 0] = 0
    known *= 0.01 * clip_norm / known.flatten(1).norm(dim=1)[:, None, None]
    canary = torch.zeros(1, modules, size, dtype=torch.float64)
    canary[0, 0] = 10 * clip_norm / math.sqrt(size)
    return Neighbours(known=known, canary=canary)


def ordinary_neighbours(modules: int, size: int, *, count: int = 64) -> Neighbours:
    """Examples whose gradients are random and all of norm C = 1, and one more, in module 0."""
    rng = torch.Generator().manual_seed(1)
    known = torch.randn(count, modules, size, generator=rng, dtype=torch.float64)
    known /= known.flatten(1).norm(dim=1)[:, None, None]
    canary = torch.zeros(1, modules, size, dtype=torch.float64)
    canary[0, 0] = 1 / math.sqrt(size)
    return Neighbours(known=known, canary=canary)


def clipped(records: Tensor, clip_norm: float) -> Tensor:
    """Σ_i g_i min(1, C / ‖g_i‖) under the one common clip, [L, d]."""
    factors = (clip_norm / records.flatten(1).norm(dim=1)).clamp(max=1)
    return torch.einsum("i,ild->ld", factors, records)


def shares_from_raw(total: Tensor) -> Tensor:
    """Multipliers of the noise std as described: from the un-noised sum itself, [L].

    S = mean |g|, S̄ its moving average from 0, Ū that of |S - S̄|, I = S̄ Ū, at the first step.
    """
    sensitivity = total.abs().mean(1)
    smooth = (1 - _BETA_1) * sensitivity
    uncertainty = (1 - _BETA_2) * (sensitivity - smooth).abs()
    sizes = torch.full((len(total),), total.shape[1])
    return noise_shares(smooth * uncertainty, sizes, shrink=_SHRINK, spread=_SPREAD)


def release_as_described(
    records: Tensor, *, clip_norm: float, sigma: float, shares: Tensor | None, trials: int
) -> Tensor:
    """One step's noisy sum as described: **not private as claimed**.

    Args:
        records: [n, L, d].
        clip_norm: C.
        sigma: the noise multiplier that the claim is about.
        shares: public multipliers [L]; from the records themselves where None.
        trials: independent releases.

    Returns:
        float64 [trials, L, d].
    """
    total = clipped(records, clip_norm)
    shares = shares_from_raw(total) if shares is None else shares
    noise = SystemNormal()(trials, *total.shape)
    return total + sigma * clip_norm * shares[:, None] * noise


def audit_fixed(
    pair: Neighbours,
    shares: Tensor,
    *,
    sigma: float,
    delta: float,
    trials: int,
    confidence: float = CONFIDENCE,
) -> Bound:
    """Tell the canary in the module of smallest share: along its own direction."""
    target = int(shares.argmin())
    order = torch.arange(len(shares))
    order[0], order[target] = target, 0  # the canary lies in module 0
    scores = []
    shift = clipped(pair.canary, 1.0)[0]
    base = clipped(pair.known, 1.0)[0]
    for records in (pair.known, torch.cat([pair.known, pair.canary])):
        seen = release_as_described(
            records, clip_norm=1.0, sigma=sigma, shares=shares[order], trials=trials
        )
        scores.append(((seen[:, 0] - base) @ shift / (shift @ shift)).numpy())
    return bound_epsilon(scores[0], scores[1], threshold=0.5, delta=delta, confidence=confidence)


def audit_raw(
    pair: Neighbours,
    *,
    sigma: float,
    delta: float,
    trials: int,
    confidence: float = CONFIDENCE,
) -> Bound:
    """Tell the worlds apart by the energy of module 0, at a limit fixed by the closed form."""
    worlds = [pair.known, torch.cat([pair.known, pair.canary])]
    law = EnergyLaw.of(pair, sigma=sigma)
    limit = law.best_limit(trials, delta)
    base = clipped(pair.known, 1.0)[0]
    lower = law.with_unit < law.without
    scores = []
    for records in worlds:
        seen = release_as_described(records, clip_norm=1.0, sigma=sigma, shares=None, trials=trials)
        energy = (seen[:, 0] - base).square().sum(1).numpy()
        scores.append(-energy if lower else energy)
    return bound_epsilon(
        scores[0],
        scores[1],
        threshold=-limit if lower else limit,
        delta=delta,
        confidence=confidence,
    )


@dataclass(frozen=True, kw_only=True)
class EnergyLaw:
    """The energy of module 0, ‖x - known‖², in the two worlds.

    Attributes:
        size: d. without, with_unit: variance of its noise in each world.
        shift: squared norm of the canary's contribution to it.
        mean_loss: KL(with ‖ without) of the whole release: the mean privacy loss.
    """

    size: int
    without: float
    with_unit: float
    shift: float
    mean_loss: float

    @classmethod
    def of(cls, pair: Neighbours, *, sigma: float) -> EnergyLaw:
        """For shares from raw gradients, with C = 1."""
        sums = [clipped(r, 1.0) for r in (pair.known, torch.cat([pair.known, pair.canary]))]
        v0, v1 = (sigma**2 * shares_from_raw(total).square() for total in sums)
        moved = (sums[1] - sums[0]).square().sum(1)
        size = pair.known.shape[2]
        loss = (size * (v1 / v0 - 1 - (v1 / v0).log()) + moved / v0).sum() / 2
        return cls(
            size=size,
            without=float(v0[0]),
            with_unit=float(v1[0]),
            shift=float(moved[0]),
            mean_loss=float(loss),
        )

    def log_rates(self, limits: Curve) -> tuple[Curve, Curve]:
        """Log of P[guess "in it"] with the unit and without, for each limit on the energy."""
        law_1 = ncx2(self.size, self.shift / self.with_unit)
        law_0 = chi2(self.size)
        if self.with_unit < self.without:
            return law_1.logcdf(limits / self.with_unit), law_0.logcdf(limits / self.without)
        return law_1.logsf(limits / self.with_unit), law_0.logsf(limits / self.without)

    def epsilon(self, delta: float) -> float:
        """A lower bound on ε, exact for this test: max over limits of log((TPR - δ) / FPR)."""
        log_tpr, log_fpr = self.log_rates(self._limits())
        usable = (log_tpr > math.log(delta)) & np.isfinite(log_fpr)
        gain = np.log(np.exp(log_tpr[usable]) - delta) - log_fpr[usable]
        return float(max(gain.max(initial=0.0), 0.0))

    def best_limit(self, trials: int, delta: float) -> float:
        """The limit at which an attack of so many trials can be expected to prove most."""
        limits = self._limits()
        log_tpr, log_fpr = self.log_rates(limits)
        doubt = -math.log((1 - CONFIDENCE) / 2) / trials  # of a rate that no trial contradicts
        tpr, fpr = np.exp(log_tpr), np.exp(log_fpr)
        sure_tpr = tpr - np.sqrt(2 * doubt * tpr * (1 - tpr)) - doubt
        sure_fpr = fpr + np.sqrt(2 * doubt * fpr) + doubt
        gain = np.log(np.maximum(sure_tpr - delta, 1e-12)) - np.log(sure_fpr)
        return float(limits[gain.argmax()])

    def _limits(self) -> Curve:
        low, high = sorted((self.without, self.with_unit))
        return np.geomspace(low * self.size * 0.2, (high * self.size + self.shift) * 5, 4000)
