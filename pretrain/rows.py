"""Rows of the glyph corpus, and the records that are drawn of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.style import Style, draw, draw_style


def records(
    corpus: Corpus, rows: npt.NDArray[np.int64], rng: torch.Generator, style: Style | None = None
) -> Tensor:
    """Draws the glyphs at `rows`: float32 [N, 1, 28, 28].

    Args:
        corpus: the public corpus.
        rows: of it.
        rng: CPU generator.
        style: of all of them, fields [1]; each has a style of its own when None.
    """
    ink = torch.from_numpy(np.ascontiguousarray(corpus.ink[rows]))
    skeleton = torch.from_numpy(np.ascontiguousarray(corpus.skeleton[rows]))
    if style is None:
        style = draw_style(len(rows), rng)
    else:
        style = style.row(torch.zeros(len(rows), dtype=torch.int64))
    return draw(ink, skeleton, style, rng)


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
