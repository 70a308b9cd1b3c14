"""The public corpus "glyphs": characters of open fonts, rendered once into a cache.

Two sources, both Debian packages: `fonts-noto-core` + `fonts-noto-extra` (SIL OFL) and
`fonts-aenigma`. Private and reserved scripts never enter: their code points are left out by
Unicode script and their font files by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fontTools.ttLib import TTFont
from fontTools.unicodedata import script as script_of
from skimage.morphology import skeletonize

from hyperdp.errors import DataError
from hyperdp.glyphs import CANVAS, render_glyph

FONT_ROOT = Path("/usr/share/fonts/truetype")
# Private test sets (DESIGN.md §8), ISO 15924 codes, and the sets reserved for acceptance.
PRIVATE_SCRIPTS = frozenset({"Ethi", "Armn", "Khmr", "Beng"})
RESERVED_SCRIPTS = frozenset({"Geor", "Geok", "Thai", "Gujr", "Hebr", "Taml"})  # excluded here
EXCLUDED_FILES = re.compile(
    r"Ethiopic|Armenian|Khmer|Bengali"  # private
    r"|Georgian|Thai|Gujarati|Hebrew|Tamil"  # reserved: excluded from the corpus
)
GLYPHS_PER_SCRIPT = 96
MAX_FACES = {"latin": 16, "other": 6}
LATIN_FAMILIES = ("NotoSans", "NotoSansDisplay", "NotoSerif", "NotoSerifDisplay", "NotoSansMono")
ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CACHE_VERSION = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rendered glyphs with what is known of each; row i of every array is the same glyph.

    Attributes:
        ink: uint8 [N, 48, 48], 255 = ink.
        skeleton: uint8 [N, 48, 48], the one-pixel medial axis of the ink.
        script, family, face, char: int32 [N], indices into the `names` lists.
        weight: int16 [N], CSS weight 100–900. slant, serif, condensed: bool [N].
        split: int8 [N]: 0 train, 1 validation (held-out families and held-out scripts).
        names: the string tables of script, family, face and char.
    """

    ink: npt.NDArray[np.uint8]
    skeleton: npt.NDArray[np.uint8]
    script: npt.NDArray[np.int32]
    family: npt.NDArray[np.int32]
    face: npt.NDArray[np.int32]
    char: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int16]
    slant: npt.NDArray[np.bool_]
    serif: npt.NDArray[np.bool_]
    condensed: npt.NDArray[np.bool_]
    split: npt.NDArray[np.int8]
    names: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.ink)


ARRAYS = (
    "ink",
    "skeleton",
    "script",
    "family",
    "face",
    "char",
    "weight",
    "slant",
    "serif",
    "condensed",
    "split",
)
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
class _Face:
    path: str
    family: str
    source: str
    weight: int
    slant: bool
    serif: bool
    condensed: bool


def _noto_face(path: Path) -> _Face:
    family, _, style = path.stem.partition("-")
    weight = next(
        (w for name, w in sorted(_WEIGHTS.items(), key=lambda i: -len(i[0])) if name in style), 400
    )
    return _Face(
        str(path),
        family,
        "noto",
        weight,
        "Italic" in style or "Slanted" in family,
        "Serif" in family,
        "Condensed" in style,
    )


def _aenigma_face(path: Path) -> _Face:
    # One designer draws outline, bold and italic variants under one stem: keep them together.
    stem = re.sub(
        r"(bold|ital|italic|outline|hollow|shadow|obl|solid|wide|[0-9]+|[ibosf]{1,2})$",
        "",
        path.stem.lower(),
    )
    name = path.stem.lower()
    return _Face(
        str(path),
        f"aenigma-{(stem or name)[:5]}",
        "aenigma",
        700 if "b" in name[-2:] else 400,
        "i" in name[-2:],
        False,
        False,
    )


def _faces() -> list[_Face]:
    noto, aenigma = FONT_ROOT / "noto", FONT_ROOT / "aenigma"
    if not noto.is_dir() or not aenigma.is_dir():
        raise DataError(
            expected=f"the Noto and aenigma fonts under {FONT_ROOT}",
            found="no noto or no aenigma folder there",
            todo="Install them: `make fonts` (fonts-noto-core, fonts-noto-extra, fonts-aenigma).",
        )
    by_family: dict[str, list[_Face]] = defaultdict(list)
    for path in sorted(noto.glob("*.ttf")):
        if not EXCLUDED_FILES.search(path.stem):
            face = _noto_face(path)
            by_family[face.family].append(face)
    chosen: list[_Face] = []
    for family, faces in by_family.items():
        limit = MAX_FACES["latin" if family in LATIN_FAMILIES else "other"]
        keep = np.unique(np.linspace(0, len(faces) - 1, min(limit, len(faces))).round().astype(int))
        chosen += [faces[i] for i in keep]
    return chosen + [_aenigma_face(p) for p in sorted(aenigma.glob("*.ttf"))]


