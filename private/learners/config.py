"""The settings of a fit: what the promise depends on, and what only its pace depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from hyperdp.errors import UsageError, settings_error
from hyperdp.subsampled import MOST_STEPS, MOST_UNITS

Start = Literal["fresh", "public-mean", "spectral"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Chosen on public tasks, and before anything of this dataset was released.

    Attributes:
        method: a key of `hyperdp.private.learners.methods.METHODS`.
        size: N, the number of units as far as it is public: what everybody knows, or a guess. Only
            the sampling probability depends on it; a wrong guess costs accuracy, never privacy.
        expected_batch: qN, the mean size of a batch and the divisor of every step; q = qN / N.
        steps: T.
        clip_norm: C, in the units of the rule's norm.
        lr: learning rate, after a linear warm-up over the first 5 % of the steps.
        rank: r of a fresh adapter, and half of the rank that a spectral start ends with; an
            emitted one brings its own.
        start: `fresh`, LoRA's standard start; `public-mean`, what ρ makes of the public mean;
            `spectral`, the base weights' own leading singular vectors, moved into the adapter for
            the time of training. A release, where one is given, stands in its place.
        draws: times and noises a record's loss is averaged over in each step.
        average: decay of the running mean of the weights that is released; 0 for the last weights.
        optimizer: `adamw` or `sgd`, where the method does not bring its own.
        b_lr_ratio: learning rate of lora_B over that of lora_A (dpsgd).
        dims: p, dimensions of the public subspace (projected).
        target_modules: LoRA sites by module name; None for all of the bundle's.
    """

    method: str = "dpsgd"
    size: int
    expected_batch: int = 64
    steps: int = 200
    clip_norm: float = 0.01
    lr: float = 1e-3
    rank: int = 8
    start: Start = "fresh"
    draws: int = 1
    average: float = 0.9
    optimizer: Literal["adamw", "sgd"] = "adamw"
    b_lr_ratio: float = 1.0
    dims: int = 64
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counts = ("expected_batch", "steps", "rank", "draws", "dims", "size")
        legal = {
            **{f"{name} >= 1": getattr(self, name) >= 1 for name in counts},
            f"steps <= {MOST_STEPS:,}": self.steps <= MOST_STEPS,
            f"size <= {MOST_UNITS:,}": self.size <= MOST_UNITS,
            "0 < clip_norm": 0 < self.clip_norm < math.inf,
            "0 < lr": 0 < self.lr < math.inf,
            "0 < b_lr_ratio": 0 < self.b_lr_ratio < math.inf,
            "0 <= average < 1": 0 <= self.average < 1,
            f"start in {get_args(Start)}": self.start in get_args(Start),
            "optimizer adamw or sgd": self.optimizer in ("adamw", "sgd"),
        }
        if broken := [rule for rule, kept in legal.items() if not kept]:
            raise settings_error(self, broken)
        if self.expected_batch > self.size:
            raise UsageError(
                expected=f"at most the dataset's public size, {self.size}, as the batch",
                found=f"{self.expected_batch}",
                todo="Take a smaller batch; at the size itself every step reads every unit.",
            )

    @property
    def probability(self) -> float:
        """The sampling probability q."""
        return self.expected_batch / self.size


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What changes how fast a fit is, and nothing that is promised.

    Attributes:
        microbatch: records in one forward pass, its one shape; memory grows with it.
        checkpoint_every: steps between the states that a killed run goes on from.
    """

    microbatch: int = 32
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        if self.microbatch < 1 or self.checkpoint_every < 1:
            raise UsageError(
                expected="microbatch >= 1 and checkpoint_every >= 1",
                found=str(self),
                todo="Mend the settings.",
            )
