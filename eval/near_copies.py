"""Documents that are near copies of others: what is trained on them has seen the others too."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

OPENING = 32  # words that two documents must differ in for one to be held out of the other's set
READ = 64  # words of a document, about what a bundle reads
RUN, SHARED = 5, 0.5  # words in a row, and the share of such runs that makes a near copy


def opening(text: str) -> tuple[str, ...]:
    """The first words of a document, without capitals and marks."""
    return _first_words(text, OPENING)


def _first_words(text: str, count: int) -> tuple[str, ...]:
    return tuple(word[0] for word in islice(re.finditer(r"\w+", text.casefold()), count))


def _runs(text: str) -> set[tuple[str, ...]]:
    """Every run of `RUN` words of what is read of a document."""
    words = _first_words(text, READ)
    return {words[i : i + RUN] for i in range(len(words) - RUN + 1)}


def without_near_copies(documents: Sequence[str], others: Iterable[str]) -> list[str]:
    """The documents of which no other one has half, by runs of words.

    Args:
        documents: to choose from; one of fewer than `RUN` words stays.
        others: that they are held against, one by one.
    """
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, text in enumerate(others):
        for run in _runs(text):
            holders[run].append(place)

    def most(runs: set[tuple[str, ...]]) -> int:
        found = Counter(place for run in runs for place in holders.get(run, ()))
        return max(found.values(), default=0)

    return [
        text for text in documents if not (runs := _runs(text)) or most(runs) < SHARED * len(runs)
    ]
