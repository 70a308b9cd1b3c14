"""Forms that the base model has never seen: headings, quotation marks, habits and footers made up.

What a base knows already, an adapter cannot add. Private documents come in forms of their own, and
most of what LoRA learns of them is that form; so ρ needs tasks whose form is new to the base. Each
form here is drawn at random once, and public passages are written in it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np

from hyperdp.pretrain.text_corpus import Document, TextCorpus, to_corpus
from hyperdp.pretrain.text_registers import VALIDATION_EVERY, wide_documents
from hyperdp.pretrain.text_sources import gather_sources
from hyperdp.pretrain.text_styles import Made, Rng

SEED, TASK_SEED = 1, 1000  # of the forms in training, and of those that settings are chosen on
_PLAIN = ("fortunes/", "brown/")
COUNT, EACH = 300, 96  # forms, and documents of each
MORE, FEWER = 480, 60  # the same of `open_unread_corpus`
_KINDS = ("date", "url", "name", "email", "company", "phone_number", "catch_phrase", "hex_color")
_JOINS = (": ", " = ", " - ", ":: ", " | ", ":", " ")
_PREFIXES = ("> ", ">> ", "| ", ": ", "% ", "    ", "# ", "* ", "- ", "; ", "// ", "} ")
_ENDS = ("", "", "", "", " \\", ";", "<br>", " --", "  ", ".")
_RULES = "-=_*~#+."
_VERBS = ("wrote", "said", "writes", "says", "asked", "reported", "posted", "scribbled")
_CASES = (str, str, str, str, str.lower, str.upper, str.title)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write; all documents of a task share it.

    Attributes:
        keys, kinds, join: of the heading's lines, and what is filled in.
        heading, quoted, footed: how often a document has each part.
        said: what stands above a quotation, with {date} and {name}. prefix: before its lines.
        width: of a line. end: after it. case: of the words.
        instead: words that this form has for others.
        footer: its lines, the same in every document.
        words: fewest and most of the body.
    """

    keys: tuple[str, ...]
    kinds: tuple[str, ...]
    join: str
    heading: float
    quoted: float
    footed: float
    said: str
    prefix: str
    width: int
    end: str
    case: int
    instead: dict[str, str]
    footer: tuple[str, ...]
    words: tuple[int, int]

    def write(self, passages: list[str], made: Made, rng: Rng) -> str:
        """A document in this form.

        Args:
            passages: two public ones.
            made: what is filled in.
            rng: of this document.
        """
        lines: list[str] = []
        if rng.random() < self.heading:
            pairs = zip(self.keys, self.kinds, strict=True)
            lines += [key + self.join + made.one(kind, rng) for key, kind in pairs] + [""]
        if rng.random() < self.quoted:
            slots = {"date": made.one("date", rng), "name": made.one("name", rng)}
            lines.append(self.said.format(**slots))
            lines += [self.prefix + line for line in self._lines(passages[0], rng)] + [""]
        lines += [line + self.end for line in self._lines(passages[1], rng)]
        if rng.random() < self.footed:
            lines += self.footer
        return "\n".join(lines)

    def _lines(self, passage: str, rng: Rng) -> list[str]:
        words = passage.split()
        count = int(rng.integers(self.words[0], self.words[1] + 1))
        start = int(rng.integers(max(1, len(words) - count)))
        chosen = [self.instead.get(w.lower(), w) for w in words[start : start + count]]
        return textwrap.wrap(_CASES[self.case](" ".join(chosen)), self.width) or [""]


