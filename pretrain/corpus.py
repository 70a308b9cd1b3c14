"""The public corpus "glyphs": characters of open fonts, rendered once into a cache.

Two sources, both Debian packages: `fonts-noto-core` + `fonts-noto-extra` (SIL OFL) and
`fonts-aenigma`. Private and reserved scripts never enter: their code points are left out by
Unicode script and their font files by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.morphology import skeletonize

from hyperdp.errors import DataError
from hyperdp.folders import replaced_folder
from hyperdp.glyphs import CANVAS, render_glyph
from hyperdp.pretrain.faces import Face, characters_of, fonts_installed, open_faces

CACHE_VERSION = 3
NAMES, FONTS = "names.json", "fonts.json"

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

    @property
    def digest(self) -> str:
        """Which glyphs of which faces there are, and how they are split: 16 hexadecimal digits."""
        found = hashlib.sha256(json.dumps(self.names, sort_keys=True).encode())
        for row in (self.face, self.char, self.split):
            found.update(np.ascontiguousarray(row).tobytes())
        return found.hexdigest()[:16]


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


def _render_face(
    face: Face,
) -> list[tuple[str, str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    rows = []
    for char, script in characters_of(face):
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


def render(progress: Progress | None = None, *, faces: list[Face] | None = None) -> Corpus:
    """Renders the whole corpus on all cores.

    Args:
        progress: called with (faces done, faces in all).
        faces: for tests: only these faces.

    Returns:
        The corpus; about 70,000 glyphs, 320 MB.

    Raises:
        DataError: the fonts are not installed.
    """
    faces = open_faces() if faces is None else faces
    rows: list[tuple[Face, str, str]] = []
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
    (folder / NAMES).write_text(json.dumps(corpus.names, ensure_ascii=False), encoding="utf-8")


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
    return Corpus(**arrays, names=json.loads((folder / NAMES).read_text(encoding="utf-8")))


def cache_folder(name: str = f"glyphs-v{CACHE_VERSION}") -> Path:
    """Where rendered glyphs lie: in `$HYPERDP_CACHE`, or `~/.cache/hyperdp`."""
    root = os.environ.get("HYPERDP_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "hyperdp") / name


def open_corpus(progress: Progress | None = None) -> Corpus:
    """The corpus from the cache; rendered first where the cache is empty.

    Where the fonts are installed, the cache must be of these; where they are not, it is taken as it
    is.

    Raises:
        DataError: the fonts are not installed, or not all; the cache is of others, is damaged, or
            cannot be written.
    """
    return open_rendered(cache_folder(), open_faces, fonts_installed, progress)


def open_rendered(
    folder: Path,
    faces_of: Callable[[], list[Face]],
    installed: Callable[[], bool],
    progress: Progress | None = None,
    *,
    change: Callable[[Corpus], Corpus] | None = None,
) -> Corpus:
    """Glyphs of some faces from a cache; as `open_corpus`, for any faces.

    Args:
        folder: of the cache.
        faces_of: finds the faces, or raises DataError.
        installed: whether they are there to be compared with.
        progress: called with (faces done, faces in all).
        change: what is kept of what was rendered; all of it when None.
    """
    try:
        if not (folder / NAMES).is_file():
            with replaced_folder(folder, mark=NAMES) as draft:  # before any work
                faces = faces_of()
                made = render(progress, faces=faces)
                save(made if change is None else change(made), draft)
                (draft / FONTS).write_text(json.dumps(_font_list(faces)), encoding="utf-8")
        if installed() and (folder / FONTS).is_file():
            _check_fonts(folder, faces_of())
        return load(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            expected=f"a cache of rendered glyphs in {folder}, or room for one",
            found=f"{error!r}"[:200],
            todo="Remove what is there, or name another place in HYPERDP_CACHE.",
        ) from error


def _font_list(faces: list[Face]) -> list[list[str | int]]:
    """Name and size of each font file."""
    return [[Path(face.path).name, Path(face.path).stat().st_size] for face in faces]


def _check_fonts(folder: Path, faces: list[Face]) -> None:
    """Raises DataError where the cache was rendered from other fonts than are installed."""
    before = json.loads((folder / FONTS).read_text(encoding="utf-8"))
    now = _font_list(faces)
    if now != before:
        raise DataError(
            expected=f"the {len(before)} fonts that {folder} was rendered from",
            found=f"{sum(font not in now for font in before)} of these missing or changed, and "
            f"{sum(font not in before for font in now)} new ones",
            todo="Remove that folder to render anew: what was trained on the old glyphs stays.",
        )
