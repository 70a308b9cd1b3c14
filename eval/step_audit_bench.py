"""What one private step gives away: audits beside closed forms, as rows.

    python -m hyperdp.eval.step_audit_bench      rows, and the table of docs/learners.md

`anadp` and `prism` are the learners, `anadp_described_fixed` and `anadp_described_raw` what is
publicly described of ANADP (`anadp_as_described`, with what was not at hand). `epsilon` is the
claim for the step, a Gaussian's; `epsilon_audit` a lower bound that assumes nothing,
`epsilon_audit_gaussian` one that takes the trade-off for a Gaussian's, each with confidence 0.999.
`epsilon_closed_form` is exact, but for *raw*, where it is what the best test of one module's energy
proves; `mean_loss` is the KL divergence of the two worlds' releases, exactly.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from dp_accounting import get_epsilon_gaussian
from torch import Tensor

from hyperdp.budget import noise_multiplier
from hyperdp.eval.anadp_as_described import (
    EnergyLaw,
    Neighbours,
    audit_fixed,
    audit_raw,
    clipped,
    ordinary_neighbours,
    shares_from_raw,
    worst_neighbours,
)
from hyperdp.eval.audit import CONFIDENCE, Bound
from hyperdp.eval.results import (
    RESULTS,
    Row,
    append_rows,
    peak_rss_mb,
    provenance,
    render_into,
    to_markdown,
)
from hyperdp.eval.step_audit import audit_step
from hyperdp.lora import Weights
from hyperdp.private.learners.anadp import Anadp
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.learners.prism import Prism
from hyperdp.private.learners.step_rule import PerExample

Figure = tuple[str, str, int, str, float]
"""Method, neighbours, n, metric, value."""


def audit_anadp(
    pair: Neighbours,
    *,
    sigma: float,
    delta: float,
    trials: int,
    confidence: float = CONFIDENCE,
) -> tuple[Bound, float]:
    """The learner after eight released steps, on the neighbours of the demonstration.

    Args:
        pair: L modules, an even number, of d parameters, a multiple of 4.
        sigma: noise multiplier.
        delta: δ of the claim.
        trials: releases in each world.
        confidence: of the bound.

    Returns:
        The bound, and the share of noise of module 0, where the canary lies.
    """
    rule, known = Anadp(), _per_example(pair.known)
    weights: Weights = {
        name: (torch.ones_like(a[:1]), torch.ones_like(b[:1])) for name, (a, b) in known.items()
    }
    weights = rule.start(weights)
    for step in range(8):  # a history that makes module 0 important; it is public by now
        noise = rule.noise(weights, 1e-3, SystemNormal())
        # All modules change by more than their noise: were most importances 0, all shares were 1.
        wave = 0.01 * (1 + step % 2)
        plain = {name: wave * (1 + place / 8) for place, name in enumerate(sorted(weights))}
        size = {name: 1.0 + step if name == "site00" else plain[name] for name in weights}
        mean = {name: (a + size[name], b + plain[name]) for name, (a, b) in noise.items()}
        weights = rule.update(weights, mean, 1e-3, 0.0)
    bound = audit_step(
        rule, weights, known, _per_example(pair.canary),
        clip_norm=1.0, noise_multiplier=sigma, delta=delta, trials=trials, confidence=confidence,
    )  # fmt: skip
    return bound, rule.shares(weights)["site00"][0]


def audit_prism(*, sigma: float, delta: float, trials: int) -> Bound:
    """The learner at a site of 8 × 12 and rank 3, on a canary of many times the clip norm."""
    rng = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    rule = Prism()
    weights = rule.start({"fc": (draw(1, 3, 12), draw(1, 8, 3))})
    return audit_step(
        rule, weights, {"fc": (draw(16, 3, 12), draw(16, 8, 3))},
        {"fc": (100 * draw(1, 3, 12), 100 * draw(1, 8, 3))},
        clip_norm=1.0, noise_multiplier=sigma, delta=delta, trials=trials,
    )  # fmt: skip


def measure(*, epsilon: float = 1.0, delta: float = 1e-5, trials: int = 20_000) -> list[Row]:
    """Audits and closed forms, as rows.

    Args:
        epsilon: what is claimed for the one step.
        delta: δ of the claim.
        trials: releases in each world of each audit.
    """
    begun = time.perf_counter()
    sigma = noise_multiplier(epsilon, delta)
    claim = float(get_epsilon_gaussian(sigma, delta))
    pair, worst = worst_neighbours(8, 32), "worst, 8 × 32"
    figures: list[Figure] = []

    half = torch.full((8,), 1.0, dtype=torch.float64)
    half[0] = 0.5
    half *= (8 / half.square().sum()).sqrt()
    adapted = shares_from_raw(clipped(torch.cat([pair.known, pair.canary]), 1.0))
    for kind, shares in (("one share halved", half), ("shares as allocated", adapted)):
        bound = audit_fixed(pair, shares, sigma=sigma, delta=delta, trials=trials)
        exact = float(get_epsilon_gaussian(sigma * float(shares.min()), delta))
        where = ("anadp_described_fixed", f"{worst}, {kind}", 17)
        figures += [
            (*where, "smallest_share", float(shares.min())),
            (*where, "epsilon_closed_form", exact),
            (*where, "epsilon_audit", bound.epsilon),
            (*where, "epsilon_audit_gaussian", bound.epsilon_gaussian),
        ]

    law = EnergyLaw.of(pair, sigma=sigma)
    bound = audit_raw(pair, sigma=sigma, delta=delta, trials=trials)
    where = ("anadp_described_raw", worst, 17)
    figures += [
        (*where, "epsilon_closed_form", law.epsilon(delta)),
        (*where, "epsilon_audit", bound.epsilon),
        (*where, "mean_loss", law.mean_loss),
    ]
    # rank-8 LoRA on the queries and values of twelve layers of width 768, both factors
    wide = EnergyLaw.of(ordinary_neighbours(48, 6144), sigma=sigma)
    where = ("anadp_described_raw", "ordinary, 48 × 6144", 65)
    figures += [
        (*where, "epsilon_closed_form", wide.epsilon(delta)),
        (*where, "mean_loss", wide.mean_loss),
    ]

    bound, share = audit_anadp(pair, sigma=sigma, delta=delta, trials=trials)
    figures += [
        ("anadp", worst, 17, "smallest_share", share),
        ("anadp", worst, 17, "epsilon_closed_form", claim),
        ("anadp", worst, 17, "epsilon_audit", bound.epsilon),
        ("anadp", worst, 17, "epsilon_audit_gaussian", bound.epsilon_gaussian),
    ]
    bound = audit_prism(sigma=sigma, delta=delta, trials=trials)
    figures += [
        ("prism", "worst, 8 × 12 of rank 3", 17, "epsilon_closed_form", claim),
        ("prism", "worst, 8 × 12 of rank 3", 17, "epsilon_audit", bound.epsilon),
        ("prism", "worst, 8 × 12 of rank 3", 17, "epsilon_audit_gaussian", bound.epsilon_gaussian),
    ]
    origin = provenance() | {"command": "python -m hyperdp.eval.step_audit_bench"}
    seconds = round(time.perf_counter() - begun, 1)
    return [
        Row(
            bench="step-audit", base="none", private_set=private_set, method=method, n=n,
            epsilon=epsilon, delta=delta, seed=0, metric=metric, value=value, seconds=seconds,
            peak_rss_mb=peak_rss_mb(), **origin,
        )
        for method, private_set, n, metric, value in figures
    ]  # fmt: skip


def _per_example(records: Tensor) -> PerExample:
    """[n, L, d] as L / 2 sites of two modules, lora_A [n, 4, d / 4] and lora_B [n, d / 4, 4]."""
    n, modules, size = records.shape
    return {
        f"site{i:02}": (
            records[:, 2 * i].reshape(n, 4, size // 4),
            records[:, 2 * i + 1].reshape(n, size // 4, 4),
        )
        for i in range(modules // 2)
    }


def render(rows: list[Row], page: Path) -> None:
    """Puts the rows into the table of `docs/learners.md`, one line a method and neighbours."""
    metrics = tuple(dict.fromkeys(row.metric for row in rows))
    render_into(page, "step-audit", to_markdown(rows, metrics))


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = RESULTS / "research" / "step-audit.jsonl"
    found = measure()
    path.unlink(missing_ok=True)
    append_rows(path, found)
    render(found, Path(__file__).resolve().parent.parent / "docs/learners.md")
