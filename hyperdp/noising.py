"""How a scheduler's process noises records, and what a network under it is trained to predict."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from hyperdp.draws import normal, uniform
from hyperdp.errors import UsageError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Samplers of the discrete process of Ho et al. 2020 (arXiv 2006.11239), asked at its own timesteps.
SAMPLERS = frozenset({
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
})  # fmt: skip


class Noising:
    """The training side of any diffusers scheduler: flow matching, or a discrete-time diffusion.

    Args:
        scheduler: a `FlowMatchEulerDiscreteScheduler`, or one of `SAMPLERS`.

    Raises:
        UsageError: another scheduler, whose process or timesteps are not known here, or one whose
            network predicts something that no loss here is made for.
    """

    def __init__(self, scheduler: Any) -> None:
        self.flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        self.steps = int(scheduler.config.num_train_timesteps)
        name = type(scheduler).__name__
        moving = self.flow and scheduler.config.get("use_dynamic_shifting")
        if moving or not (self.flow or name in SAMPLERS):
            raise UsageError(
                expected="FlowMatchEulerDiscreteScheduler, without use_dynamic_shifting, or one of "
                + ", ".join(sorted(SAMPLERS)),
                found=f"{name}{' with use_dynamic_shifting' if moving else ''}",
                todo="Use a base model that was trained for one of these.",
            )
        if self.flow:
            return
        # Not every sampler knows its own forward process; this one does, from the same numbers.
        self._process = DDPMScheduler.from_config(scheduler.config)
        self.prediction = str(self._process.config.prediction_type)
        if self.prediction not in PREDICTIONS:
            raise UsageError(
                expected=f"a scheduler whose prediction_type is one of {', '.join(PREDICTIONS)}",
                found=repr(self.prediction),
                todo="Use a base model trained for one of these.",
            )

    def at(self, clean: Tensor, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Records noised to given times.

        Args:
            clean: float32 [B, C, H, W], records or their latents.
            s: float32 [B] in (0, 1), share of the way to noise.
            noise: float32 [B, C, H, W].

        Returns:
            What the network sees, float32 [B, C, H, W]; its timesteps [B], float32 for flow
            matching and int64 else; what it should answer, float32 [B, C, H, W].
        """
        if self.flow:
            w = s[:, None, None, None]
            return (1 - w) * clean + w * noise, s * self.steps, noise - clean
        t = (s * self.steps).long().clamp(max=self.steps - 1)
        noisy = self._process.add_noise(clean, noise, t)
        if self.prediction == "epsilon":
            return noisy, t, noise
        if self.prediction == "sample":
            return noisy, t, clean
        return noisy, t, self._process.get_velocity(clean, noise, t)

    def times(self, count: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        """Times that a base is trained at, float32 [count] in (0, 1).

        Logit-normal for flow matching (Esser et al. 2024, arXiv 2403.03206), uniform else
        (Ho et al. 2020, arXiv 2006.11239).
        """
        if self.flow:
            return torch.sigmoid(normal((count,), rng, device))
        return uniform((count,), rng, device)
