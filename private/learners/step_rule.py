"""The geometry and the optimiser of one private step: all in which the learners differ.

Every learner of this package runs the same loop (`hyperdp.private.learners.fit`):

    grads = per-example gradients of lora_A and lora_B
    c     = rule.contributions(weights, grads)
    s     = min(1, C / rule.norms(weights, c))            one factor for each example
    total = Σ_i s_i c_i + rule.noise(weights, σC, normal)      the only thing that is released
    weights = rule.update(weights, total / (qN), σC / (qN), lr)

The promise rests on one property of a rule: adding or removing one example moves Σ s_i c_i by at
most C in the norm of `norms`, and `noise` is the Gaussian of std σC that is isotropic in that very
norm (every direction of unit norm has noise of std σC). Both may depend on `weights` and on the
rule's state, which are functions of noise already released, and on nothing else.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.learners.normal import Normal

PerExample = dict[str, tuple[Tensor, Tensor]]
"""Site name → per-example (gA [B, r, in, …], gB [B, out, r]) of lora_A and lora_B."""


class StepRule(Protocol):
    """One private step. Inherit from it for the defaults of `start` and of the state.

    `weights` are always one adapter: A [1, r, in, …], B [1, out, r], float32, without gradients.

    Attributes:
        name: what the certificate calls the mechanism, such as "dpsgd".
        needs_a: whether gradients by lora_A are wanted; without them gA is [B, 0], and a step is
            cheaper.
    """

    name: str
    needs_a: bool = True

    def start(self, weights: Weights) -> Weights:
        """The adapter that the run begins with, made of the one that is given.

        Args:
            weights: the standard start of LoRA (B zero), or an emitted adapter.

        Returns:
            One adapter of the same shapes; by default what was given.

        Raises:
            UsageError: the rule cannot start there, such as a factor of rank below r.
        """
        return weights

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """What is clipped and added up for each example, such as the gradient or its projection.

        Args:
            weights: the adapter before the step.
            grads: per-example gradients, finite; of an example whose gradient was not, zeros.

        Returns:
            Pairs of tensors [B, …], linear in the gradients of their own example and free of all
            others'. Keys and shapes are the rule's own; `norms`, `noise` and `update` know them.
        """
        ...

    def norms(self, weights: Weights, contributions: PerExample) -> Tensor:
        """The norm that clipping bounds.

        Args:
            weights: the adapter before the step.
            contributions: as `contributions` gives them.

        Returns:
            float64 [B], homogeneous of degree 1 in the contribution.
        """
        ...

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Gaussian noise on the sum, isotropic in the norm of `norms`.

        Args:
            weights: the adapter before the step.
            std: σC, std of the noise in every direction of unit norm.
            normal: standard normals, float64.

        Returns:
            Pairs of tensors of one contribution, [1, …]; float64.
        """
        ...

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """The adapter after the step: post-processing of what was released.

        Args:
            weights: the adapter before the step.
            mean: (clipped sum + noise) / (qN), float32, pairs of tensors [1, …].
            noise_std: σC / (qN), std of the noise on `mean`.
            lr: learning rate of this step.

        Returns:
            One adapter of the same shapes, new tensors without gradients.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a killed run needs to go on; functions of released values only."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, after `start`.

        Raises:
            UsageError: the state is another rule's.
        """
        if state:
            raise _foreign(self.name, state)


def _foreign(name: str, state: dict[str, Tensor]) -> UsageError:
    return UsageError(
        expected=f"the state of {name}",
        found=f"entries {', '.join(sorted(state)[:3])}",
        todo="Resume a run with the method it was begun with.",
    )