def _characters(face: _Face) -> list[tuple[str, str]]:
    """The (character, script) pairs of one face that enter the corpus."""
    with TTFont(face.path, lazy=True) as font:
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
    latin = face.family in LATIN_FAMILIES
    pairs = [(c, "Latn") for c in ALPHANUMERIC if latin and ord(c) in covered]
    for name, chars in by_script.items():
        wanted = {"Grek", "Cyrl"} if latin else set(by_script) - {"Latn"}
        if name not in wanted or (
            name == "Zyyy" and not re.search("Symbols|Math|Music", face.family)
        ):
            continue
        keep = np.unique(
            np.linspace(0, len(chars) - 1, min(GLYPHS_PER_SCRIPT, len(chars))).round().astype(int)
        )
        pairs += [(chars[i], name) for i in keep]
    return pairs


def _render_face(
    face: _Face,
) -> list[tuple[str, str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    rows = []
    for char, script in _characters(face):
        ink = render_glyph(face.path, char)
        if ink is not None:
            skeleton = skeletonize(ink > 127).astype(np.uint8) * 255
            rows.append((char, script, ink, skeleton))
    return rows


def _held_out(name: str, one_in: int) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % one_in == 0


def _index(values: list[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    table = sorted(set(values))
    position = {v: i for i, v in enumerate(table)}
    return np.array([position[v] for v in values], dtype=np.int32), table


def render(progress: Progress | None = None, *, faces: list[_Face] | None = None) -> Corpus:
    """Renders the whole corpus on all cores.

    Args:
        progress: called with (faces done, faces in all).
        faces: for tests: only these faces.

    Returns:
        The corpus; about 70,000 glyphs, 320 MB.

    Raises:
        DataError: the fonts are not installed.
    """
    faces = _faces() if faces is None else faces
    rows: list[tuple[_Face, str, str]] = []
    inks, skeletons = [], []
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, (face, result) in enumerate(
            zip(faces, pool.map(_render_face, faces, chunksize=4), strict=True)
        ):
            for char, script, ink, skeleton in result:
                rows.append((face, char, script))
                inks.append(ink)
                skeletons.append(skeleton)
            if progress is not None:
                progress(done + 1, len(faces))
    script_id, script_names = _index([s for _, _, s in rows])
    family, family_names = _index([f.family for f, _, _ in rows])
    face_id, face_names = _index([Path(f.path).stem for f, _, _ in rows])
    char_id, char_names = _index([c for _, c, _ in rows])
    held_script = np.array(
        [n not in {"Latn", "Grek", "Cyrl"} and _held_out("script:" + n, 10) for n in script_names]
    )
    held_family = np.array(
        [n.startswith("aenigma-") and _held_out("family:" + n, 10) for n in family_names]
    )
    return Corpus(
        ink=np.stack(inks).reshape(-1, CANVAS, CANVAS),
        skeleton=np.stack(skeletons).reshape(-1, CANVAS, CANVAS),
        script=script_id,
        family=family,
        face=face_id,
        char=char_id,
        weight=np.array([f.weight for f, _, _ in rows], dtype=np.int16),
        slant=np.array([f.slant for f, _, _ in rows]),
        serif=np.array([f.serif for f, _, _ in rows]),
        condensed=np.array([f.condensed for f, _, _ in rows]),
        split=(held_script[script_id] | held_family[family]).astype(np.int8),
        names={
            "script": script_names,
            "family": family_names,
            "face": face_names,
            "char": char_names,
        },
    )


def save(corpus: Corpus, folder: Path) -> None:
    """Writes the corpus as `.npy` files (memory-mapped on load) and `names.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(corpus, name), allow_pickle=False)
    (folder / "names.json").write_text(json.dumps(corpus.names, ensure_ascii=False))


def load(folder: Path) -> Corpus:
    """Reads what `save` wrote; large arrays stay memory-mapped."""
    arrays: dict[str, Any] = {
        name: np.load(
            folder / f"{name}.npy",
            mmap_mode="r" if name in {"ink", "skeleton"} else None,
            allow_pickle=False,
        )
        for name in ARRAYS
    }
    return Corpus(**arrays, names=json.loads((folder / "names.json").read_text()))


def cache_folder() -> Path:
    """Where the rendered corpus lies: `$HYPERDP_CACHE`, or `~/.cache/hyperdp`."""
    root = os.environ.get("HYPERDP_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "hyperdp") / f"glyphs-v{CACHE_VERSION}"


def open_corpus(progress: Progress | None = None) -> Corpus:
    """The corpus from the cache; rendered first where the cache is empty."""
    folder = cache_folder()
    if not (folder / "names.json").is_file():  # written last, so a killed rendering is made again
        save(render(progress), folder)
    return load(folder)
