"""The private sets of documents that results are reported on, and never tuned on; and public ones.

A set is split once, by document and with a fixed seed, into a pool that private documents are
drawn from and a reference that perplexity is taken on. No public corpus holds any of them; the hard
ham of SpamAssassin is reserved and never opened. What a base model that was trained elsewhere has
seen of them is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.mails import mail_body
from hyperdp.packages import BROWN, FORTUNES, MAILS, npm_package
from hyperdp.passages import (
    PRIVATE_GENRES,
    PRIVATE_TOPICS,
    VALIDATION_TOPICS,
    brown_passages,
    fortunes_of,
)

SPLIT_SEED = 20251123
MAIL_GROUPS = ("easy-ham-1", "easy-ham-2", "spam-1", "spam-2")
REFERENCE_SHARE, REFERENCE_SIZE = 0.15, 300


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """One private set of documents.

    Attributes:
        name: how results name it.
        about: one sentence for a reader of a report.
        pool: documents that private ones are drawn from.
        reference: other documents of the same source.
    """

    name: str
    about: str
    pool: list[str]
    reference: list[str]

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


def split_documents(name: str, about: str, documents: Iterable[str]) -> TextSet:
    """A set of some documents: none empty, none twice, a fixed split.

    Args:
        name: of the set.
        about: it, in a sentence.
        documents: all that there are, in a fixed order.
    """
    once = list(dict.fromkeys(text.strip() for text in documents if text.strip()))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(once))
    held = min(REFERENCE_SIZE, int(len(once) * REFERENCE_SHARE))
    shuffled = [once[int(i)] for i in order]
    return TextSet(name=name, about=about, pool=shuffled[held:], reference=shuffled[:held])


def load_text_set(name: str) -> TextSet:
    """Loads a set by name; the same documents on every call.

    Args:
        name: one of `TEXT_SETS`.

    Raises:
        UsageError: no such set.
        DataError: the package that it comes from is not installed.
    """
    if name not in TEXT_SETS:
        raise UsageError(
            expected=f"a private set out of {', '.join(TEXT_SETS)}",
            found=repr(name),
            todo="Choose one of these.",
        )
    return TEXT_SETS[name]()


def _need(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            expected=f"private texts in {path}", found="nothing there", todo="Run `make texts`."
        )
    return path


def _mails() -> TextSet:
    data = _need(npm_package(MAILS) / "data")
    found = []
    for group in MAIL_GROUPS:
        for path in sorted((data / group).glob("*.json")):
            found.append(mail_body(json.loads(path.read_text(encoding="utf-8"))["text"]))
    about = "Mail of 2002, wanted and not (SpamAssassin's public corpus): bodies without headers."
    return split_documents("spam-assassin", about, found)


def _topic(name: str, *, public: bool = False) -> TextSet:
    text = _need(FORTUNES / name).read_text(encoding="utf-8", errors="replace")
    subject = f"Sayings about {name.replace('-', ' and ')}"
    about = f"{subject}, a topic held out of the public texts."
    if public:
        about = f"{subject}: public, held out of training, and what settings are chosen on."
    return split_documents(f"{'public' if public else 'fortunes'}-{name}", about, fortunes_of(text))


def _genre(letter: str) -> TextSet:
    folder = _need(npm_package(BROWN))
    files = sorted(folder.glob(f"c{letter}[0-9][0-9]"))
    found = [p for file in files for p in brown_passages(file.read_text(encoding="latin-1"))]
    about = f"Passages of genre {letter.upper()} of the Brown corpus, held out of the public texts."
    return split_documents(f"brown-{letter}", about, found)


TEXT_SETS: dict[str, Callable[[], TextSet]] = {
    "spam-assassin": _mails,
    **{f"fortunes-{name}": lambda name=name: _topic(name) for name in PRIVATE_TOPICS},  # type: ignore[misc]
    **{f"public-{name}": partial(_topic, name, public=True) for name in VALIDATION_TOPICS},
    **{f"brown-{name}": lambda name=name: _genre(name) for name in PRIVATE_GENRES},  # type: ignore[misc]
}
