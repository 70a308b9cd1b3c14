"""The settings of Private Evolution; public, every one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperdp.errors import settings_error


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """Chosen on public tasks, and before anything of this dataset was released.

    Attributes:
        candidates: N, images that are voted on.
        iterations: T, histograms; each has √T times the noise that one alone would have.
        count: images at the end, variations of the last survivors.
        lookahead: variations whose mean embedding stands for a candidate; 0 for its own.
        strength, last_strength: of variations at the first and at the last iteration, linear in
            between; see `vary`.
        threshold: H, in std of the noise: what is taken off every noisy count, down to 0.
        steps: Euler steps of an image drawn from nothing.
        batch_size: images at once.
        seed: of candidates, draws and variations. Public: nothing secret hangs on it.
    """

    candidates: int = 250
    iterations: int = 6
    count: int = 1000
    lookahead: int = 0
    strength: float = 0.9
    last_strength: float = 0.6
    threshold: float = 1.0
    steps: int = 24
    batch_size: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("candidates", "iterations", "count", "steps", "batch_size")
        legal = {
            **{f"{name} >= 1": getattr(self, name) >= 1 for name in counts},
            "lookahead >= 0": self.lookahead >= 0,
            "0 < last_strength <= strength <= 1": 0 < self.last_strength <= self.strength <= 1,
            "0 <= threshold": 0 <= self.threshold < math.inf,
        }
        if broken := [rule for rule, kept in legal.items() if not kept]:
            raise settings_error(self, broken)

    def strength_at(self, iteration: int) -> float:
        """Strength of the variations after an iteration, 0 … T - 1."""
        part = iteration / max(1, self.iterations - 1)
        return self.strength + part * (self.last_strength - self.strength)
