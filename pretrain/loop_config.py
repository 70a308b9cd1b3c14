"""The settings of the training loop, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperdp.errors import UsageError, settings_error


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        lr: peak learning rate. warmup: steps of linear warm-up; then cosine to `lr_end` × lr.
        ema: decay of the weight average, ramped up as (1 + t) / (10 + t).
        clip: norm that gradients are clipped to.
        checkpoint_every, validate_every, log_every: steps.
        bf16: bfloat16 autocast of the forward pass.
        workers: shares of every step. Several processes divide them; in one process each share
            has a thread, with one operator thread apiece: small operators run faster side by side
            than split between threads.
        graph: one share on one GPU, captured once and replayed (`hyperdp.graph`).
        tracker: name of an accelerate tracker (`tensorboard`, …) that figures go to beside
            `log.jsonl`; "" for none.
        seed: of the public stage's randomness; no private path has one.

    Raises:
        UsageError: a value is out of its range.
    """

    steps: int
    lr: float = 1e-3
    lr_end: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.0
    beta2: float = 0.99
    ema: float = 0.999
    clip: float = 1.0
    checkpoint_every: int = 200
    validate_every: int = 500
    log_every: int = 100
    bf16: bool = False
    workers: int = 1
    graph: bool = False
    tracker: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "steps > 0": self.steps > 0,
            "lr >= 0": 0 <= self.lr < math.inf,
            "0 <= lr_end <= 1": 0 <= self.lr_end <= 1,
            "warmup >= 0": self.warmup >= 0,
            "weight_decay >= 0": 0 <= self.weight_decay < math.inf,
            "0 <= beta2 < 1": 0 <= self.beta2 < 1,
            "0 <= ema < 1": 0 <= self.ema < 1,
            "clip > 0": self.clip > 0,
            "workers > 0": self.workers > 0,
        }
        rules |= {
            f"{name} > 0": getattr(self, name) > 0
            for name in ("checkpoint_every", "validate_every", "log_every")
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise settings_error(self, broken)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (
            self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
        )


def shared_out(count: int, workers: int, name: str) -> int:
    """What each share of a step has of `count`.

    Raises:
        UsageError: it cannot be divided evenly, or there are fewer than shares.
    """
    if count < workers or count % workers:
        raise UsageError(
            expected=f"{name} to be a multiple of workers, the shares of a step",
            found=f"{name} = {count}, workers = {workers}",
            todo="Correct one of them in the recipe.",
        )
    return count // workers
