"""Public texts far from literature, for ρ alone: the base model is not trained on them.

Private documents will be unlike what the base model was trained on, so some of the tasks that ρ
learns on must be: descriptions of installed Python packages (markup, addresses, options), Debian
changelogs (names, dates, lists, addresses of mail), manuals as text and as HTML, the documentation
of Python that ships for tests, and all of it in the styles of `text_styles`. None is committed;
what is installed differs a little between machines.
"""

from __future__ import annotations

import gzip
import importlib.metadata
from collections import defaultdict
from pathlib import Path

from hyperdp.errors import UsageError
from hyperdp.packages import cache_root
from hyperdp.passages import PASSAGE_WORDS
from hyperdp.pretrain.text_corpus import (
    SAMPLE,
    Document,
    TextCorpus,
    gather,
    read_documents,
    to_corpus,
    write_documents,
)
from hyperdp.pretrain.text_styles import in_styles

REGISTERS_VERSION = 2
DOCS = Path("/usr/share/doc")
# Of mail and free software, mostly; `make texts` installs them.
MANUALS = (
    "alpine-doc", "bogofilter-common", "debian-faq", "exim4-doc-html", "fetchmail", "git-doc",
    "jargon-text", "mutt", "postfix-doc",
)  # fmt: skip
LEAST_PASSAGES, MOST_PASSAGES = 24, 120
MOST_CHANGELOGS, MOST_OF_A_MANUAL = 60, 10  # of some packages a thousand pages are alike
VALIDATION_EVERY = 6  # whole topics


def lines_as_passages(text: str) -> list[str]:
    """Whole lines, `PASSAGE_WORDS` words or a few more; line ends stay."""
    passages: list[str] = []
    lines: list[str] = []
    words = 0
    for line in text.splitlines():
        lines.append(line.rstrip())
        words += len(line.split())
        if words >= PASSAGE_WORDS:
            passages.append("\n".join(lines).strip())
            lines, words = [], 0
    return passages


def descriptions() -> dict[str, str]:
    """Name → long description of every installed Python package that has one."""
    found = {}
    for package in importlib.metadata.distributions():
        text = package.metadata.json.get("description")
        if isinstance(text, str) and text.strip():
            found[f"package/{package.name.lower()}"] = text
    return found


def changelogs(folder: Path = DOCS) -> dict[str, str]:
    """Name → changelog of installed Debian packages, the first `MOST_CHANGELOGS` that are long."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*/changelog.Debian.gz")):
        if len(found) == MOST_CHANGELOGS:
            break
        text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
        if len(lines_as_passages(text)) >= LEAST_PASSAGES and text not in found.values():
            found[f"changelog/{path.parent.name}"] = text
    return found


def manuals(folder: Path = DOCS, packages: tuple[str, ...] = MANUALS) -> dict[str, str]:
    """Name → text of long files of the packages' documentation; short ones joined by kind.

    Raises:
        UsageError: a package has none.
    """
    found: dict[str, str] = {}
    for package in packages:
        if not (folder / package).is_dir():
            raise UsageError(
                expected=f"documentation in {folder / package}",
                found="no such folder",
                todo="Run `make texts`; where Debian leaves documentation out, allow it first.",
            )
        long: dict[str, str] = {}
        short: dict[str, list[str]] = defaultdict(list)
        for path in sorted((folder / package).rglob("*")):
            kind = "html" if ".htm" in path.name else "text"
            if not path.is_file() or "changelog" in path.name or path.is_symlink():
                continue
            if kind == "text" and not {".txt", ".gz"} & set(path.suffixes):
                continue
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(
                "utf-8", errors="replace"
            )
            if len(lines_as_passages(text)) >= LEAST_PASSAGES:
                name = path.relative_to(folder).as_posix().replace("/", ".")
                long[f"manual/{name}"] = text
            else:
                short[kind].append(text)
        every = max(1, len(long) // MOST_OF_A_MANUAL)
        found.update(list(long.items())[::every][:MOST_OF_A_MANUAL])
        for kind, texts in short.items():
            found[f"manual/{package}.{kind}"] = "\n".join(texts)
    return found


def gather_registers(texts: dict[str, str]) -> list[Document]:
    """Passages of long texts; every sixth text is for validation.

    Args:
        texts: topic → text.

    Returns:
        At most `MOST_PASSAGES` of a topic, none twice; topics with few are left out.
    """
    documents: list[Document] = []
    seen: set[str] = set()
    kept = 0
    for topic in sorted(texts):
        fresh = [p for p in dict.fromkeys(lines_as_passages(texts[topic])) if p not in seen]
        if len(fresh) < LEAST_PASSAGES:
            continue
        held_out = kept % VALIDATION_EVERY == 0
        kept += 1
        seen.update(fresh)
        documents += [
            Document(text=p, topic=topic, held_out=held_out) for p in fresh[:MOST_PASSAGES]
        ]
    return documents


def open_wide_corpus() -> TextCorpus:
    """The public corpus and these registers, from the cache; gathered first where it is empty."""
    return to_corpus(wide_documents())


def wide_documents() -> list[Document]:
    """The documents of `open_wide_corpus`."""
    path = cache_root() / f"text-wide-v{REGISTERS_VERSION}" / "documents.jsonl"
    if not path.is_file():
        registers = gather_registers({**descriptions(), **changelogs(), **manuals()})
        plain = [*gather(), *registers, *read_documents(SAMPLE)]
        write_documents([*plain, *in_styles(plain)], path)
    return read_documents(path)
