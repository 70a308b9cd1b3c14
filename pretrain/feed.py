"""Draws that other processes make ahead, kept where the networks compute, each used several times.

A GPU takes more tasks a second than one process can draw. Every draw has a number, and its seed
follows from the number: what is drawn depends neither on how many processes draw nor on how fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Draw = Callable[[torch.Generator], tuple[Tensor, ...]]
AHEAD = 4  # batches that every feeder has ready


class _Numbered(Dataset[tuple[Tensor, ...]]):
    """Draw number i of a seed; images travel as bytes."""

    def __init__(self, draw: Draw, seed: int) -> None:
        self.draw, self.seed = draw, seed

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed((self.seed + number) % 2**62)
        return tuple(_pack(part) for part in self.draw(rng))


class Feed:
    """A pool of draws on a device, a few replaced at every step by processes of their own.

    Args:
        draw: makes one draw out of a generator; float parts are images in [-1, 1].
        seed: draw i is made out of `seed` + i.
        size: draws kept.
        fresh: draws replaced a step.
        feeders: processes that draw.
        device: where the pool is.

    Raises:
        ValueError: more are replaced than there are.
    """

    def __init__(
        self, draw: Draw, *, seed: int, size: int, fresh: int, feeders: int, device: torch.device
    ) -> None:
        if fresh > size:
            raise ValueError(f"{fresh} fresh draws in a pool of {size}")
        self.numbered = _Numbered(draw, seed)
        self.size, self.fresh, self.feeders, self.device = size, fresh, feeders, device
        self.next = 0  # number of the draw that comes next
        self.parts: list[Tensor] | None = None
        self._stream: Iterator[Any] | None = None

    def refill(self) -> None:
        """Replaces a few draws; the first time, makes them all."""
        if self._stream is None or self.parts is None:
            whole = -(-self.size // self.fresh) * self.fresh  # batches begin where they did before
            first = max(0, self.next - whole)
            stream = self._open(first)
            parts: list[Tensor] = []
            while first < max(self.next, self.size):
                batch = next(stream)
                parts = parts or [
                    torch.empty(self.size, *part.shape[1:], dtype=part.dtype, device=self.device)
                    for part in batch
                ]
                first = self._put(parts, batch, first)
            self._stream, self.parts, self.next = stream, parts, first
        self.next = self._put(self.parts, next(self._stream), self.next)

    def pool(self) -> list[Tensor]:
        """Each part of all draws, [size, …], images as uint8 (see `unpack`); they change in place.

        Raises:
            RuntimeError: there are none before the first `refill`.
        """
        if self.parts is None:
            raise RuntimeError("the pool is empty: refill it first")
        return self.parts

    def _put(self, parts: list[Tensor], batch: list[Tensor], first: int) -> int:
        """Draws `first`, `first` + 1, … take their places; returns the number after the last."""
        count = len(batch[0])
        slots = (torch.arange(first, first + count) % self.size).to(self.device)
        for part, new in zip(parts, batch, strict=True):
            part[slots] = new.to(self.device)
        return first + count

    def _open(self, first: int) -> Iterator[Any]:
        loader = DataLoader(
            self.numbered,
            batch_size=self.fresh,
            sampler=itertools.count(first),
            num_workers=self.feeders,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",
        )
        return iter(loader)

    def state(self) -> Tensor:
        """Number of the draw that comes next, int64 [1]; 0 before the first."""
        return torch.tensor([self.next])

    def restore(self, state: Tensor) -> None:
        """Takes the pool back to a state; its draws are made again when they are needed."""
        self.next = int(state[0])
        self._stream = self.parts = None


def feed_seed(run: int, worker: int, kind: int = 0) -> int:
    """A seed with 2³² numbers after it that no other worker, kind or run's seed has.

    Args:
        run: seed of the run, below 2²⁰.
        worker: below 2⁸.
        kind: of draws, below 2².
    """
    return (run << 42) + (kind << 40) + (worker << 32)


def unpack(images: Tensor) -> Tensor:
    """uint8 → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _pack(part: Tensor) -> Tensor:
    if not part.is_floating_point():
        return part
    return ((part + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
