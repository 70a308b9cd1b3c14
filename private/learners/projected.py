"""DP-SGD in the subspace of public adapters: the rival that has seen the same public data.

lora_B moves in the span of p orthonormal directions V_j that public tasks' adapters span; lora_A is
theirs and stays. An example's contribution is its p coordinates V' gB, so clipping and noise are in
R^p (cf. Zhou, Wu & Banerjee 2021, arXiv 2007.03813; Yu et al. 2021, arXiv 2102.12677).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.learners.dpsgd import Moments, Optimizer
from hyperdp.private.learners.normal import Normal
from hyperdp.private.learners.step_rule import PerExample, StepRule

_KEY = "coordinates"


@dataclass(frozen=True, kw_only=True)
class PublicSubspace:
    """Orthonormal directions of lora_B, all sites together.

    Attributes:
        vectors: float32 [p, Σ out·r], sites in the order of `shapes`.
        shapes: site name → (out, r).
    """

    vectors: Tensor = field(repr=False)
    shapes: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, adapters: Weights, dims: int) -> PublicSubspace:
        """The span of the leading differences between public adapters.

        Args:
            adapters: G public adapters that share lora_A, B [G, out, r].
            dims: p, at most; directions that the adapters do not have are left out.

        Returns:
            The p leading right singular vectors of B less its mean over the G.

        Raises:
            UsageError: p < 1, or adapters that do not differ.
        """
        shapes = {name: (b.shape[1], b.shape[2]) for name, (_, b) in adapters.items()}
        rows = torch.cat([b.flatten(1) for _, b in adapters.values()], 1).double()  # [G, d]
        rows = rows - rows.mean(0)
        # Through the G × G Gram matrix, as G is hundreds and d hundreds of thousands.
        values, left = torch.linalg.eigh(rows @ rows.T)
        kept = (values > 1e-9 * values[-1].clamp(min=1e-300)).flip(0)
        count = min(dims, int(kept.sum()))
        if dims < 1 or count < 1:
            raise UsageError(
                expected="at least one direction in which public adapters differ",
                found=f"dims={dims} and {int(kept.sum())} directions",
                todo="Use a trained bundle, and more than one public task.",
            )
        vectors = left.flip(1)[:, :count].T @ rows  # [p, d]
        vectors = torch.linalg.qr(vectors.T)[0].T.contiguous()
        return cls(vectors=vectors.float(), shapes=shapes)

    def coordinates(self, b: dict[str, Tensor]) -> Tensor:
        """V' b: B [N, out, r] a site → [N, p]."""
        return torch.cat([b[name].flatten(1) for name in self.shapes], 1) @ self.vectors.T

    def point(self, coordinates: Tensor) -> dict[str, Tensor]:
        """V c: [N, p] → B [N, out, r] a site."""
        sizes = [out * rank for out, rank in self.shapes.values()]
        parts = torch.split(coordinates @ self.vectors, sizes, dim=1)
        return {
            name: part.view(-1, *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }


class Projected(StepRule):
    """One DP-SGD step on the coordinates in a public subspace; see `StepRule`.

    Args:
        subspace: public, fixed before private data is opened.
        optimizer: see `Optimizer`.
    """

    name = "projected"
    needs_a = False

    def __init__(self, subspace: PublicSubspace, optimizer: Optimizer | None = None) -> None:
        self.subspace = subspace
        self.optimizer = optimizer or Optimizer()
        self._moments = Moments(self.optimizer)

    def start(self, weights: Weights) -> Weights:
        """What was given, which must have the sites and the rank of the subspace.

        Raises:
            UsageError: it has others.
        """
        shapes = {name: (b.shape[1], b.shape[2]) for name, (_, b) in weights.items()}
        if shapes != self.subspace.shapes:
            raise UsageError(
                expected="an adapter with the sites and the rank of the public subspace, "
                f"{len(self.subspace.shapes)} sites of rank {_rank(self.subspace.shapes)}",
                found=f"{len(shapes)} sites of rank {_rank(shapes)}",
                todo="Use the bundle's own sites and rank.",
            )
        self._moments = Moments(self.optimizer)
        return weights

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """Coordinates of the gradients by lora_B: [B, p], and [B, 0]."""
        found = self.subspace.coordinates({name: b for name, (_, b) in grads.items()})
        return {_KEY: (found, found.new_zeros(len(found), 0))}

    def norms(self, weights: Weights, contributions: PerExample) -> Tensor:
        """Euclidean norm of the coordinates, float64 [B]."""
        norms: Tensor = torch.linalg.vector_norm(contributions[_KEY][0], dim=1, dtype=torch.float64)
        return norms

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Independent noise on every coordinate: [1, p], and [1, 0]."""
        vectors = self.subspace.vectors
        drawn = normal(1, len(vectors)).to(vectors.device) * std
        return {_KEY: (drawn, drawn.new_zeros(1, 0))}

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """The optimiser's step on the coordinates, carried over to lora_B."""
        self._moments.step += 1
        released = mean[_KEY][0]  # [1, p]
        step = self._moments.moved(_KEY, torch.zeros_like(released), released, noise_std, lr)
        moved = self.subspace.point(step)
        return {name: (a, b + moved[name]) for name, (a, b) in weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's memory."""
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, after `start`."""
        self._moments.load_state_dict(state, owner=self.name)


def _rank(shapes: dict[str, tuple[int, int]]) -> int:
    return next(iter(shapes.values()))[1]
