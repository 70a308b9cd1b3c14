"""The private sets of documents that results are reported on, and never tuned on; and public ones.

How a set is split, and what is left out, is `hyperdp.eval.text_split`'s. Public corpora were
cleared of exact copies of private documents; the hard ham of SpamAssassin is reserved and never
opened. What a base model that was trained elsewhere has seen of them is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.mails import mail_body
from hyperdp.eval.text_split import (
    NEWEST,
    NOT_PUBLIC,
    LabelledTextSet,
    TextSet,
    split_documents,
    with_labels,
)
from hyperdp.packages import BROWN, FORTUNES, MAILS, npm_package
from hyperdp.passages import (
    EXCLUDED_TOPICS,
    PRIVATE_GENRES,
    PRIVATE_TOPICS,
    VALIDATION_TOPICS,
    brown_passages,
    fortunes_of,
)

MAIL_GROUPS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "spam-1": "spam", "spam-2": "spam"}
MAIL = "spam-assassin"


def load_text_set(name: str, edition: int = NEWEST) -> TextSet:
    """Loads a set by name; the same documents on every call.

    Args:
        name: one of `TEXT_SETS`, or the JSONL of a public task (`hyperdp pretrain tasks --texts`).
        edition: of a private set's split; public ones have only one.

    Raises:
        UsageError: no such set.
        DataError: the package that it comes from is not installed, or the file is not there.
    """
    if name.endswith(".jsonl"):
        return _public_task(Path(name))
    _check_name(name, TEXT_SETS, "a private set")
    return TEXT_SETS[name](edition)


def edition_of(name: str, editions: Mapping[str, int]) -> int:
    """The edition of a set's split in a recipe, without loading the set.

    Args:
        name: as for `load_text_set`.
        editions: of the recipe, the sets of which it has older rows.
    """
    private = name == MAIL or name.startswith(("fortunes-", "brown-"))
    if name.endswith(".jsonl") or not private:  # a public task, whatever its path begins with
        return 1
    return editions.get(name, NEWEST)


def load_labelled_set(name: str, edition: int = NEWEST) -> LabelledTextSet:
    """The labelled view of a set that has one: the split of `load_text_set`, with labels.

    Args:
        name: one of `LABELLED_SETS`.
        edition: of the split.

    Raises:
        UsageError: no such set.
        DataError: the package that it comes from is not installed.
    """
    _check_name(name, LABELLED_SETS, "a private set with labels")
    return LABELLED_SETS[name](edition)


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


def _bodies(edition: int) -> dict[str, list[str]]:
    """Group → the bodies of its mails."""
    data = _need(npm_package(MAILS) / "data")
    return {
        group: [
            mail_body(
                json.loads(path.read_text(encoding="utf-8"))["text"], escaped=edition < NOT_PUBLIC
            )
            for path in sorted((data / group).glob("*.json"))
        ]
        for group in MAIL_GROUPS
    }


def _mails(edition: int) -> TextSet:
    return _split_mails(_bodies(edition), edition)


def _split_mails(bodies: Mapping[str, list[str]], edition: int) -> TextSet:
    about = "Mail of 2002, wanted and not (SpamAssassin's public corpus): bodies without headers."
    return split_documents(MAIL, about, chain.from_iterable(bodies.values()), edition=edition)


def _labelled_mails(edition: int) -> LabelledTextSet:
    bodies = _bodies(edition)
    by_class: dict[str, list[str]] = {}
    for group, name in MAIL_GROUPS.items():
        by_class.setdefault(name, []).extend(bodies[group])
    return with_labels(_split_mails(bodies, edition), by_class)


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


def _topic(name: str, edition: int) -> TextSet:
    about = f"{_subject(name)}, a topic held out of the public texts."
    return split_documents(
        f"fortunes-{name}", about, _sayings(name), edition=edition,
        public=_public_sayings() if edition >= NOT_PUBLIC else [],
    )  # fmt: skip


def _public_topic(name: str) -> TextSet:
    about = f"{_subject(name)}: public, held out of training, and what settings are chosen on."
    return split_documents(f"public-{name}", about, _sayings(name))


def _subject(name: str) -> str:
    return f"Sayings about {name.replace('-', ' and ')}"


def _sayings(name: str) -> list[str]:
    return fortunes_of(_need(FORTUNES / name).read_text(encoding="utf-8", errors="replace"))


def _public_sayings() -> list[str]:
    """All that the public texts may have of this package."""
    apart = {*PRIVATE_TOPICS, *EXCLUDED_TOPICS}
    files = sorted(path for path in _need(FORTUNES).iterdir() if path.is_file())
    names = [path.name for path in files if not path.suffix]
    return [text for name in names if name not in apart for text in _sayings(name)]


def _genre(letter: str, edition: int) -> TextSet:
    folder = _need(npm_package(BROWN))
    files = sorted(folder.glob(f"c{letter}[0-9][0-9]"))
    found = [p for file in files for p in brown_passages(file.read_text(encoding="latin-1"))]
    about = f"Passages of genre {letter.upper()} of the Brown corpus, held out of the public texts."
    return split_documents(f"brown-{letter}", about, found, edition=edition)


TEXT_SETS: dict[str, Callable[[int], TextSet]] = {
    MAIL: _mails,
    **{f"fortunes-{name}": partial(_topic, name) for name in PRIVATE_TOPICS},
    **{f"public-{n}": lambda _, name=n: _public_topic(name) for n in VALIDATION_TOPICS},  # type: ignore[misc]
    **{f"brown-{name}": partial(_genre, name) for name in PRIVATE_GENRES},
}
LABELLED_SETS: dict[str, Callable[[int], LabelledTextSet]] = {MAIL: _labelled_mails}
