"""The private sets of documents that results are reported on, and never tuned on; and public ones.

A set is split once, by document and with a fixed seed, into a pool that private documents are
drawn from and a reference that perplexity is taken on. What opens as a document of the pool does,
as a mail to many, is in no reference: a bundle reads the first 96 tokens, and would have seen it;
nor is a mail of which half stands in one of the pool, as a reply quotes and a template repeats.
No public corpus has a copy of any of them, but with other line breaks it has some fortunes
(docs/benchmarks.md says how many); the hard ham of SpamAssassin is reserved and never opened. What
a base model that was trained elsewhere has seen of them is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.mails import mail_body
from hyperdp.eval.near_copies import opening, without_near_copies
from hyperdp.packages import BROWN, FORTUNES, MAILS, npm_package
from hyperdp.passages import (
    PRIVATE_GENRES,
    PRIVATE_TOPICS,
    VALIDATION_TOPICS,
    brown_passages,
    fortunes_of,
)

SPLIT_SEED = 20251123
MAIL_GROUPS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "spam-1": "spam", "spam-2": "spam"}
REFERENCE_SHARE, REFERENCE_SIZE = 0.15, 300
APART, NOT_NEAR = 2, 3  # editions of a split


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
    name: str, about: str, documents: Iterable[str], *, edition: int = 1
) -> TextSet:
    """A set of some documents: none empty, none twice, a fixed split.

    Args:
        name: of the set.
        about: it, in a sentence.
        documents: all that there are, in a fixed order.
        edition: `APART` leaves out of the reference what opens as a document of the pool,
            `NOT_NEAR` what is a near copy of one too.
    """
    once = list(dict.fromkeys(text.strip() for text in documents if text.strip()))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(once))
    held = min(REFERENCE_SIZE, int(len(once) * REFERENCE_SHARE))
    shuffled = [once[int(i)] for i in order]
    pool, reference = shuffled[held:], shuffled[:held]
    if edition >= APART:
        seen = {opening(text) for text in pool}
        reference = [text for text in reference if opening(text) not in seen]
    if edition >= NOT_NEAR:
        reference = without_near_copies(reference, pool)
    return TextSet(name=name, about=about, pool=pool, reference=reference, edition=edition)


def load_text_set(name: str) -> TextSet:
    """Loads a set by name; the same documents on every call.

    Args:
        name: one of `TEXT_SETS`, or the JSONL of a public task (`hyperdp pretrain tasks --texts`).

    Raises:
        UsageError: no such set.
        DataError: the package that it comes from is not installed, or the file is not there.
    """
    if name.endswith(".jsonl"):
        return _public_task(Path(name))
    _check_name(name, TEXT_SETS, "a private set")
    return TEXT_SETS[name]()


def edition_of(name: str) -> int:
    """The edition of a set's split, without loading it.

    Args:
        name: as for `load_text_set`.
    """
    if name.endswith(".jsonl"):  # a public task, wherever it lies
        return 1
    if name.startswith("spam-assassin"):
        return NOT_NEAR
    return APART if name.startswith(("fortunes-", "brown-")) else 1


def load_labelled_set(name: str) -> LabelledTextSet:
    """The labelled view of a set that has one: the split of `load_text_set`, with labels.

    Args:
        name: one of `LABELLED_SETS`.

    Raises:
        UsageError: no such set.
        DataError: the package that it comes from is not installed.
    """
    _check_name(name, LABELLED_SETS, "a private set with labels")
    return LABELLED_SETS[name]()


def _check_name(name: str, known: Iterable[str], kind: str) -> None:
    if name not in known:
        raise UsageError(
            expected=f"{kind} out of {', '.join(known)}",
            found=repr(name),
            todo="Choose one of these.",
        )


def _need(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            expected=f"private texts in {path}", found="nothing there", todo="Run `make texts`."
        )
    return path


def _bodies() -> dict[str, list[str]]:
    """Group → the bodies of its mails."""
    data = _need(npm_package(MAILS) / "data")
    return {
        group: [
            mail_body(json.loads(path.read_text(encoding="utf-8"))["text"])
            for path in sorted((data / group).glob("*.json"))
        ]
        for group in MAIL_GROUPS
    }


def _mails() -> TextSet:
    return _split_mails(_bodies(), edition=NOT_NEAR)


def _split_mails(bodies: Mapping[str, list[str]], *, edition: int) -> TextSet:
    about = "Mail of 2002, wanted and not (SpamAssassin's public corpus): bodies without headers."
    return split_documents(
        "spam-assassin", about, chain.from_iterable(bodies.values()), edition=edition
    )


def _labelled_mails() -> LabelledTextSet:
    bodies = _bodies()
    by_class: dict[str, list[str]] = {}
    for group, name in MAIL_GROUPS.items():
        by_class.setdefault(name, []).extend(bodies[group])
    # The rows of `text-labels` are of the first edition still, see docs/benchmarks.md.
    return with_labels(_split_mails(bodies, edition=1), by_class)


def _public_task(path: Path) -> TextSet:
    if not path.is_file():
        raise DataError(
            expected=f"documents of a public task in {path}",
            found="no file",
            todo="Make it with `hyperdp pretrain tasks --texts -o FOLDER`.",
        )
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                found.append(str(json.loads(line)["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    expected=f'lines such as {{"text": "…"}} in {path}',
                    found=f"{type(error).__name__} in line {number}",
                    todo="Mend the file, or draw it anew with `hyperdp pretrain tasks --texts`.",
                ) from error
    about = "A public task, held out of training, and what settings are chosen on."
    task = split_documents(str(path), about, found)
    if not task.pool or not task.reference:
        raise DataError(
            expected=f"documents enough for a pool and a reference in {path}",
            found=f"{len(task.pool)} and {len(task.reference)}",
            todo="Draw more: `hyperdp pretrain tasks --texts --records`.",
        )
    return task


def _topic(name: str, *, public: bool = False) -> TextSet:
    text = _need(FORTUNES / name).read_text(encoding="utf-8", errors="replace")
    subject = f"Sayings about {name.replace('-', ' and ')}"
    about = f"{subject}, a topic held out of the public texts."
    if public:
        about = f"{subject}: public, held out of training, and what settings are chosen on."
    whole = f"{'public' if public else 'fortunes'}-{name}"
    return split_documents(whole, about, fortunes_of(text), edition=1 if public else APART)


def _genre(letter: str) -> TextSet:
    folder = _need(npm_package(BROWN))
    files = sorted(folder.glob(f"c{letter}[0-9][0-9]"))
    found = [p for file in files for p in brown_passages(file.read_text(encoding="latin-1"))]
    about = f"Passages of genre {letter.upper()} of the Brown corpus, held out of the public texts."
    return split_documents(f"brown-{letter}", about, found, edition=APART)


TEXT_SETS: dict[str, Callable[[], TextSet]] = {
    "spam-assassin": _mails,
    **{f"fortunes-{name}": lambda name=name: _topic(name) for name in PRIVATE_TOPICS},  # type: ignore[misc]
    **{f"public-{name}": partial(_topic, name, public=True) for name in VALIDATION_TOPICS},
    **{f"brown-{name}": lambda name=name: _genre(name) for name in PRIVATE_GENRES},  # type: ignore[misc]
}
LABELLED_SETS: dict[str, Callable[[], LabelledTextSet]] = {"spam-assassin": _labelled_mails}
