"""Group norms that do not widen what they are given, for training on a GPU under autocast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowGroupNorm(nn.GroupNorm):
    """Group norm in the precision of its input; autocast would widen it, and all that follows."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] → the same shape and type."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)


def narrow_norms(model: nn.Module) -> None:
    """Makes every group norm of a model that is trained on a GPU a `NarrowGroupNorm`.

    Sums are taken in float32 all the same, by the kernel itself.
    """
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = NarrowGroupNorm
