"""Trains a base model on the public corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.family import FAMILIES, UNetFlow
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.loop import Loop, LoopConfig
from hyperdp.pretrain.style import draw, draw_style


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Recipe of a base model.

    Attributes:
        family: a key of `hyperdp.family.FAMILIES`.
        batch_size: records a step.
        loop: see `LoopConfig`.
        model: arguments of the diffusers model class.
        start: folder with `unet/` and `scheduler/` (a base or a bundle) whose weights training
            begins with; "" begins with fresh ones, of the shape that `model` says.
    """

    family: str = "unet-flow"
    batch_size: int = 64
    loop: LoopConfig
    model: dict[str, Any] = field(default_factory=dict)
    start: str = ""


def records(corpus: Corpus, rows: npt.NDArray[np.int64], rng: torch.Generator) -> Tensor:
    """Draws the glyphs at `rows`, each in a style of its own: float32 [N, 1, 28, 28]."""
    ink = torch.from_numpy(np.ascontiguousarray(corpus.ink[rows]))
    skeleton = torch.from_numpy(np.ascontiguousarray(corpus.skeleton[rows]))
    return draw(ink, skeleton, draw_style(len(rows), rng), rng)


class RowSampler:
    """Glyph rows of one split, half of them uniform over glyphs and half uniform over scripts."""

    def __init__(self, corpus: Corpus, split: int) -> None:
        rows = np.nonzero(corpus.split == split)[0]
        order = np.argsort(corpus.script[rows], kind="stable")
        self.rows = rows[order]
        self.starts = np.unique(corpus.script[self.rows], return_index=True)[1]
        self.sizes = np.diff(np.append(self.starts, len(self.rows)))

    def draw(self, count: int, rng: torch.Generator) -> npt.NDArray[np.int64]:
        """int64 [count] rows of the corpus."""
        u = torch.rand(3, count, generator=rng).numpy()
        script = (u[0] * len(self.starts)).astype(np.int64)
        balanced = self.starts[script] + (u[1] * self.sizes[script]).astype(np.int64)
        uniform = (u[1] * len(self.rows)).astype(np.int64)
        return np.asarray(self.rows[np.where(u[2] < 0.5, balanced, uniform)], dtype=np.int64)


def train_base(config: BaseConfig, folder: Path, corpus: Corpus | None = None) -> UNetFlow:
    """Trains (or goes on training) a base model and saves it under `folder`.

    Args:
        config: the recipe.
        folder: `unet/`, `scheduler/`, the checkpoint and `log.jsonl` go here.
        corpus: the public corpus; rendered or read from the cache when None.

    Returns:
        The trained family with averaged weights.
    """
    corpus = corpus_module.open_corpus() if corpus is None else corpus
    torch.manual_seed(config.loop.seed)
    kind = FAMILIES[config.family]
    family = kind.load(Path(config.start)) if config.start else kind.create(**config.model)
    family.prepare_training()
    train, held_out = RowSampler(corpus, 0), RowSampler(corpus, 1)

    def step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        images = records(corpus, train.draw(config.batch_size // config.loop.workers, rng), rng)
        return family.loss(images, rng).mean(), {}

    def validate() -> dict[str, float]:
        rng = torch.Generator().manual_seed(1)
        images = records(corpus, held_out.draw(512, rng), rng)
        family.model.eval()
        with torch.no_grad():
            losses = [family.loss(part, rng).mean() for part in torch.split(images, 128)]
        family.model.train()
        return {"validation_loss": float(torch.stack(losses).mean())}

    family.model.train()
    Loop(config.loop, family.model, step, folder, validate).run("base")
    family.model.eval()
    family.save(folder)
    return family