def draw_form(made: Made, frequent: list[str], rng: Rng) -> Form:
    """A form at random.

    Args:
        made: what its keys and its footer are made of.
        frequent: words that it may have others for.
        rng: of all of it.
    """

    def one(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    def word() -> str:
        return made.one("catch_phrase", rng).split()[0].strip(",.")

    count = int(rng.integers(1, 5))
    case = (str.title, str.upper, str.lower)[int(rng.integers(3))]
    rule = one(tuple(_RULES)) * int(rng.integers(2, 60))
    others = rng.permutation(len(frequent))
    few = int(rng.integers(5, 40)) if rng.random() < 0.3 else 0
    fewest = int(rng.integers(6, 30))
    return Form(
        keys=tuple(case(word()) for _ in range(count)),
        kinds=tuple(one(_KINDS) for _ in range(count)),
        join=one(_JOINS),
        heading=float(rng.choice([0.0, 0.5, 1.0])),
        quoted=float(rng.choice([0.0, 0.5, 0.9])),
        footed=float(rng.choice([0.0, 0.4, 0.9])),
        said=one(("{date} {name} ", "{name} ({date}) ", "{name} "))
        + one(_VERBS)
        + one((":", " :")),
        prefix=one(_PREFIXES),
        width=int(rng.integers(24, 80)),
        end=one(_ENDS),
        case=int(rng.integers(len(_CASES))),
        instead={frequent[i]: frequent[int(others[i])] for i in range(few)},
        footer=(rule, *(made.one(one(_KINDS), rng) for _ in range(int(rng.integers(1, 4))))),
        words=(fewest, fewest + int(rng.integers(5, 40))),
    )


def in_forms(
    documents: list[Document], *, count: int = COUNT, each: int = EACH, seed: int = SEED
) -> list[Document]:
    """Public passages in made-up forms, each form a topic; every sixth is for validation.

    Args:
        documents: public; those in validation are left for the forms in validation.
        count: forms.
        each: documents of a form.
        seed: of what is drawn and made up.
    """
    rng, made = np.random.default_rng(seed), Made(seed)
    passages = {
        held: [" ".join(one.text.split()) for one in documents if one.held_out == held]
        for held in (False, True)
    }
    counts: dict[str, int] = {}
    for text in passages[False][:5000]:
        for word in text.lower().split():
            counts[word] = counts.get(word, 0) + 1
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:60]
    found = []
    for i in range(count):
        form, held_out = draw_form(made, frequent, rng), i % VALIDATION_EVERY == 0
        # A form of one topic would be learned with that topic: each draws on passages of a few.
        start = int(rng.integers(len(passages[held_out])))
        near = [passages[held_out][(start + j) % len(passages[held_out])] for j in range(400)]
        for _ in range(each):
            chosen = [near[int(j)] for j in rng.integers(len(near), size=2)]
            found.append(
                Document(
                    text=form.write(chosen, made, rng), topic=f"form/{i:03d}", held_out=held_out
                )
            )
    return found


def open_formed_corpus() -> TextCorpus:
    """The wide corpus and its plain passages in these forms."""
    return to_corpus(_formed(COUNT, EACH))


def open_unread_corpus() -> TextCorpus:
    """The wide corpus, more of these forms, and files of packages: much that no base has read."""
    return to_corpus([*_formed(MORE, FEWER), *gather_sources()])


def unseen_forms(count: int, each: int, *, forms: int = 1, seed: int = 0) -> dict[str, list[str]]:
    """Tasks to choose settings on: forms that no bundle was trained with, of held-out passages.

    Args:
        count: tasks.
        each: documents of each.
        forms: that each task mixes in equal parts, as mail of many senders does; what suits one
            form alone, which every document repeats, is too bold for such a mixture.
        seed: of the draw; others than `SEED` are of other forms than in training.

    Returns:
        Name of the task → its documents.
    """
    plain = [one for one in wide_documents() if one.topic.startswith(_PLAIN)]
    drawn = in_forms(
        plain,
        count=VALIDATION_EVERY * count * forms,
        each=-(-each // forms),
        seed=TASK_SEED + seed,
    )
    by_form: dict[str, list[str]] = {}
    for one in drawn:
        if one.held_out:
            by_form.setdefault(one.topic, []).append(one.text)
    pools = list(by_form.values())
    name = f"forms-{forms}" if seed == 0 else f"forms-{forms}-seed{seed}"
    return {
        f"{name}-{task}": [
            text
            for texts in zip(*pools[task * forms : (task + 1) * forms], strict=True)
            for text in texts
        ][:each]
        for task in range(count)
    }


def _formed(count: int, each: int) -> list[Document]:
    documents = wide_documents()
    plain = [one for one in documents if one.topic.startswith(_PLAIN)]
    return [*documents, *in_forms(plain, count=count, each=each)]
