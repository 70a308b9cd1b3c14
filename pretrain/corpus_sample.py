"""The small corpus that ships for tests, and how it is cut out of the whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperdp.pretrain.corpus import ARRAYS, Corpus

SAMPLE = Path(__file__).parent / "sample"


def open_sample() -> Corpus:
    """The small corpus that ships for tests: Noto faces only (SIL OFL, licence beside it)."""
    with np.load(SAMPLE / "glyphs.npz", allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in ARRAYS}
    return Corpus(**arrays, names=json.loads((SAMPLE / "names.json").read_text()))


def save_sample(
    corpus: Corpus, folder: Path, *, per_script: int = 60, latin: int = 1500, seed: int = 0
) -> Corpus:
    """Cuts the sample out of the corpus and writes it: Noto glyphs only, both splits.

    Args:
        corpus: the whole corpus.
        folder: `glyphs.npz` and `names.json` go here.
        per_script: glyphs of each of 16 training scripts and of 3 held-out ones.
        latin: Latin letters and digits.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    noto = np.array([n.startswith("Noto") for n in corpus.names["family"]])[corpus.family]
    chosen = []
    for split, count in ((0, 16), (1, 3)):
        pool = noto & (corpus.split == split)
        scripts = [
            s
            for s in range(len(corpus.names["script"]))
            if (pool & (corpus.script == s)).sum() >= 40
        ]
        latn = corpus.names["script"].index("Latn")
        for script in rng.permutation([s for s in scripts if s != latn])[:count]:
            rows = np.nonzero(pool & (corpus.script == script))[0]
            chosen.append(rng.choice(rows, min(per_script, len(rows)), replace=False))
        if latn in scripts:
            rows = np.nonzero(pool & (corpus.script == latn))[0]
            chosen.append(rng.choice(rows, min(latin, len(rows)), replace=False))
    rows = np.sort(np.concatenate(chosen))
    tables: dict[str, list[str]] = {}
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.asarray(getattr(corpus, name)[rows]) for name in ARRAYS
    }
    for kind in ("script", "family", "face", "char"):
        used, arrays[kind] = np.unique(arrays[kind], return_inverse=True)
        arrays[kind] = arrays[kind].astype(np.int32)
        tables[kind] = [corpus.names[kind][int(i)] for i in used]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "glyphs.npz", **arrays)  # type: ignore[arg-type]
    (folder / "names.json").write_text(json.dumps(tables, ensure_ascii=False))
    return Corpus(**{name: arrays[name] for name in ARRAYS}, names=tables)
