"""Drawn tasks that are looked at more than once."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperdp.pretrain.world import Tasks


class TaskPool:
    """A pool of drawn tasks, a few replaced at every step: drawing is dear, a second look is cheap.

    Each task has a seed of its own, so that the pool's state is its seeds and not its images.

    Args:
        sampler: draws the tasks.
        size: tasks kept.
        records: records of a task.
        fresh: tasks replaced a step.
    """

    def __init__(self, sampler: Tasks, *, size: int, records: int, fresh: int) -> None:
        self.sampler, self.size, self.records, self.fresh = sampler, size, records, fresh
        self.images: Tensor | None = None
        self.content: Tensor | None = None
        self.seeds: Tensor | None = None
        self.next = 0

    def refill(self) -> None:
        """Nothing: tasks are replaced by the generator that draws."""

    def draw(self, count: int, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Tasks from the pool, records in random order.

        Returns:
            float32 [count, records, C, H, W] and their content, int64 [count, records].
        """
        if rng is None:
            raise ValueError("these tasks are drawn by the processor: give a generator, or feeders")
        if self.seeds is None:
            self.seeds = torch.randint(2**62, (self.size,), generator=rng)
        if self.images is None or self.content is None:
            parts = [self._task(seed) for seed in self.seeds.tolist()]
            self.images = torch.stack([images for images, _ in parts])
            self.content = torch.stack([content for _, content in parts])
        for seed in torch.randint(2**62, (self.fresh,), generator=rng).tolist():
            self.seeds[self.next] = seed
            self.images[self.next], self.content[self.next] = self._task(seed)
            self.next = (self.next + 1) % self.size
        chosen = torch.randperm(self.size, generator=rng)[:count, None]
        order = torch.stack([torch.randperm(self.records, generator=rng) for _ in range(count)])
        return self.images[chosen, order], self.content[chosen, order]

    def _task(self, seed: int) -> tuple[Tensor, Tensor]:
        """float32 [records, C, H, W] and int64 [records] of the task with that seed."""
        rng = torch.Generator().manual_seed(seed)
        images, content = self.sampler.draw_labelled(1, self.records, rng)
        return images[0], content[0]

    def state(self) -> Tensor:
        """What the pool holds, int64 [size + 2]; zeros before the first draw."""
        if self.seeds is None:
            return torch.zeros(self.size + 2, dtype=torch.int64)
        return torch.cat([torch.tensor([1, self.next]), self.seeds])

    def restore(self, state: Tensor) -> None:
        """Takes the pool back to a state; its tasks are drawn again when they are needed."""
        self.images = self.content = None
        self.seeds = state[2:].clone() if int(state[0]) else None
        self.next = int(state[1])
