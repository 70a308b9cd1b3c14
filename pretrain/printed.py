"""The held-out scripts that forecasts of print are made of: those of several faces.

Some are the corpus's own. The others are of scripts that the corpus has none of, in fonts that are
rendered for this alone (`FURTHER_FONTS`; Debian's packages, each under an open licence), so that a
table has the nine tasks that its interval needs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from hyperdp.pretrain.corpus import ARRAYS, Corpus, Progress, cache_folder, open_rendered
from hyperdp.pretrain.faces import further_faces, further_installed

LEAST_GLYPHS = 24


def open_further_scripts(progress: Progress | None = None) -> Corpus:
    """The scripts that the corpus has none of, from the cache; rendered first where it is empty.

    Raises:
        DataError: the fonts are not installed, or the cache cannot be used.
    """
    folder = cache_folder("scripts-v1")
    return open_rendered(folder, further_faces, further_installed, progress, change=_distinct)


def _distinct(corpus: Corpus) -> Corpus:
    """All of it held out, and of glyphs with the same ink the first: faces share some."""
    ink = corpus.ink.reshape(len(corpus), -1)
    kept = np.sort(np.unique(ink, axis=0, return_index=True)[1])
    held = dataclasses.replace(corpus, split=np.ones(len(corpus), dtype=np.int8))
    return rows_of(held, kept)


def rows_of(corpus: Corpus, rows: npt.NDArray[np.int64]) -> Corpus:
    """Some glyphs of a corpus, int64 [M]; the tables of names stay."""
    return dataclasses.replace(corpus, **{name: getattr(corpus, name)[rows] for name in ARRAYS})


def printed_scripts(corpus: Corpus, further: Corpus | None) -> Corpus:
    """The held-out scripts of several faces, of both; the corpus's come first.

    Args:
        corpus: the public corpus.
        further: what `open_further_scripts` gives; None where the corpus is all there is.

    Returns:
        Glyphs whose split is 1, all of them.
    """
    found = _of_several_faces(corpus)
    return found if further is None else _joined(found, _of_several_faces(further))


def _of_several_faces(corpus: Corpus) -> Corpus:
    rows = np.flatnonzero(corpus.split == 1)
    kept = [
        script
        for script in np.unique(corpus.script[rows])
        if len(of := rows[corpus.script[rows] == script]) >= LEAST_GLYPHS
        and len(np.unique(corpus.face[of])) > 1
    ]
    return rows_of(corpus, rows[np.isin(corpus.script[rows], kept)])


def _joined(first: Corpus, second: Corpus) -> Corpus:
    """Both, one behind the other; what has one name in both is one."""
    names, arrays = {}, {}
    for kind, table in first.names.items():
        new = [name for name in second.names[kind] if name not in set(table)]
        names[kind] = [*table, *new]
        place = {name: i for i, name in enumerate(names[kind])}
        moved = np.array([place[name] for name in second.names[kind]], dtype=np.int32)
        arrays[kind] = moved[getattr(second, kind)]
    for name in ARRAYS:
        arrays[name] = np.concatenate(
            [getattr(first, name), arrays.get(name, getattr(second, name))]
        )
    return Corpus(**arrays, names=names)
