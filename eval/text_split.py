"""How a private set of documents is split, and what no split may hold.

A set is split once, by document and with a fixed seed, into a pool that private documents are
drawn from and a reference that perplexity is taken on. What opens as a document of the pool does,
as a mail to many, is in no reference: a bundle reads the first 96 tokens, and would have seen it;
nor is a document of which half stands in one of the pool, as a reply quotes and a template repeats.
What half stands in a public document, with other line breaks or other marks, is in neither part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperdp.errors import UsageError
from hyperdp.eval.near_copies import opening, without_near_copies

SPLIT_SEED = 20251123
REFERENCE_SHARE, REFERENCE_SIZE = 0.15, 300
APART, NOT_NEAR, NOT_PUBLIC = 2, 3, 4  # editions of a split; each keeps what those before do
NEWEST = NOT_PUBLIC


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """One private set of documents.

    Attributes:
        name: how results name it.
        about: one sentence for a reader of a report.
        pool: documents that private ones are drawn from.
        reference: other documents of the same source.
        edition: of the split. Rows of another one are other rows.
    """

    name: str
    about: str
    pool: list[str]
    reference: list[str]
    edition: int = 1

    def documents(self, n: int, *, seed: int) -> list[str]:
        """Draws the private documents of one run; a smaller draw is a part of every larger one.

        Args:
            n: at most the size of the pool.
            seed: of the draw.

        Raises:
            UsageError: more than there are, or none.
        """
        if not 1 <= n <= len(self.pool):
            raise UsageError(
                expected=f"1 ≤ n ≤ {len(self.pool)} documents of {self.name}",
                found=f"n={n}",
                todo="Ask for fewer, or take another private set.",
            )
        order = np.random.default_rng(seed).permutation(len(self.pool))[:n]
        return [self.pool[int(i)] for i in order]


@dataclass(frozen=True, kw_only=True)
class LabelledTextSet(TextSet):
    """A private set whose documents have a class.

    Attributes:
        classes: public names of all classes.
        label_of: document → index into `classes`, of every document of pool and reference.
    """

    classes: Sequence[str]
    label_of: Mapping[str, int]

    def labels(self, documents: Sequence[str]) -> list[int]:
        """Classes of some documents of the set, indices into `classes`."""
        return [self.label_of[text] for text in documents]


def with_labels(data: TextSet, by_class: Mapping[str, Iterable[str]]) -> LabelledTextSet:
    """The labelled view of a set: its own split, less what has two classes or none.

    Args:
        data: the set as it was split without labels.
        by_class: class → its documents.
    """
    classes = sorted(by_class)
    found: dict[str, set[int]] = {}
    for name, documents in by_class.items():
        for text in documents:
            found.setdefault(text.strip(), set()).add(classes.index(name))
    label_of = {text: min(labels) for text, labels in found.items() if len(labels) == 1}
    return LabelledTextSet(
        name=data.name,
        about=data.about,
        edition=data.edition,
        pool=[text for text in data.pool if text in label_of],
        reference=[text for text in data.reference if text in label_of],
        classes=classes,
        label_of=label_of,
    )


def split_documents(
    name: str,
    about: str,
    documents: Iterable[str],
    *,
    edition: int = 1,
    public: Sequence[str] = (),
) -> TextSet:
    """A set of some documents: none empty, none twice, a fixed split.

    Args:
        name: of the set.
        about: it, in a sentence.
        documents: all that there are, in a fixed order.
        edition: `APART` leaves out of the reference what opens as a document of the pool,
            `NOT_NEAR` what is a near copy of one too, and `NOT_PUBLIC` out of both what is a near
            copy of a public one.
        public: the public documents that the set may have copies of; read by `NOT_PUBLIC`.
    """
    once = list(dict.fromkeys(text.strip() for text in documents if text.strip()))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(once))
    held = min(REFERENCE_SIZE, int(len(once) * REFERENCE_SHARE))
    shuffled = [once[int(i)] for i in order]
    pool, reference = shuffled[held:], shuffled[:held]
    if edition >= NOT_PUBLIC:
        pool, reference = (without_near_copies(part, public) for part in (pool, reference))
    if edition >= APART:
        seen = {opening(text) for text in pool}
        reference = [text for text in reference if opening(text) not in seen]
    if edition >= NOT_NEAR:
        reference = without_near_copies(reference, pool)
    return TextSet(name=name, about=about, pool=pool, reference=reference, edition=edition)
