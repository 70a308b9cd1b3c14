"""Labelled digits in open fonts: the public task that needs no privacy, and its control."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyperdp.errors import DataError
from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.readable import readable
from hyperdp.pretrain.rows import records
from hyperdp.pretrain.style import Style

FEWEST_READABLE = 24


def draw_digits(
    corpus: Corpus, split: int, count: int, rng: torch.Generator, *, style: Style | None = None
) -> tuple[Tensor, Tensor]:
    """Draws digits, every one as often as the others, each in a face of its own.

    Of faces whose digits are readable, where there are enough: a control made of ornaments would be
    a weak one.

    Args:
        corpus: the public corpus.
        split: 0 training faces, 1 faces held out.
        count: N.
        rng: CPU generator.
        style: of all of them, fields [1]; each has a style of its own when None.

    Returns:
        float32 [N, 1, 28, 28] in [-1, 1] and the digit each shows, int64 [N], in random order.

    Raises:
        DataError: a digit is in no face of the split.
    """
    names = corpus.names["char"]
    labels = torch.arange(count)[torch.randperm(count, generator=rng)] % 10
    rows = np.empty(count, dtype=np.int64)
    digits = [names.index(d) for d in "0123456789" if d in names]
    among = np.nonzero((corpus.split == split) & np.isin(corpus.char, digits))[0]
    clear = np.zeros(len(corpus), dtype=bool)
    clear[among[readable(corpus, among)]] = True
    for digit in range(10):
        char = names.index(str(digit)) if str(digit) in names else -1
        found = np.nonzero((corpus.split == split) & (corpus.char == char))[0]
        if len(found) == 0:
            raise DataError(
                expected=f"a face of split {split} that draws the digit {digit}",
                found="none",
                todo="Render the whole corpus: `make fonts`, then `hyperdp pretrain corpus`.",
            )
        if clear[found].sum() >= FEWEST_READABLE:
            found = found[clear[found]]
        mine = (labels == digit).numpy()
        rows[mine] = found[torch.randint(len(found), (int(mine.sum()),), generator=rng).numpy()]
    parts = [records(corpus, part, rng, style) for part in np.array_split(rows, -(-count // 500))]
    return torch.cat(parts), labels
