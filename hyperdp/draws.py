"""Random numbers of a training loss: from a CPU generator, or where the networks compute.

None of them protects anything: the noise that does is drawn elsewhere.

A step that is captured as a CUDA graph cannot ask the processor for numbers. Without a generator
(`rng` None) they come from the device's own, which the training loop seeds at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(shape: Sequence[int], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers, float32, on the device.

    Args:
        shape: of them.
        rng: CPU generator. A GPU draws by a generator of its own, seeded from this one: the
            processor would be slower at drawing than the GPU at all the rest of a training step.
        device: where they go.
    """
    if rng is None:
        return torch.randn(*shape, device=device)
    if device.type == "cpu":
        return torch.randn(*shape, generator=rng)
    seed = int(torch.randint(2**62, (1,), generator=rng))
    own = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=own, device=device)


def uniform(shape: Sequence[int], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers uniform in [0, 1), float32, drawn by `rng` and brought to the device.

    Args:
        shape: of them.
        rng: CPU generator; the device's own when None.
        device: where they go.
    """
    if rng is None:
        return torch.rand(*shape, device=device)
    return torch.rand(*shape, generator=rng).to(device)


def chosen(count: int, among: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
    """`count` different numbers below `among`, int64 [count], in random order, on the device."""
    if rng is None:
        return torch.rand(among, device=device).argsort()[:count]
    return torch.randperm(among, generator=rng)[:count].to(device)
