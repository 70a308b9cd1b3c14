"""Meta-tasks of one's own public images: a label, a few labels, a cluster, each in a style.

What fonts are to glyphs, style is here: light, contrast, colour, place and size, the same for all
records of a task, so that tasks differ in more than in what they show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hyperdp.pretrain.image_corpus import ImageCorpus
from hyperdp.pretrain.tasks import Parting
from hyperdp.pretrain.values import build

CLUSTER_SIDE = 8  # pixels that clusters are made of
CLUSTER_SIZE = 120  # images of a cluster, about
CLUSTER_SAMPLE = 24_000
Rows = npt.NDArray[np.int64]
_GREY = 1 / math.sqrt(3)  # the axis that hues turn about


@dataclass(frozen=True, kw_only=True)
class ImageTaskMix:
    """How often each kind of task is drawn; the figures are weights.

    Attributes:
        label, group, cluster, everything: weights of the kinds; a group is two to eight labels.
        mixture: probability that a task is a mixture of two.
        style: probability that it has a style of its own.
    """

    label: float = 0.40
    group: float = 0.25
    cluster: float = 0.30
    everything: float = 0.05
    mixture: float = 0.12
    style: float = 0.5


class ImageTaskSampler:
    """Draws tasks of one split.

    Args:
        corpus: public images.
        split: 0 train, 1 validation.
        mix: see `ImageTaskMix`.
        min_pool: least number of images that a task draws from.
    """

    def __init__(
        self, corpus: ImageCorpus, split: int, mix: ImageTaskMix, min_pool: int = 24
    ) -> None:
        self.corpus, self.mix, self.min_pool = corpus, mix, min_pool
        self.rows: Rows = np.nonzero(corpus.split == split)[0].astype(np.int64)
        self.content_classes = len(corpus.labels) + 1
        self.labels = self._labels()
        self.clusters = self._clusters() if mix.cluster > 0 else []

    def _labels(self) -> list[Rows]:
        named = self.rows[self.corpus.label[self.rows] >= 0]
        order = named[np.argsort(self.corpus.label[named], kind="stable")]
        starts = np.unique(self.corpus.label[order], return_index=True)[1]
        return [part for part in np.split(order, starts[1:]) if len(part) >= self.min_pool]

    def _clusters(self) -> list[Rows]:
        """Clusters by what images look like from afar: k-means over pixels."""
        rng = np.random.default_rng(0)
        size = min(CLUSTER_SAMPLE, len(self.rows))
        rows = np.sort(rng.choice(self.rows, size, replace=False))
        count = len(rows) // CLUSTER_SIZE
        if count < 2:
            return []
        parts = [
            functional.adaptive_avg_pool2d(self.corpus.images(part), CLUSTER_SIDE).flatten(1)
            for part in np.array_split(rows, -(-len(rows) // 1024))
        ]
        pixels = np.ascontiguousarray(torch.cat(parts).numpy())
        kmeans = faiss.Kmeans(
            pixels.shape[1], count, niter=10, seed=0, verbose=False, min_points_per_centroid=1
        )
        kmeans.train(pixels)
        of = kmeans.index.search(pixels, 1)[1][:, 0]
        return [part for c in range(count) if len(part := rows[of == c]) >= self.min_pool]

    def _pool(self, rng: np.random.Generator) -> Rows:
        """The images that one unmixed task draws from."""
        m = self.mix
        kinds = ("label", "group", "cluster", "everything")
        there = (bool(self.labels), len(self.labels) > 2, bool(self.clusters), True)
        weights = np.array([m.label, m.group, m.cluster, m.everything]) * there
        if weights.sum() == 0:
            return self.rows
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        if kind == "label":
            return self.labels[int(rng.integers(len(self.labels)))]
        if kind == "group":
            count = int(rng.integers(2, min(9, len(self.labels))))
            chosen = rng.choice(len(self.labels), count, replace=False)
            return np.concatenate([self.labels[int(i)] for i in chosen])
        if kind == "cluster":
            return self.clusters[int(rng.integers(len(self.clusters)))]
        return self.rows

    def draw(self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0) -> Tensor:
        """The images of `draw_labelled` alone."""
        return self.draw_labelled(count, records, rng, unseen=unseen)[0]

    def draw_labelled(
        self, count: int, records: int, rng: torch.Generator, *, unseen: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draws whole tasks.

        Args:
            count: G.
            records: of each task; none is drawn twice while the task's pool lasts. The two pools
                of a mixture may have images in common.
            rng: CPU generator.
            unseen: how many records, the last ones, are images that none of the others is: a third
                of those that the task has. 0 parts nothing.

        Returns:
            float32 [G, records, C, H, W] in [-1, 1], and their labels, int64 [G, records], the
            last of `content_classes` for none.
        """
        numpy_rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        rows = np.empty((count, records), dtype=np.int64)
        border = records - unseen
        for g in range(count):
            parting = Parting(len(self.corpus), numpy_rng) if unseen else None
            mixed = numpy_rng.random() < self.mix.mixture
            share = numpy_rng.uniform(0.2, 0.8) if mixed else 0.0
            second = numpy_rng.random(records) < share
            for mask in (~second, second):
                if mask.any():
                    pool = self._pool(numpy_rng)
                    seen, kept = parting.of(pool) if parting else (pool, pool)
                    told = mask & (np.arange(records) >= border)
                    rows[g, mask & ~told] = _in_rounds(seen, int((mask & ~told).sum()), numpy_rng)
                    rows[g, told] = _in_rounds(kept, int(told.sum()), numpy_rng)
        images = self.corpus.images(rows.reshape(-1)).view(count, records, *self.corpus.shape)
        for g in range(count):
            if numpy_rng.random() < self.mix.style:
                images[g] = in_style(images[g], numpy_rng)
        label = self.corpus.label[rows].astype(np.int64)
        return images, torch.from_numpy(np.where(label < 0, self.content_classes - 1, label))


