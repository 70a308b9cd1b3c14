"""One private step: sample, gradients, clip, add up, noise. What it returns is released."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperdp.lora import Weights
from hyperdp.private.finetune import Tunable
from hyperdp.private.learners.clipping import Total, clipped_sum
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.private.learners.normal import Normal, SystemNormal
from hyperdp.private.learners.poisson import PoissonSampler
from hyperdp.private.learners.step_rule import StepRule
from hyperdp.private.learners.units import Units

_SNAP = 2.0**-16  # of the noise's std


@dataclass(frozen=True, kw_only=True)
class PrivateStep:
    """Everything public that a step needs; private data is an argument of its call alone.

    Attributes:
        family: the base model, frozen.
        rule: geometry and optimiser.
        config: see `FitConfig`.
        noise_multiplier: σ.
        pace: see `Pace`.
        normal: the noise; on a private path always `SystemNormal`.
    """

    family: Tunable
    rule: StepRule
    config: FitConfig
    noise_multiplier: float
    pace: Pace = field(default_factory=Pace)
    normal: Normal = field(default_factory=SystemNormal)

    def __call__(self, units: Units, weights: Weights) -> Weights:
        """The noisy mean contribution of one Poisson sample.

        Args:
            units: private.
            weights: the adapter before the step.

        Returns:
            (Σ clipped contributions + noise) / (qN): float32, pairs of tensors [1, …]. An empty
            sample gives noise alone, like any other. The noisy sum is rounded to 2^-16 of the
            noise's std, so that the last bits of its floats, which depend on how the noise was
            made, are not released.
        """
        c = self.config
        total = self.rule.noise(weights, self.noise_multiplier * c.clip_norm, self.normal)
        batch = units.batch(PoissonSampler(c.probability))
        for part in torch.split(batch, self.pace.microbatch) if len(batch) else ():
            total = _add(total, self._clipped(part, weights))
        grid = _SNAP * self.noise_multiplier * c.clip_norm

        def released(value: Tensor) -> Tensor:
            return (torch.round(value / grid) * grid / c.expected_batch).float()

        return {key: (released(a), released(b)) for key, (a, b) in total.items()}

    @property
    def noise_std(self) -> float:
        """Std of the noise on the mean, σC / (qN)."""
        c = self.config
        return self.noise_multiplier * c.clip_norm / c.expected_batch

    def _clipped(self, images: Tensor, weights: Weights) -> Total:
        """Clipped sum over one microbatch, filled up to its one shape with blank records."""
        device = next(iter(weights.values()))[1].device
        full = images.new_zeros(self.pace.microbatch, *images.shape[1:])
        full[: len(images)] = images
        full = full.to(device)
        # Times and noises of the loss: fresh ones each time, so that nothing can be replayed.
        rng = torch.Generator().manual_seed(secrets.randbits(63))
        grads = per_example_gradients(
            self.family.model,
            weights,
            lambda: record_losses(self.family, full, self.config.draws, rng),
            examples=len(full),
            wrt_a=self.rule.needs_a,
        )
        return clipped_sum(
            self.rule, weights, grads, clip_norm=self.config.clip_norm, valid=len(images)
        )


def _add(one: Total, other: Total) -> Total:
    return {key: (a + other[key][0], b + other[key][1]) for key, (a, b) in one.items()}
