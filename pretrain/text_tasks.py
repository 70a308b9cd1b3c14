"""Meta-tasks of text: small public sets of documents, support and queries apart.

Kinds: a topic (or genre), an author, a faiss k-means cluster, a topic that no base has read,
everything, and mixtures of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.pretrain.text_corpus import TextCorpus

Rows = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int64]
CLUSTER_DIMS = 64
CLUSTER_SIZE = 150  # documents of a cluster, about
UNREAD = ("form/", "source/")  # what only ρ is trained on
TOLD_WORDS = 4096  # that tell clusters apart


@dataclass(frozen=True, kw_only=True)
class TextTaskMix:
    """How often each kind of task is drawn; the figures are weights.

    Attributes:
        topic, author, cluster, unread, everything: weights of the kinds; `unread` are topics whose
            name begins with one of `UNREAD`, where the corpus has any.
        mixture: probability that a task is a mixture.
        most: kinds of a mixture, two to so many, as likely as each other; its shares are uniform.
    """

    topic: float = 0.40
    author: float = 0.25
    cluster: float = 0.30
    unread: float = 0.0
    everything: float = 0.05
    mixture: float = 0.15
    most: int = 2


def told_words(tokens: Tokens) -> Tokens:
    """Tokens for telling clusters: those of a large vocabulary share `TOLD_WORDS` places.

    Counts of each of 49,152 tokens in 65,000 documents would take 13 GB (feature hashing:
    Weinberger et al. 2009, arXiv 0902.2206). A vocabulary that is not larger stays as it is.
    """
    return np.where(tokens < 0, tokens, tokens % TOLD_WORDS)


class TextRowSampler:
    """Documents of one split, half of them uniform over documents and half uniform over topics."""

    def __init__(self, corpus: TextCorpus, split: int) -> None:
        rows = np.nonzero(corpus.split == split)[0]
        self.rows = rows[np.argsort(corpus.topic[rows], kind="stable")]
        self.starts = np.unique(corpus.topic[self.rows], return_index=True)[1]
        self.sizes = np.diff(np.append(self.starts, len(self.rows)))

    def draw(self, count: int, rng: torch.Generator) -> Rows:
        """int64 [count] rows of the corpus."""
        u = torch.rand(3, count, generator=rng, dtype=torch.float64).numpy()
        topic = (u[0] * len(self.starts)).astype(np.int64)
        balanced = self.starts[topic] + (u[1] * self.sizes[topic]).astype(np.int64)
        uniform = (u[1] * len(self.rows)).astype(np.int64)
        return np.asarray(self.rows[np.where(u[2] < 0.5, balanced, uniform)], dtype=np.int64)


def draw_public_texts(corpus: TextCorpus, count: int, *, seed: int) -> list[str]:
    """Public documents, none twice: half drawn over all and half by topics.

    Args:
        corpus: the public corpus; its training split is drawn from.
        count: how many; all where there are fewer.
        seed: of the draw.
    """
    sampler, rng = TextRowSampler(corpus, 0), torch.Generator().manual_seed(seed)
    count = min(count, len(sampler.rows))
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen.update(dict.fromkeys(sampler.draw(count, rng).tolist()))
    return [corpus.documents[row] for row in list(chosen)[:count]]


class TextTaskSampler:
    """Draws tasks of one split.

    Args:
        corpus: the public corpus.
        tokens: int64 [N, L], its documents.
        split: 0 train, 1 validation.
        mix: see `TextTaskMix`.
        min_pool: least number of documents that a task draws from.
    """

    def __init__(
        self,
        corpus: TextCorpus,
        tokens: Tokens,
        split: int,
        mix: TextTaskMix,
        min_pool: int = 24,
    ) -> None:
        self.tokens, self.mix, self.min_pool = tokens, mix, min_pool
        self.rows: Rows = np.nonzero(corpus.split == split)[0].astype(np.int64)
        self.pools = {
            "topic": self._groups(corpus.topic),
            "author": self._groups(corpus.author),
            "cluster": self._clusters(),
            "unread": self._groups(np.where(_unread(corpus), corpus.topic, -1)),
            "everything": [self.rows],
        }

    def _groups(self, key: npt.NDArray[np.int32]) -> list[Rows]:
        named = self.rows[key[self.rows] >= 0]
        order = named[np.argsort(key[named], kind="stable")]
        starts = np.unique(key[order], return_index=True)[1]
        return [part for part in np.split(order, starts[1:]) if len(part) >= self.min_pool]

    def _clusters(self) -> list[Rows]:
        """Clusters of documents by their words: k-means over projected TF-IDF."""
        count = len(self.rows) // CLUSTER_SIZE
        if count < 2:
            return []
        tokens = self.tokens[self.rows]
        vocab = int(self.tokens.max()) + 1
        counts = np.zeros((len(tokens), vocab), dtype=np.float32)
        at, place = np.nonzero(tokens >= 0)
        np.add.at(counts, (at, tokens[at, place]), 1.0)
        idf = np.log(len(tokens) / (1.0 + (counts > 0).sum(0)))
        weighted = np.log1p(counts) * np.maximum(idf, 0.0)
        shape = (vocab, CLUSTER_DIMS)
        projection = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        vectors = (weighted @ projection).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        vectors = np.ascontiguousarray(vectors)
        kmeans = faiss.Kmeans(
            CLUSTER_DIMS, count, niter=10, seed=0, verbose=False, min_points_per_centroid=1
        )
        kmeans.train(vectors)
        label = kmeans.index.search(vectors, 1)[1][:, 0]
        parts = [self.rows[label == c] for c in range(count)]
        return [part for part in parts if len(part) >= self.min_pool]

    def _pool(self, rng: np.random.Generator) -> Rows:
        """The documents that one unmixed task draws from."""
        m = self.mix
        kinds = [kind for kind, pools in self.pools.items() if pools]
        weights = np.array([getattr(m, kind) for kind in kinds])
        pools = self.pools[str(rng.choice(kinds, p=weights / weights.sum()))]
        return pools[int(rng.integers(len(pools)))]

    def draw(
        self, count: int, support: int, queries: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws whole tasks: `draw_rows`, as tokens int64 [G, K, L] and [G, b, L]."""
        asked, answered = self.draw_rows(count, support, queries, rng)
        return torch.from_numpy(self.tokens[asked]), torch.from_numpy(self.tokens[answered])

    def draw_rows(
        self, count: int, support: int, queries: int, rng: torch.Generator
    ) -> tuple[Rows, Rows]:
        """Draws whole tasks, as rows of the corpus.

        Args:
            count: G.
            support: K documents that condition a task; repeated where its pool is smaller.
            queries: b other documents of the same task.
            rng: CPU generator.

        Returns:
            int64 [G, K] and [G, b]; no document of a task is in both.
        """
        numpy_rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        rows = np.empty((count, support + queries), dtype=np.int64)
        for g in range(count):
            mixed = numpy_rng.random() < self.mix.mixture
            count_of = int(numpy_rng.integers(2, self.mix.most + 1)) if mixed else 1
            pools = [self._pool(numpy_rng) for _ in range(count_of)]
            shares = numpy_rng.dirichlet(np.ones(count_of))
            chosen = numpy_rng.choice(count_of, support + queries, p=shares)
            parts = [numpy_rng.permutation(pool)[: max(1, len(pool) // 4)] for pool in pools]
            asked = np.concatenate(parts)
            for i, pool in enumerate(pools):
                mine = np.isin(pool, asked)
                for part, source in ((slice(support), ~mine), (slice(support, None), mine)):
                    wanted = chosen[part] == i
                    own = rows[g, part]
                    own[wanted] = _some(pool[source], int(wanted.sum()), numpy_rng)
        return rows[:, :support], rows[:, support:]


def _unread(corpus: TextCorpus) -> npt.NDArray[np.bool_]:
    """[N], whether a document's topic is one that no base has read."""
    named = np.array([name.startswith(UNREAD) for name in corpus.topics])
    return np.asarray(named[corpus.topic], dtype=np.bool_)


def _some(pool: Rows, count: int, rng: np.random.Generator) -> Rows:
    """`count` rows, each once where there are enough."""
    return rng.choice(pool, count, replace=count > len(pool)) if count else pool[:0]
