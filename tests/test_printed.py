"""Fonts of scripts that the corpus has none of: which faces, which characters, what is cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from hyperdp.errors import DataError
from hyperdp.pretrain import faces
from hyperdp.pretrain.faces import FURTHER_SCRIPTS, characters_of, further_faces
from hyperdp.pretrain.printed import open_further_scripts

# Hangul, kana of both kinds, Han and bopomofo; Latin, and a private and a reserved script.
TEXT = "가나다あいうアイウ一二三ㄅㄆㄇabcBԱԲ\u0995\u10d0"
SHAPES = len("가나다")  # so many outlines: characters behind each other look alike


def write_font(path: Path, *, bold: bool) -> None:
    """A font of boxes: a character's box tells its place in its script, and the weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [".notdef", *(f"g{i}" for i in range(len(TEXT)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): names[1 + i] for i, c in enumerate(TEXT)})
    glyphs = {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        right, top = 300 + 150 * (i % SHAPES), 1000 if bold else 600
        pen.moveTo((0, 0))
        for point in ((0, top), (right, top), (right, 0)):
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def install(folder: Path) -> None:
    """A font for every pattern; the one of `wqy` is called a collection, as it is there."""
    for pattern in faces.FURTHER_FONTS:
        path = folder / pattern.replace("*", "Some-Bold" if "nanum" in pattern else "Some")
        write_font(path, bold="nanum" in pattern)


def test_further_fonts_give_their_own_scripts_and_no_private_or_reserved_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setattr(faces, "FONT_ROOT", tmp_path / "truetype")
    found = further_faces()
    assert len(found) == len(faces.FURTHER_FONTS)
    assert {face.weight for face in found if face.family == "nanum"} == {700}
    assert {face.weight for face in found if face.family != "nanum"} == {400}
    for face in found:
        pairs = characters_of(face)
        assert {script for _, script in pairs} == FURTHER_SCRIPTS
        assert {char for char, _ in pairs} == {*TEXT} - {*"abcBԱԲ\u0995\u10d0"}


def test_further_scripts_are_cached_held_out_and_without_the_same_ink_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(faces, "FONT_ROOT", tmp_path / "truetype")
    with pytest.raises(DataError, match="make forecast-fonts"):
        open_further_scripts()
    assert not list((tmp_path / "cache").glob("scripts-*"))
    install(tmp_path)
    made = open_further_scripts()
    assert len(made) == 2 * SHAPES  # two weights: all else looks alike
    assert len(np.unique(made.ink.reshape(len(made), -1), axis=0)) == len(made)
    assert made.split.all()
    # As it lies there: also where the fonts have gone, but not where they are others.
    (tmp_path / "truetype" / "nanum" / "Other.ttf").write_bytes(
        (tmp_path / "truetype" / "nanum" / "Some-Bold.ttf").read_bytes()
    )
    with pytest.raises(DataError, match="1 new one"):
        open_further_scripts()
    monkeypatch.setattr(faces, "FONT_ROOT", tmp_path / "elsewhere" / "truetype")
    again = open_further_scripts()
    assert again.digest == made.digest and np.array_equal(again.ink, made.ink)