def _in_rounds(pool: Rows, size: int, rng: np.random.Generator) -> Rows:
    """Rows of a pool, none twice while it lasts."""
    rounds = [rng.permutation(pool) for _ in range(-(-size // len(pool)))]
    return np.concatenate([*rounds, pool[:0]])[:size]


def in_style(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images in one style drawn at random: gamma, contrast, light, hue, negative, size and tilt.

    Args:
        images: float32 [N, C, H, W] in [-1, 1].
        rng: of the style.

    Returns:
        The same shape and range.
    """
    gamma, contrast = math.exp(rng.uniform(-0.5, 0.5)), rng.uniform(0.6, 1.2)
    light, negative = rng.uniform(-0.15, 0.15), rng.random() < 0.1
    hue, saturation = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 1.3)
    zoom, tilt = math.exp(rng.uniform(-0.25, 0.25)), rng.uniform(-0.2, 0.2)
    x = ((images + 1) / 2).clamp(0, 1) ** gamma
    x = (x - 0.5) * contrast + 0.5 + light
    if images.shape[1] == 3:
        x = torch.einsum("ij,njhw->nihw", _turn(hue, saturation).to(x.dtype), x)
    x = 1 - x if negative else x
    cos, sin = math.cos(tilt) / zoom, math.sin(tilt) / zoom
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(x), 2, 3)
    where = functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, where, padding_mode="border", align_corners=False)
    return (2 * x - 1).clamp(-1, 1)


def _turn(hue: float, saturation: float) -> Tensor:
    """The turn of colours about grey (Rodrigues' formula), [3, 3]; greys stay as they are."""
    cross = _GREY * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    grey = torch.full((3, 3), 1 / 3)
    turned = math.cos(hue) * (torch.eye(3) - grey) + math.sin(hue) * cross
    return grey + saturation * turned


class ImageWorld:
    """Public images of one's own; see `hyperdp.pretrain.world.World`.

    Args:
        corpus: of them.
    """

    def __init__(self, corpus: ImageCorpus) -> None:
        self.corpus = corpus
        self._pools: dict[int, tuple[Rows, list[Rows]]] = {}

    @property
    def digest(self) -> str:
        """See `World`."""
        return self.corpus.digest

    def records(self, count: int, split: int, rng: torch.Generator) -> Tensor:
        """Half of them uniform over images, half uniform over labels."""
        if split not in self._pools:
            sampler = ImageTaskSampler(self.corpus, split, ImageTaskMix(cluster=0.0), 1)
            self._pools[split] = (sampler.rows, sampler.labels or [sampler.rows])
        rows, labels = self._pools[split]
        u = torch.rand(3, count, generator=rng, dtype=torch.float64).numpy()
        of = (u[0] * len(labels)).astype(np.int64)
        balanced = np.array(
            [labels[g][int(v * len(labels[g]))] for g, v in zip(of, u[1], strict=True)],
            dtype=np.int64,
        )
        uniform = rows[(u[1] * len(rows)).astype(np.int64)]
        return self.corpus.images(np.where(u[2] < 0.5, balanced, uniform))

    def mix(self, values: Mapping[str, float]) -> ImageTaskMix:
        """See `World`."""
        return build(ImageTaskMix, values)

    def tasks(self, split: int, values: Mapping[str, float]) -> ImageTaskSampler:
        """See `World`."""
        return ImageTaskSampler(self.corpus, split, self.mix(values))
