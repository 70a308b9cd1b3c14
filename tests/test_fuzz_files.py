"""Damaged files into every reader and the bundle loader: no traceback, no hang, no half record.

A short run by default; `pytest -m slow` puts in 30,000 files of data and 3,000 bundles.
"""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from hyperdp.bundle import Bundle, load_bundle
from hyperdp.manifest import _sha256
from hyperdp.private.readers import open_dataset
from tests import reader_samples
from tests.damage import damage, outcome
from tests.reader_samples import LEVELS, SHAPE, picture
from tests.worlds import tiny_bundle

PICTURES = {
    "png": {}, "jpg": {"quality": 90}, "gif": {}, "bmp": {}, "webp": {"lossless": True},
    "tif": {"compression": "tiff_lzw"},
}  # fmt: skip
TABLES = [
    reader_samples.write_npz, reader_samples.write_npz_fortran, reader_samples.write_parquet_bytes,
    reader_samples.write_parquet_struct, reader_samples.write_csv, reader_samples.write_tsv,
    reader_samples.write_jsonl, reader_samples.write_huggingface,
    reader_samples.write_nested_lists,
]  # fmt: skip


def write_pictures(root):
    """A folder with a picture of every format that is likely to be met."""
    (root / "d").mkdir()
    for number, (suffix, options) in enumerate(PICTURES.items()):
        level = LEVELS[number % len(LEVELS)]
        picture(level, mode=("L", "RGB")[number % 2] if suffix != "gif" else "L").convert(
            "RGB" if suffix in {"jpg", "webp"} else "L"
        ).save(root / "d" / f"{number}.{suffix}", **options)
    return root / "d", {}


def read(path, columns):
    """Every record whole and sane, or our own error."""
    for record in open_dataset(path, image_shape=SHAPE, **columns).records():
        assert record.image.shape == SHAPE and record.image.dtype == np.float32
        assert np.isfinite(record.image).all() and np.abs(record.image).max() <= 1
        assert record.label is None or isinstance(record.label, str)


def fuzz_reader(write, root, rng, count):
    path, columns = write(root)
    read(path, columns)
    files = [file for file in ([path] if path.is_file() else sorted(path.rglob("*")))
             if file.is_file() and not file.name.startswith(".")]  # fmt: skip
    refused = 0
    for _ in range(count):
        file = rng.choice(files)
        before = file.read_bytes()
        file.write_bytes(damage(rng, before))
        refused += outcome(read, path, columns)
        file.write_bytes(before)
    assert refused > 0, "damage that nothing notices is no damage"
    read(path, columns)


@pytest.mark.parametrize("write", [*TABLES, write_pictures])
def test_damaged_data_is_read_or_refused(write, tmp_path):
    fuzz_reader(write, tmp_path, random.Random(0), 60)


@pytest.mark.slow
@pytest.mark.parametrize("write", [*TABLES, write_pictures])
def test_damaged_data_is_read_or_refused_in_30_000_files(write, tmp_path):
    fuzz_reader(write, tmp_path, random.Random(1), 3_000)


VALUES = [
    None, True, 0, -1, 1, 3, 2**31, 2**63, 10**40, 0.0, -1.5, float("nan"), 1e300, "", "x", "..",
    "/etc/passwd", [], {}, [[]], [1, 2], ["a"], {"a": 1}, "\ud800", "é" * 50, [0] * 70,
    [-1, 28, 28],
]  # fmt: skip


def change_json(rng, value):
    """One value somewhere in it replaced, left out or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: change_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], change_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)


def fuzz_bundle(root, rng, count):
    """Changed under hashes that say all is well, so that what lies deeper has to notice."""
    sound = tiny_bundle(root / "sound").path
    files = sorted(str(file.relative_to(sound)) for file in sound.rglob("*") if file.is_file())
    refused = 0
    for number in range(count):
        folder = root / f"b{number}"
        shutil.copytree(sound, folder)
        name = rng.choice(files)
        before = (folder / name).read_bytes()
        if name.endswith(".json") and rng.random() < 0.7:
            text = json.dumps(change_json(rng, json.loads(before)))
            (folder / name).write_text(text)
        else:
            (folder / name).write_bytes(damage(rng, before))
        if name != "bundle.json" and rng.random() < 0.8:
            manifest = json.loads((folder / "bundle.json").read_bytes())
            if name in manifest["files"]:
                manifest["files"][name] = _sha256(folder / name)
            (folder / "bundle.json").write_text(json.dumps(manifest))
        loaded = []
        if outcome(lambda here=folder, kept=loaded: kept.append(load_bundle(here))):
            refused += 1
        else:
            assert isinstance(loaded[0], Bundle)
            embedded = loaded[0].encoder(torch.zeros(2, *loaded[0].config.image_shape))
            assert embedded.shape == (2, loaded[0].config.embed_dim)
        shutil.rmtree(folder)
    assert refused > count // 2


def test_a_damaged_bundle_is_loaded_or_refused(tmp_path):
    fuzz_bundle(tmp_path, random.Random(0), 60)


@pytest.mark.slow
def test_a_damaged_bundle_is_loaded_or_refused_3_000_times(tmp_path):
    fuzz_bundle(tmp_path, random.Random(1), 3_000)
