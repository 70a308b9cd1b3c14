"""Which glyphs look like the character that they stand for.

Decorative faces draw symbols, outlines or ornaments at the code points of digits and letters. A
task of fives should show fives.
"""

from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.style import draw, plain_style

AT_ONCE = 1000
FOUND, NEIGHBOURS = 60, 15


def readable(
    corpus: Corpus, rows: npt.NDArray[np.int64], *, share: float = 0.8
) -> npt.NDArray[np.bool_]:
    """Ask each glyph's nearest neighbours in other families which character they show.

    Neighbours are those of the glyphs drawn with one pen, blurred, at 14×14: by their shape, not by
    their weight or ornament.

    Args:
        corpus: the public corpus.
        rows: int64 [N], glyphs of characters that should be told apart, such as the ten digits.
        share: of the up to 15 nearest neighbours that must show the glyph's own character.

    Returns:
        bool [N]; False too where all that is near is of the glyph's own family.
    """
    if len(rows) == 0:
        return np.zeros(0, dtype=bool)
    shapes = np.concatenate(
        [_shapes(corpus, rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
    )
    index = faiss.IndexFlatL2(shapes.shape[1])
    index.add(shapes)
    near = index.search(shapes, min(FOUND, len(rows)))[1]
    char, family = corpus.char[rows], corpus.family[rows]
    other = family[near] != family[:, None]
    counted = other & (np.cumsum(other, axis=1) <= NEIGHBOURS)
    same = (counted & (char[near] == char[:, None])).sum(1)
    asked = counted.sum(1)
    return np.asarray((asked > 0) & (same >= share * asked))


def _shapes(corpus: Corpus, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    style = dataclasses.replace(plain_style(len(rows)), pen=torch.ones(len(rows)))
    ink, skeleton = (torch.from_numpy(part[rows]) for part in (corpus.ink, corpus.skeleton))
    images = (draw(ink, skeleton, style, torch.Generator().manual_seed(0)) + 1) / 2
    soft = functional.avg_pool2d(functional.avg_pool2d(images, 3, 1, 1), 2)
    return np.ascontiguousarray(soft.flatten(1).numpy(), dtype=np.float32)
