"""The open fonts that the corpus is rendered from: which faces, and which of their characters.

Private and reserved scripts never enter: their code points are left out by Unicode script and their
font files by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from fontTools.unicodedata import script as script_of

from hyperdp.errors import DataError

FONT_ROOT = Path("/usr/share/fonts/truetype")
FURTHER_SCRIPTS = frozenset({"Hang", "Hani", "Hira", "Kana", "Bopo"})  # no Noto font above has any
# One font of each design: Takao's and the proportional variants draw IPA's outlines once more.
FURTHER_FONTS = (
    "truetype/nanum/*.ttf",
    "truetype/unfonts-core/*.ttf",
    "truetype/baekmuk/*.ttf",
    "truetype/vlgothic/VL-Gothic-Regular.ttf",
    "truetype/wqy/*.ttc",
    "truetype/arphic/*.ttc",
    "opentype/ipafont-gothic/ipag.ttf",
    "opentype/ipafont-mincho/ipam.ttf",
)
# Private test sets (DESIGN.md §8), ISO 15924 codes, and the sets reserved for acceptance.
PRIVATE_SCRIPTS = frozenset({"Ethi", "Armn", "Khmr", "Beng"})
RESERVED_SCRIPTS = frozenset({"Geor", "Geok", "Thai", "Gujr", "Hebr", "Taml"})  # excluded here
EXCLUDED_FILES = re.compile(
    r"Ethiopic|Armenian|Khmer|Bengali"  # private
    r"|Georgian|Thai|Gujarati|Hebrew|Tamil"  # reserved: excluded from the corpus
)
LEAST_FACES = {"noto": 300, "aenigma": 300}  # a corpus of fewer is another corpus
GLYPHS_PER_SCRIPT = 96
MAX_FACES = {"latin": 16, "other": 6}
LATIN_FAMILIES = ("NotoSans", "NotoSansDisplay", "NotoSerif", "NotoSerifDisplay", "NotoSansMono")
ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WEIGHTS = {
    "Thin": 100,
    "ExtraLight": 200,
    "Light": 300,
    "Regular": 400,
    "Medium": 500,
    "SemiBold": 600,
    "Bold": 700,
    "ExtraBold": 800,
    "Black": 900,
}


@dataclass(frozen=True)
class Face:
    """One font file, and what its name tells of it.

    Attributes:
        path: the file.
        family: aenigma's faces of one family are never parted between training and validation; of
            a Noto family with several scripts, a script may be held out. Names tell families:
            two near copies under other names may be parted.
        source: "noto", "aenigma" or "further".
        weight: CSS weight, 100–900.
        slant, serif, condensed: whether it is.
    """

    path: str
    family: str
    source: str
    weight: int
    slant: bool
    serif: bool
    condensed: bool


def _noto_face(path: Path) -> Face:
    family, _, style = path.stem.partition("-")
    weight = next(
        (w for name, w in sorted(_WEIGHTS.items(), key=lambda i: -len(i[0])) if name in style), 400
    )
    return Face(
        str(path),
        family,
        "noto",
        weight,
        "Italic" in style or "Slanted" in family,
        "Serif" in family,
        "Condensed" in style,
    )


def _aenigma_face(path: Path) -> Face:
    # One designer draws outline, bold and italic variants under one stem: keep them together.
    stem = re.sub(
        r"(bold|ital|italic|outline|hollow|shadow|obl|solid|wide|[0-9]+|[ibosf]{1,2})$",
        "",
        path.stem.lower(),
    )
    name = path.stem.lower()
    return Face(
        str(path),
        f"aenigma-{(stem or name)[:5]}",
        "aenigma",
        700 if "b" in name[-2:] else 400,
        "i" in name[-2:],
        False,
        False,
    )


def fonts_installed() -> bool:
    """Whether both folders of fonts are there."""
    return all((FONT_ROOT / source).is_dir() for source in LEAST_FACES)


def open_faces() -> list[Face]:
    """The faces of the corpus, some of each Noto family and all of aenigma's.

    Raises:
        DataError: the fonts are not installed, or a good part of them is missing.
    """
    noto, aenigma = FONT_ROOT / "noto", FONT_ROOT / "aenigma"
    if not fonts_installed():
        raise DataError(
            expected=f"the Noto and aenigma fonts under {FONT_ROOT}",
            found="no noto or no aenigma folder there",
            todo="Install them: `make fonts` (fonts-noto-core, fonts-noto-extra, fonts-aenigma).",
        )
    by_family: dict[str, list[Face]] = defaultdict(list)
    for path in sorted(noto.glob("*.ttf")):
        if not EXCLUDED_FILES.search(path.stem):
            face = _noto_face(path)
            by_family[face.family].append(face)
    chosen: list[Face] = []
    for family, faces in by_family.items():
        limit = MAX_FACES["latin" if family in LATIN_FAMILIES else "other"]
        keep = np.unique(np.linspace(0, len(faces) - 1, min(limit, len(faces))).round().astype(int))
        chosen += [faces[i] for i in keep]
    chosen += [_aenigma_face(p) for p in sorted(aenigma.glob("*.ttf"))]
    for source, least in LEAST_FACES.items():
        if (found := sum(face.source == source for face in chosen)) < least:
            raise DataError(
                expected=f"at least {least} faces of {source} fonts under {FONT_ROOT / source}",
                found=f"{found}",
                todo="Install all of fonts-noto-core, fonts-noto-extra and fonts-aenigma: "
                "`make fonts`.",
            )
    return chosen


def further_installed() -> bool:
    """Whether a font of every pattern of `FURTHER_FONTS` is there."""
    return all(any(FONT_ROOT.parent.glob(pattern)) for pattern in FURTHER_FONTS)


def further_faces() -> list[Face]:
    """The faces of scripts that the corpus has none of, for forecasts.

    Raises:
        DataError: a package of them is not installed.
    """
    root = FONT_ROOT.parent
    if not further_installed():
        raise DataError(
            expected=f"fonts of {', '.join(sorted(FURTHER_SCRIPTS))} under {root}",
            found="nothing at "
            + ", ".join(pattern for pattern in FURTHER_FONTS if not any(root.glob(pattern))),
            todo="Install them: `make forecast-fonts` (Debian, Ubuntu).",
        )
    return [
        Face(
            path=str(path),
            family=path.parent.name,
            source="further",
            weight=700 if path.stem.endswith(("Bold", "B")) else 400,
            slant=False,
            serif=False,
            condensed=False,
        )
        for pattern in FURTHER_FONTS
        for path in sorted(root.glob(pattern))
    ]


def characters_of(face: Face) -> list[tuple[str, str]]:
    """The (character, script) pairs of one face that enter the corpus."""
    with TTFont(face.path, lazy=True, fontNumber=0) as font:  # a collection's first
        covered = sorted(font.getBestCmap() or {})
    if face.source == "aenigma":
        return [(c, "Latn") for c in ALPHANUMERIC if ord(c) in covered]
    by_script: dict[str, list[str]] = defaultdict(list)
    for code in covered:
        char = chr(code)
        name = script_of(char)
        if (
            code < 0x80
            or name in PRIVATE_SCRIPTS | RESERVED_SCRIPTS | {"Zinh", "Zzzz"}
            or 0xE000 <= code < 0xF900
        ):
            continue
        by_script[name].append(char)
    if face.source == "further":
        return [(c, name) for name in sorted(FURTHER_SCRIPTS) for c in _spread(by_script[name])]
    latin = face.family in LATIN_FAMILIES
    pairs = [(c, "Latn") for c in ALPHANUMERIC if latin and ord(c) in covered]
    for name, chars in by_script.items():
        wanted = {"Grek", "Cyrl"} if latin else set(by_script) - {"Latn"}
        if name not in wanted or (
            name == "Zyyy" and not re.search("Symbols|Math|Music", face.family)
        ):
            continue
        pairs += [(c, name) for c in _spread(chars)]
    return pairs


def _spread(chars: list[str]) -> list[str]:
    """At most `GLYPHS_PER_SCRIPT` of them, at equal distances."""
    keep = np.linspace(0, len(chars) - 1, min(GLYPHS_PER_SCRIPT, len(chars))).round().astype(int)
    return [chars[i] for i in np.unique(keep)]
