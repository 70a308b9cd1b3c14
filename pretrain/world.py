"""What the public stage draws from: records as a base model sees them, and meta-tasks.

A world is either the glyphs (`GlyphWorld`) or images of one's own (`pretrain.image_tasks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.rows import RowSampler, records
from hyperdp.pretrain.tasks import TaskMix, TaskSampler
from hyperdp.pretrain.values import build


class Tasks(Protocol):
    """Draws meta-tasks of one split.

    Attributes:
        content_classes: what `draw_labelled` tells apart.
    """

    content_classes: int

    def draw(self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0) -> Tensor:
        """Whole tasks, float32 [count, records, C, H, W] in [-1, 1].

        The last `unseen` records of a task are of other public data than the rest of it.
        """

    def draw_labelled(
        self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The same, and what each record shows, int64 [count, records]."""


class World(Protocol):
    """Public data, in two splits: 0 to train on, 1 held out.

    Attributes:
        digest: tells one such data from another.
    """

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""

    def records(self, count: int, split: int, rng: torch.Generator) -> Tensor:
        """Records as the base model sees them, float32 [count, C, H, W] in [-1, 1]."""

    def mix(self, values: Mapping[str, float]) -> Any:
        """How often each kind of task is drawn: a dataclass, from the recipe's `[mix]`.

        Raises:
            UsageError: a kind that this world does not have.
        """

    def tasks(self, split: int, values: Mapping[str, float]) -> Tasks:
        """Meta-tasks of a split, mixed as `values` say."""


class GlyphWorld:
    """Rendered glyphs.

    Args:
        corpus: of them.
        further_scripts: opens glyphs of scripts that the corpus has none of, for forecasts.
    """

    def __init__(self, corpus: Corpus, further_scripts: Callable[[], Corpus] | None = None) -> None:
        self.corpus, self.further_scripts = corpus, further_scripts
        self._rows: dict[int, RowSampler] = {}

    @property
    def digest(self) -> str:
        """See `World`."""
        return self.corpus.digest

    def records(self, count: int, split: int, rng: torch.Generator) -> Tensor:
        """See `World`."""
        if split not in self._rows:
            self._rows[split] = RowSampler(self.corpus, split)
        return records(self.corpus, self._rows[split].draw(count, rng), rng)

    def mix(self, values: Mapping[str, float]) -> TaskMix:
        """See `World`."""
        return build(TaskMix, values)

    def tasks(self, split: int, values: Mapping[str, float]) -> TaskSampler:
        """See `World`."""
        return TaskSampler(self.corpus, split, self.mix(values))
