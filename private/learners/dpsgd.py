"""DP-SGD on LoRA factors, with AdamW or SGD; FFA-LoRA, which leaves lora_A as it is.

Abadi et al. 2016 (arXiv 1607.00133): clip each example's gradient to norm C, add up, add Gaussian
noise of std σC to every coordinate. FFA-LoRA (Sun et al. 2024, arXiv 2403.12313) trains lora_B
alone, so that noise enters W once and not as a product of two noises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.learners.normal import Normal
from hyperdp.private.learners.step_rule import PerExample, StepRule


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What a released gradient is put through; post-processing.

    Attributes:
        kind: `adamw` (Loshchilov & Hutter 2019, arXiv 1711.05101) or `sgd`.
        betas, epsilon: of AdamW.
        momentum: of SGD.
        weight_decay: decoupled, of both.
        debias: take the noise's known variance out of AdamW's second moment (Tang et al. 2024,
            arXiv 2312.14334, algorithm 1), down to a tenth of that variance.
        b_lr_ratio: learning rate of lora_B over that of lora_A (LoRA+, arXiv 2402.12354).
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    debias: bool = False
    b_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        legal = {
            "kind 'adamw' or 'sgd'": self.kind in ("adamw", "sgd"),
            "betas in [0, 1)": all(0 <= beta < 1 for beta in self.betas),
            "0 <= momentum < 1": 0 <= self.momentum < 1,
            "epsilon > 0": self.epsilon > 0,
            "weight_decay >= 0": self.weight_decay >= 0,
            "b_lr_ratio > 0": self.b_lr_ratio > 0,
        }
        if broken := [rule for rule, kept in legal.items() if not kept]:
            raise UsageError(expected=", ".join(broken), found=str(self), todo="Mend the options.")


class Moments:
    """The optimiser's memory: running moments of released gradients, one pair a tensor."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.step = 0
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def moved(self, key: str, weight: Tensor, mean: Tensor, noise_std: float, lr: float) -> Tensor:
        """A tensor after the step; `step` must have been raised before the first of a step.

        Args:
            key: names the tensor.
            weight: before.
            mean: its released gradient.
            noise_std: std of the noise on each coordinate of `mean`.
            lr: learning rate.
        """
        o = self.optimizer
        decayed = weight * (1 - lr * o.weight_decay)
        before = self._first.get(key)
        first = torch.zeros_like(mean) if before is None else before
        if o.kind == "sgd":
            self._first[key] = first = o.momentum * first + mean
            return decayed - lr * first
        second = self._second.get(key, torch.zeros_like(mean))
        self._first[key] = first = torch.lerp(mean, first, o.betas[0])
        self._second[key] = second = torch.lerp(mean.square(), second, o.betas[1])
        scale = second / (1 - o.betas[1] ** self.step)
        if o.debias:
            scale = (scale - noise_std**2).clamp(min=0.1 * noise_std**2)
        direction = first / (1 - o.betas[0] ** self.step) / (scale.sqrt() + o.epsilon)
        return decayed - lr * direction

    def state_dict(self) -> dict[str, Tensor]:
        """Step and moments."""
        return {
            "step": torch.tensor(self.step),
            **{f"{key}:m": value for key, value in self._first.items()},
            **{f"{key}:v": value for key, value in self._second.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor], *, owner: str) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            UsageError: the state is another rule's.
        """
        if "step" not in state or any(
            not key.endswith((":m", ":v")) for key in state if key != "step"
        ):
            raise UsageError(
                expected=f"the state of {owner}",
                found=f"entries {', '.join(sorted(state)[:3]) or 'none'}",
                todo="Resume a run with the method it was begun with.",
            )
        self.step = int(state["step"])
        self._first = {k[:-2]: v.clone() for k, v in state.items() if k.endswith(":m")}
        self._second = {k[:-2]: v.clone() for k, v in state.items() if k.endswith(":v")}


class DpSgd(StepRule):
    """One DP-SGD step on lora_A and lora_B; see `StepRule`.

    Args:
        optimizer: see `Optimizer`.
    """

    name = "dpsgd"

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        self.optimizer = optimizer or Optimizer()
        self._moments = Moments(self.optimizer)

    def start(self, weights: Weights) -> Weights:
        """What was given, with an empty memory."""
        self._moments = Moments(self.optimizer)
        return weights

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """The gradients themselves."""
        return grads

    def norms(self, weights: Weights, contributions: PerExample) -> Tensor:
        """Euclidean norm over all factors of all sites, float64 [B]."""
        parts = [
            torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64)
            for pair in contributions.values()
            for part in pair
        ]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return norms

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Independent noise of std `std` on every coordinate."""
        return {
            name: (normal(*a.shape).to(a.device) * std, normal(*b.shape).to(b.device) * std)
            for name, (a, b) in weights.items()
        }

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """The optimiser's step on both factors."""
        moments, ratio = self._moments, self.optimizer.b_lr_ratio
        moments.step += 1
        return {
            name: (
                moments.moved(f"{name}:A", a, mean[name][0], noise_std, lr),
                moments.moved(f"{name}:B", b, mean[name][1], noise_std, lr * ratio),
            )
            for name, (a, b) in weights.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's memory."""
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, after `start`."""
        self._moments.load_state_dict(state, owner=self.name)


class FfaLora(DpSgd):
    """One DP-SGD step on lora_B alone; see `DpSgd`.

    Its start is the standard one of LoRA, or an emitted adapter, whose lora_A then stays.
    """

    name = "ffa"
    needs_a = False

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """The gradients by lora_B, and [B, 0] for lora_A."""
        return {name: (b.new_zeros(len(b), 0), b) for name, (_, b) in grads.items()}

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Independent noise on lora_B, and [1, 0] for lora_A."""
        return {
            name: (b.new_zeros(1, 0, dtype=torch.float64), normal(*b.shape).to(b.device) * std)
            for name, (_, b) in weights.items()
        }

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """The optimiser's step on lora_B."""
        self._moments.step += 1
        return {
            name: (a, self._moments.moved(f"{name}:B", b, mean[name][1], noise_std, lr))
            for name, (a, b) in weights.items()
        }
