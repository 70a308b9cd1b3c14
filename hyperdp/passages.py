"""The public texts of the language-model side: which are kept private, and how files are cut.

Texts in, documents out; nothing here opens a file.
"""

from __future__ import annotations

import re

# Held out as private sets: never in a public corpus.
PRIVATE_TOPICS = ("science", "law", "songs-poems")  # of the package `fortunes`
PRIVATE_GENRES = ("j", "p")  # of the Brown corpus: learned, romance
# Public, but held out of training: what is tuned is tuned on these.
VALIDATION_TOPICS = ("startrek", "work", "linux")
VALIDATION_GENRES = ("c", "l")  # reviews, mystery
# Slurs, drawings and a joke that is no text.
EXCLUDED_TOPICS = ("ethnic", "men-women", "ascii-art", "translate-me")
PASSAGE_WORDS = 45
_SIGNED = re.compile(r"--\s*([A-Z][^\n,(\"]{2,40}?)\s*(?:[,(\"][^\n]*)?$")


def fortunes_of(text: str) -> list[str]:
    """The documents of a `fortune` file: entries between lines of `%`."""
    entries = (entry.strip("\n") for entry in re.split(r"^%\n", text + "\n", flags=re.MULTILINE))
    return [entry.expandtabs() for entry in entries if entry.strip()]


def signature(document: str) -> str:
    """Who a fortune is signed by (`-- Mark Twain, "…"`), or ""."""
    found = _SIGNED.search(document.rstrip())
    return found[1].strip() if found else ""


def brown_passages(text: str) -> list[str]:
    """The documents of a tagged Brown file: whole sentences, `PASSAGE_WORDS` words or a few more.

    Args:
        text: words as `word/tag`, a sentence a line.

    Returns:
        Passages with plain quotes and spacing; a shorter rest is joined to the last one.
    """
    passages: list[str] = []
    words: list[str] = []
    for line in text.splitlines():
        words += [word.rsplit("/", 1)[0] for word in line.split()]
        if len(words) >= PASSAGE_WORDS:
            passages.append(_written(words))
            words = []
    if words:
        rest = _written(words)
        passages = [*passages[:-1], f"{passages[-1]} {rest}"] if passages else [rest]
    return passages


def _written(words: list[str]) -> str:
    text = " ".join(words)
    text = re.sub(r"`` ?| ?''", '"', text)
    text = re.sub(r" ([,.;:?!)])", r"\1", text)
    return text.replace("( ", "(")
