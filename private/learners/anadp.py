"""ANADP, as far as it can be private: less noise where released gradients say it matters.

Li, Zmigrod, Ma, Liu & Zhu 2024, arXiv 2410.02912 (EMNLP 2024 Findings). The paper's formulas and
proof were not at hand; `noise_shares` says where ours come from. As publicly described the method
has two flaws, measured in `hyperdp.eval.anadp_as_described`; this learner has neither:

- Noise of unequal std s_j under one common clip protects no better than the smallest s_j. Here the
  clip is elliptical, ‖D⁻¹g‖ ≤ C, and the noise is σ C D, so that D⁻¹g meets isotropic noise and
  the step costs what a Gaussian of noise multiplier σ costs, for every D. An important module gets
  less noise and is clipped harder for it.
- Importance from raw gradients makes the noise's covariance a function of the data. Here it comes
  from the noisy gradients of earlier steps, which are released anyway; the part of their size that
  the noise of known std makes up is taken out.

A module here is one factor of one site. Where the description has the mean of |g|, we keep the mean
of g², since squares are what can be rid of noise without bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.learners.allocation import noise_shares
from hyperdp.private.learners.dpsgd import Moments, Optimizer
from hyperdp.private.learners.normal import Normal
from hyperdp.private.learners.step_rule import PerExample, StepRule

_IMPORTANCE = ("square", "square_variance", "change", "shares")


@dataclass(frozen=True, kw_only=True)
class AnadpOptions:
    """What can be varied without touching the promise.

    Attributes:
        allocation: `importance`, or `uniform` for plain DP-SGD beside it.
        sensitivity: importance is measured on the `gradient`, or on `weight_gradient`, w · g, as in
            PLATON and AdaLoRA (zero where lora_B is).
        importance_betas: decay of the sensitivity and of its uncertainty.
        shrink, spread: see `noise_shares`.
        warmup: steps with equal noise before importance is used.
        optimizer: what takes the released gradient, as in DP-SGD.
    """

    allocation: Literal["importance", "uniform"] = "importance"
    sensitivity: Literal["gradient", "weight_gradient"] = "gradient"
    importance_betas: tuple[float, float] = (0.9, 0.999)
    shrink: float = 0.9
    spread: float = 4.0
    warmup: int = 5
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        legal = {
            "importance_betas in [0, 1)": all(0 <= beta < 1 for beta in self.importance_betas),
            "0 <= shrink <= 1": 0 <= self.shrink <= 1,
            "spread >= 1": self.spread >= 1,
            "warmup >= 2": self.warmup >= 2,  # a change needs two steps
            "allocation 'importance' or 'uniform'": self.allocation in ("importance", "uniform"),
            "sensitivity 'gradient' or 'weight_gradient'": self.sensitivity
            in ("gradient", "weight_gradient"),
        }
        broken = [rule for rule, kept in legal.items() if not kept]
        if broken:
            raise UsageError(expected=", ".join(broken), found=str(self), todo="Mend the options.")


class Anadp(StepRule):
    """One step with noise shared out by importance; see `StepRule`.

    Args:
        options: see `AnadpOptions`.
    """

    name = "anadp"

    def __init__(self, options: AnadpOptions | None = None) -> None:
        self.options = options or AnadpOptions()
        self._importance: dict[str, Tensor] = {}
        self._moments = Moments(self.options.optimizer)

    def start(self, weights: Weights) -> Weights:
        """What was given, with equal noise everywhere."""
        nothing = torch.zeros(2 * len(weights), dtype=torch.float64)
        self._moments = Moments(self.options.optimizer)
        self._importance = {key: nothing.clone() for key in _IMPORTANCE}
        self._importance["shares"] = torch.ones_like(nothing)
        return weights

    def shares(self, weights: Weights) -> dict[str, tuple[float, float]]:
        """Site → D of lora_A and of lora_B: a function of earlier releases alone."""
        flat = iter(self._importance["shares"].tolist())
        return {name: (next(flat), next(flat)) for name in sorted(weights)}

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """The gradients themselves."""
        return grads

    def norms(self, weights: Weights, contributions: PerExample) -> Tensor:
        """‖D⁻¹ g‖ over all modules; float64 [B]."""
        shares = self.shares(weights)
        squares = [
            part.double().flatten(1).square().sum(1) / share**2
            for name, pair in contributions.items()
            for part, share in zip(pair, shares[name], strict=True)
        ]
        return torch.stack(squares).sum(0).sqrt()

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Noise of std D `std` on every coordinate of a module."""
        shares = self.shares(weights)
        return {
            name: (
                normal(*a.shape).to(a.device) * (std * shares[name][0]),
                normal(*b.shape).to(b.device) * (std * shares[name][1]),
            )
            for name, (a, b) in weights.items()
        }

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """The optimiser's step, and the shares of the next one."""
        moments, ratio = self._moments, self.options.optimizer.b_lr_ratio
        moments.step += 1
        shares = self.shares(weights)
        self._measure(weights, mean, noise_std)
        return {
            name: (
                moments.moved(f"{name}:A", a, mean[name][0], noise_std * shares[name][0], lr),
                moments.moved(
                    f"{name}:B", b, mean[name][1], noise_std * shares[name][1], lr * ratio
                ),
            )
            for name, (a, b) in weights.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Importance and shares, one number a module, the optimiser's moments, and the step."""
        importance = {f"importance:{key}": value for key, value in self._importance.items()}
        return {**importance, **self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, after `start`.

        Raises:
            UsageError: the state is another rule's, or of another number of sites.
        """
        own = {key: state.get(f"importance:{key}") for key in _IMPORTANCE}
        taken = {key: value.clone() for key, value in own.items() if value is not None}
        if any(
            key not in taken or taken[key].shape != kept.shape
            for key, kept in self._importance.items()
        ):
            raise UsageError(
                expected=f"the state of {self.name} for {len(self._importance['shares'])} modules",
                found=f"entries {', '.join(sorted(state)[:3]) or 'none'}",
                todo="Resume a run with the method and the sites it was begun with.",
            )
        rest = {key: value for key, value in state.items() if not key.startswith("importance:")}
        self._moments.load_state_dict(rest, owner=self.name)
        self._importance = taken

    def _measure(self, weights: Weights, mean: Weights, noise_std: float) -> None:
        """Importance of each module: sensitivity × uncertainty, both free of the noise's part.

        q estimates the mean of (a g)² of a module, a = 1 or w, from ĝ = g + noise of variance v:
        q = mean(a² (ĝ² - v)). Its own variance is mean(a⁴ (4 v ĝ² - 2 v²)) / d, without bias too.
        The uncertainty is the root mean square of q's changes, less what noise makes of them.
        """
        shares = self.shares(weights)
        found, variances, sizes = [], [], []
        for name in sorted(weights):
            for weight, released, share in zip(
                weights[name], mean[name], shares[name], strict=True
            ):
                v = (noise_std * share) ** 2
                g2 = released.double().square()
                a2 = weight.double().square() if self.options.sensitivity != "gradient" else 1.0
                found.append((a2 * (g2 - v)).mean())
                variances.append((a2 * a2 * (4 * v * g2 - 2 * v**2)).mean() / g2.numel())
                sizes.append(g2.numel())
        kept, (beta_1, beta_2) = self._importance, self.options.importance_betas
        q, variance = torch.stack(found).cpu(), torch.stack(variances).cpu()
        if self._moments.step > 1:
            before = 1 - beta_1 ** (self._moments.step - 1)
            change = (q - kept["square"] / before).square()
            change = change - variance - kept["square_variance"] / before**2
            kept["change"] = beta_2 * kept["change"] + (1 - beta_2) * change
        kept["square"] = beta_1 * kept["square"] + (1 - beta_1) * q
        kept["square_variance"] = beta_1**2 * kept["square_variance"] + (1 - beta_1) ** 2 * variance
        if self.options.allocation == "importance" and self._moments.step >= self.options.warmup:
            sensitivity = (kept["square"] / (1 - beta_1**self._moments.step)).clamp(min=0)
            change = (kept["change"] / (1 - beta_2 ** (self._moments.step - 1))).clamp(min=0)
            kept["shares"] = noise_shares(
                (sensitivity * change.sqrt()).sqrt(),
                torch.tensor(sizes),
                shrink=self.options.shrink,
                spread=self.options.spread,
            )
