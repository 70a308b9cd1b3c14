"""Styles of public documents: the same passages as a reply, a page, a notice or a list of items.

What pen and slant are to glyphs: private documents come in forms that the public ones do not have,
so ρ learns on topics in several forms. Names, addresses and dates are made up by `faker`.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

import numpy as np
from faker import Faker

from hyperdp.pretrain.text_corpus import Document

SEED = 0
EACH = 48  # styled documents of a topic and style
LEAST = 24  # documents that a topic needs
_TAGS = ("p", "b", "i", "center", "h2", "li", "div", "small", "em", "td")
_FONTS = ("Arial", "Verdana", "Helvetica", "Times New Roman", "Courier New")

Rng = np.random.Generator
Write = Callable[[list[str], "Made", Rng], str]


class Made:
    """What `faker` makes up, drawn once and taken from again and again, as it is slow.

    Args:
        seed: of all of it.
        each: values of a kind.
    """

    KINDS = (
        "catch_phrase", "company", "email", "first_name", "hex_color", "name", "phone_number",
        "street_address", "uri", "url",
    )  # fmt: skip
    LATEST = datetime(2025, 1, 1)
    DATES = ("%a, %d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%d %b %Y")

    def __init__(self, seed: int, each: int = 300) -> None:
        fake = Faker()
        fake.seed_instance(seed)
        self.values = {kind: [str(fake.format(kind)) for _ in range(each)] for kind in self.KINDS}
        self.values["date"] = [  # the latest one given: it is the clock's otherwise
            fake.date(pattern=self.DATES[i % 4], end_datetime=self.LATEST) for i in range(each)
        ]

    def one(self, kind: str, rng: Rng) -> str:
        """One of a kind."""
        values = self.values[kind]
        return values[int(rng.integers(len(values)))]


def reply(passages: list[str], made: Made, rng: Rng) -> str:
    """A quotation with its author, and an answer under it."""
    lines = []
    if rng.random() < 0.3:
        lines += [f"{rng.choice(['Hi', 'Hello', 'Dear'])} {made.one('first_name', rng)},", ""]
    if rng.random() < 0.7:
        date = made.one("date", rng)
        lines.append(f"On {date}, {made.one('name', rng)} wrote:")
    width = int(rng.integers(50, 75))
    quoted = textwrap.wrap(_words(passages[0], int(rng.integers(8, 30)), rng), width)
    lines += [f"> {line}" for line in quoted]
    lines += ["", *textwrap.wrap(passages[1], width), ""]
    if rng.random() < 0.5:
        lines += [
            "-- ",
            made.one("name", rng),
            str(rng.choice([made.one("url", rng), made.one("email", rng)])),
        ]
    else:
        lines.append(made.one("first_name", rng))
    return "\n".join(lines)


def page(passages: list[str], made: Made, rng: Rng) -> str:
    """Markup, of the kind that programs write."""
    lines = []
    if rng.random() < 0.6:
        lines += ["<html>", "<head>", f"<title>{made.one('catch_phrase', rng)}</title>"]
        if rng.random() < 0.5:
            lines.append('<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">')
        lines += ["</head>", f'<body bgcolor="{made.one("hex_color", rng)}">']
    if rng.random() < 0.5:
        lines.append(f'<table width="{rng.integers(2, 9)}00" border="0" cellpadding="0"><tr><td>')
    font, size = rng.choice(_FONTS), rng.integers(1, 6)
    lines.append(f'<font face="{font}" size="{size}" color="{made.one("hex_color", rng)}">')
    for line in textwrap.wrap(" ".join(passages), int(rng.integers(20, 70))):
        tag = rng.choice(_TAGS)
        lines.append(f"<{tag}>{line}</{tag}>" if rng.random() < 0.7 else f"{line}<br>")
        if rng.random() < 0.15:
            link, picture = made.one("url", rng), made.one("uri", rng)
            lines.append(f'<a href="{link}"><img src="{picture}.gif" border="0"></a>')
    return "\n".join(lines)


def notice(passages: list[str], made: Made, rng: Rng) -> str:
    """A headline in capitals, points, and where to turn."""
    lines = [made.one("catch_phrase", rng).upper() + "!" * int(rng.integers(0, 4)), ""]
    mark = str(rng.choice(["* ", "- ", "o ", "=> ", ""]))
    for line in textwrap.wrap(passages[0], int(rng.integers(30, 60)))[: int(rng.integers(2, 6))]:
        lines.append(mark + (line.upper() if rng.random() < 0.25 else line))
        if rng.random() < 0.3:
            lines.append("")
    turn = [
        f"Call {made.one('phone_number', rng)}",
        f"Only ${rng.integers(5, 999)}.{rng.integers(10, 99)}",
        made.one("url", rng),
        f"{made.one('company', rng)}, {made.one('street_address', rng)}",
        f"mailto:{made.one('email', rng)}",
    ]
    return "\n".join([*lines, "", *rng.permutation(turn)[:3].tolist(), "", passages[1]])


def items(passages: list[str], made: Made, rng: Rng) -> str:
    """Short items, each with a date, an address or a number."""
    lines: list[str] = []
    kind = int(rng.integers(3))
    for passage in passages:
        head = [made.one("date", rng), made.one("uri", rng), f"[{rng.integers(1, 40)}]"][kind]
        lines += [head, _words(passage, int(rng.integers(6, 18)), rng), ""]
    return "\n".join(lines)


STYLES: dict[str, Write] = {"reply": reply, "page": page, "notice": notice, "items": items}


def in_styles(documents: list[Document], *, each: int = EACH, seed: int = SEED) -> list[Document]:
    """Documents of every topic in every style, as topics of their own.

    Args:
        documents: plain ones.
        each: new ones of a topic and style.
        seed: of what is drawn and made up.

    Returns:
        The new documents alone; in validation where their topic is.
    """
    rng, made = np.random.default_rng(seed), Made(seed)
    topics: dict[str, list[Document]] = defaultdict(list)
    for one in documents:
        topics[one.topic].append(one)
    found = []
    for topic, members in sorted(topics.items()):
        for name, write in STYLES.items() if len(members) >= LEAST else ():
            for _ in range(each):
                drawn = [members[i] for i in rng.choice(len(members), 4, replace=False)]
                text = write([" ".join(one.text.split()) for one in drawn], made, rng)
                found.append(
                    Document(text=text, topic=f"{name}/{topic}", held_out=drawn[0].held_out)
                )
    return found


def _words(text: str, count: int, rng: Rng) -> str:
    """So many words in a row out of a text, or all."""
    words = text.split()
    start = int(rng.integers(max(1, len(words) - count)))
    return " ".join(words[start : start + count])
