"""The rival that looks a LoRA up: that of the public tasks whose mean is nearest to the released z.

Post-processing of a release, which costs what the release cost and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.library import Library
from hyperdp.lora import Weights


@dataclass(frozen=True, kw_only=True)
class NearestConfig:
    """Chosen on public tasks.

    Attributes:
        neighbours: tasks whose ΔW are averaged, with equal weights.
    """

    neighbours: int = 1

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise UsageError(
                expected="neighbours >= 1", found=str(self.neighbours), todo="Mend the settings."
            )


def nearest_weights(library: Library, mean: Tensor, config: NearestConfig) -> Weights:
    """The adapter of the nearest public tasks.

    Args:
        library: of the bundle that the release was made with.
        mean: float32 [k], z.
        config: see `NearestConfig`.

    Returns:
        One adapter of rank r · neighbours, A [1, R, in, …] and B [1, out, R].

    Raises:
        UsageError: the library has fewer tasks than that.
    """
    numbers = library.indices()
    if len(numbers) < config.neighbours:
        raise UsageError(
            expected=f"a library of at least {config.neighbours} tasks",
            found=f"{len(numbers)} in {library.path}",
            todo="Make more with `hyperdp pretrain library`, or ask for fewer neighbours.",
        )
    means = np.ascontiguousarray(library.means().numpy(), dtype=np.float32)
    index = faiss.IndexFlatL2(means.shape[1])
    index.add(means)
    _, found = index.search(mean.float().numpy()[None], config.neighbours)  # [1, neighbours]
    return averaged([library.task(numbers[int(i)])[1] for i in found[0]])


def averaged(adapters: list[Weights]) -> Weights:
    """The adapter whose ΔW at every site is the mean of the given ones', exactly.

    lora_A and lora_B are defined only up to an invertible matrix between them, so that their own
    means say nothing. Side by side, with lora_B over their number, their products add up.

    Args:
        adapters: A [1, r, in, …] and B [1, out, r] each, of the same sites.

    Returns:
        A [1, Σ r, in, …] and B [1, out, Σ r].
    """
    return {
        name: (
            torch.cat([weights[name][0] for weights in adapters], 1),
            torch.cat([weights[name][1] for weights in adapters], 2) / len(adapters),
        )
        for name in adapters[0]
    }
