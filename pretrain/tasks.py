"""Meta-tasks: small public datasets drawn from the corpus, each in a style of its own.

Kinds: a script, a family or a cluster of families, a group of characters over many faces (digits
among them), a typographic attribute, a faiss k-means cluster, a mixture of two, and everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.readable import readable
from hyperdp.pretrain.rows import RowSampler, records
from hyperdp.pretrain.style import Style, draw, draw_style

DRAWN_AT_ONCE = 1000
UNSEEN_SHARE = 1 / 3  # of a task's glyphs, where some are kept for records that are to be unseen
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """How often each kind of task is drawn; the figures are weights.

    Attributes:
        chars, script, family, attribute, cluster, everything: weights of the kinds.
        mixture: probability that a task is a mixture of two.
        plain, pen, coarse: see `draw_style`.
        readable: probability that a task of digits or of Latin letters has only glyphs that look
            like them, see `hyperdp.pretrain.readable`.
    """

    chars: float = 0.42
    script: float = 0.26
    family: float = 0.12
    attribute: float = 0.06
    cluster: float = 0.10
    everything: float = 0.04
    mixture: float = 0.12
    plain: float = 0.30
    pen: float = 0.45
    readable: float = 0.75
    coarse: float = 0.0


class TaskSampler:
    """Draws tasks of one split.

    Args:
        corpus: the public corpus.
        split: 0 train, 1 validation.
        mix: see `TaskMix`.
        min_pool: least number of glyphs that a task draws from.
    """

    def __init__(self, corpus: Corpus, split: int, mix: TaskMix, min_pool: int = 24) -> None:
        self.corpus, self.mix, self.min_pool = corpus, mix, min_pool
        self.rows: Rows = np.nonzero(corpus.split == split)[0].astype(np.int64)
        self.scripts = self._groups(corpus.script)
        self.families = self._groups(corpus.family, least=1)
        latin = corpus.names["script"].index("Latn") if "Latn" in corpus.names["script"] else -1
        named = [n in {"Latn", "Grek", "Cyrl"} for n in corpus.names["script"]]
        in_named = np.array(named)[corpus.script[self.rows]]
        self.chars = dict(self._groups(corpus.char, least=8, among=self.rows[in_named]).items())
        char_names = corpus.names["char"]
        table = {char_names[c]: c for c in self.chars}
        self.digits = [table[d] for d in "0123456789" if d in table]
        self.cases = [
            [table[c] for c in letters if c in table]
            for letters in ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
        ]
        self.latin = latin
        self.readable = self._readable()
        place = np.full(len(char_names), -1, dtype=np.int64)
        place[list(self.chars)] = np.arange(len(self.chars))
        rare = len(self.chars) + corpus.script.astype(np.int64)
        self.content = np.where(place[corpus.char] >= 0, place[corpus.char], rare)
        self.content_classes = len(self.chars) + len(corpus.names["script"])
        self.clusters = self._kmeans()
        self.attributes = [
            rows
            for mask in (
                corpus.weight >= 700,
                corpus.weight <= 300,
                corpus.slant,
                corpus.serif,
                corpus.condensed,
            )
            if len(rows := self.rows[mask[self.rows]]) >= min_pool
        ]  # fmt: skip

    def _groups(
        self, key: npt.NDArray[np.int32], least: int | None = None, among: Rows | None = None
    ) -> dict[int, Rows]:
        rows = self.rows if among is None else among
        if len(rows) == 0:
            return {}
        order = rows[np.argsort(key[rows], kind="stable")]
        values, starts = np.unique(key[order], return_index=True)
        parts = np.split(order, starts[1:])
        least = self.min_pool if least is None else least
        return {int(v): p for v, p in zip(values, parts, strict=True) if len(p) >= least}

    def _readable(self) -> dict[int, Rows]:
        """The readable glyphs of each digit and Latin letter that has enough of them."""
        found = {}
        for group in (self.digits, *self.cases):
            rows = np.concatenate([self.chars[c] for c in group] or [self.rows[:0]])
            kept = rows[readable(self.corpus, rows)]
            for char in group:
                if len(part := kept[self.corpus.char[kept] == char]) >= self.min_pool:
                    found[char] = part
        return found

    def _kmeans(self, clusters: int = 96, sample: int = 12_000) -> list[Rows]:
        """Clusters of glyphs by their shape: k-means over the ink at 12×12."""
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(self.rows, min(sample, len(self.rows)), replace=False))
        pixels = self.corpus.ink[rows].reshape(-1, 12, 4, 12, 4).mean((2, 4)).reshape(len(rows), -1)
        pixels = np.ascontiguousarray(pixels / 255, dtype=np.float32)
        count = max(1, min(clusters, len(rows) // 40))
        kmeans = faiss.Kmeans(
            pixels.shape[1], count, niter=10, seed=0, verbose=False, min_points_per_centroid=1
        )
        kmeans.train(pixels)
        label = kmeans.index.search(pixels, 1)[1][:, 0]
        return [part for c in range(count) if len(part := rows[label == c]) >= self.min_pool]

    def _pool(self, rng: np.random.Generator) -> Rows:
        """The glyphs that one unmixed task draws from."""
        m = self.mix
        kinds = ("chars", "script", "family", "attribute", "cluster", "everything")
        weights = np.array([m.chars, m.script, m.family, m.attribute, m.cluster, m.everything])
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        if kind == "chars" and self.chars:
            return self._char_group(rng)
        if kind == "script" and self.scripts:
            return self.scripts[int(rng.choice(list(self.scripts)))]
        if kind == "family" and self.families:
            names = list(self.families)
            chosen = rng.choice(names, min(len(names), int(rng.integers(1, 9))), replace=False)
            pool = np.concatenate([self.families[int(f)] for f in chosen])
            return pool if len(pool) >= self.min_pool else self.rows
        if kind == "attribute" and self.attributes:
            return self.attributes[int(rng.integers(len(self.attributes)))]
        if kind == "cluster" and self.clusters:
            return self.clusters[int(rng.integers(len(self.clusters)))]
        return self.rows

    def _char_group(self, rng: np.random.Generator) -> Rows:
        u = rng.random()
        chars = list(self.chars)
        if u < 0.22 and self.digits:
            group = self.digits
        elif u < 0.42 and self.digits:
            group = [int(rng.choice(self.digits))]
        elif u < 0.68:
            group = [int(rng.choice(chars))]
        elif u < 0.8 and all(self.cases):
            group = self.cases[int(rng.integers(2))]
        else:
            source = self.digits if rng.random() < 0.4 and len(self.digits) > 2 else chars
            group = [
                int(c)
                for c in rng.choice(
                    source, min(len(source), int(rng.integers(2, 9))), replace=False
                )
            ]
        only = self.readable if rng.random() < self.mix.readable else {}
        pool = np.concatenate([only.get(c, self.chars[c]) for c in group])
        if rng.random() < 0.4:  # a few families rather than all of them
            family = self.corpus.family[pool]
            keep = rng.choice(
                np.unique(family),
                min(len(np.unique(family)), int(rng.integers(6, 60))),
                replace=False,
            )
            few = pool[np.isin(family, keep)]
            if len(few) >= self.min_pool:
                return few
        return pool

    def draw(self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0) -> Tensor:
        """The images of `draw_labelled` alone."""
        return self.draw_labelled(count, records, rng, unseen=unseen)[0]

    def draw_labelled(
        self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draws whole tasks.

        Args:
            count: G.
            records: of each task. A glyph may come again; in a plain style it is the same image.
            rng: CPU generator.
            unseen: how many records, the last ones, show glyphs that none of the others does: a
                third of those that the task has. 0 parts nothing.

        Returns:
            float32 [G, records, 1, 28, 28] in [-1, 1], and what each shows, int64 [G, records]: a
            character, or the script of characters that are in few faces (`content_classes` in all).
        """
        numpy_rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        rows = np.empty((count, records), dtype=np.int64)
        style_of = np.empty((count, records), dtype=np.int64)
        border = records - unseen
        for g in range(count):
            parting = Parting(len(self.corpus), numpy_rng) if unseen else None
            parts = 2 if numpy_rng.random() < self.mix.mixture else 1
            share = numpy_rng.uniform(0.2, 0.8)
            own_style = numpy_rng.random() < 0.5
            second = (
                numpy_rng.random(records) < share if parts == 2 else np.zeros(records, dtype=bool)
            )
            for part, mask in enumerate((~second, second)):
                if mask.any():
                    pool = self._pool(numpy_rng)
                    seen, kept = parting.of(pool) if parting else (pool, pool)
                    told = mask & (np.arange(records) >= border)
                    rows[g, mask & ~told] = numpy_rng.choice(seen, int((mask & ~told).sum()))
                    rows[g, told] = numpy_rng.choice(kept, int(told.sum()))
                    style_of[g, mask] = 2 * g + (part if own_style else 0)
        styles = draw_style(
            2 * count, rng, plain=self.mix.plain, pen=self.mix.pen, coarse=self.mix.coarse
        )
        images = self.render(rows, styles.row(torch.from_numpy(style_of.reshape(-1))), rng)
        return images, torch.from_numpy(self.content[rows])

    def render(self, rows: Rows, style: Style, rng: torch.Generator) -> Tensor:
        """Draws given glyphs, [G, N] rows with one style a record, as float32 [G, N, 1, 28, 28]."""
        flat = rows.reshape(-1)
        order = np.argsort(flat, kind="stable")  # the corpus is memory-mapped: read it in order
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        ink = torch.from_numpy(self.corpus.ink[flat[order]])[back]
        skeleton = torch.from_numpy(self.corpus.skeleton[flat[order]])[back]
        images = draw(ink, skeleton, style, rng)
        return images.view(*rows.shape, *images.shape[1:])


class Parting:
    """Which rows of a corpus one task keeps for records that are to be unseen: a third of them.

    One parting serves all pools of a task: what is kept of one is kept of the others.

    Args:
        size: rows of the corpus.
        rng: of the task.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.held = rng.random(size) < UNSEEN_SHARE  # bool [size]

    def of(self, pool: Rows) -> tuple[Rows, Rows]:
        """The rows of a pool for records, and those for unseen ones; a lone row is both."""
        seen, unseen = pool[~self.held[pool]], pool[self.held[pool]]
        return (seen if len(seen) else pool), (unseen if len(unseen) else pool)


def draw_public(
    corpus: Corpus,
    count: int,
    rng: torch.Generator,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Public records of great variety: half drawn as the base model sees them, half by task.

    Args:
        corpus: the public corpus; its training split is drawn from.
        count: N.
        rng: CPU generator.
        progress: called with (records done, count).

    Returns:
        float32 [N, 1, 28, 28] in [-1, 1].
    """
    rows = RowSampler(corpus, 0)
    sampler = TaskSampler(corpus, 0, TaskMix())
    parts: list[Tensor] = []
    done = 0
    while done < count:
        size = min(DRAWN_AT_ONCE, count - done)
        parts.append(
            sampler.draw(-(-size // 250), 250, rng).flatten(0, 1)[:size]
            if len(parts) % 2
            else records(corpus, rows.draw(size, rng), rng)
        )
        done += size
        if progress is not None:
            progress(done, count)
    return torch.cat(parts)
