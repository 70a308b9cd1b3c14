"""Readers of documents: every format, and whatever text people have."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from hyperdp.errors import DataError, HyperdpError, UsageError
from hyperdp.private.readers import open_dataset, open_text_dataset
from tests.text_world import TEXTS, tokenizer

TOKENIZER = tokenizer()
ODD = ["", "   ", "שלום", "🙂🙃", "a\x00\x07b", 'say "hi",\nthen go', "x" * 10**7]


def opened(path: Path, **options):
    return open_text_dataset(path, encode=TOKENIZER.encode, **options)


def texts_of(path: Path, **options) -> list[str]:
    return [text for text, _ in opened(path, **options).documents()]


def write_jsonl(path: Path, texts: list[str], name: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, name: t}) + "\n" for i, t in enumerate(texts)))
    return path


def write_csv(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    return path


def write_parquet(path: Path, texts: list[str]) -> Path:
    pyarrow.parquet.write_table(pa.table({"text": texts, "id": range(len(texts))}), path)
    return path


def write_folder(path: Path, texts: list[str]) -> Path:
    path.mkdir()
    for i, text in enumerate(texts):
        (path / f"{i:03}.txt").write_bytes(text.encode())
    return path


def write_huggingface(path: Path, texts: list[str]) -> Path:
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)
    return path


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "folder": write_folder,
    "hf": write_huggingface,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_every_document_odd_ones_too(name: str, tmp_path: Path):
    path = WRITERS[name](tmp_path / name, TEXTS + ODD)
    assert texts_of(path) == TEXTS + ODD
    records = list(opened(path).records())
    expected = TOKENIZER.encode_all(TEXTS + ODD)
    assert len(records) == len(expected)
    assert all((r.tokens == e).all() for r, e in zip(records, expected, strict=True))


def test_labels_and_units_come_along(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    rows = [{"body": t, "who": i % 2, "kind": "ham"} for i, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = list(opened(path, label_column="kind", unit_column="who").records())
    assert {r.label for r in records} == {"ham"} and {r.unit for r in records} == {"0", "1"}
    assert "ham" not in repr(records[0])
    with pytest.raises(DataError, match="classes"):
        list(opened(path, label_column="kind", classes=("spam",)).records())


def test_sub_folders_are_labels(tmp_path: Path):
    for kind in ("ham", "spam"):
        write_folder(tmp_path / kind, TEXTS[:2])
    found = [r.label for r in opened(tmp_path, label_column="folder").records()]
    assert found == ["ham", "ham", "spam", "spam"]


def test_a_user_is_the_first_folder_however_deep_their_files_lie(tmp_path: Path):
    """As in a folder of images: by the nearest one, `inbox` would be one user, of everybody."""
    for user in ("alice", "bob"):
        for box in ("inbox", "sent"):
            (tmp_path / user / box / "old").mkdir(parents=True)
            (tmp_path / user / box / "1.txt").write_text("a letter")
            Image.new("L", (4, 4)).save(tmp_path / user / box / "old" / "1.png")
    with pytest.raises(DataError, match=r"to be a \.txt file"):
        opened(tmp_path, unit_column="folder").check()
    kept = opened(tmp_path, unit_column="folder", skip_unreadable=True)
    texts = [r.unit for r in kept.records()]
    assert texts == ["alice", "alice", "bob", "bob"]
    for letter in tmp_path.rglob("*.txt"):
        letter.unlink()
    read = open_dataset(tmp_path, image_shape=(1, 4, 4), unit_column="folder")
    assert [r.unit for r in read.records()] == texts


def test_a_binary_column_of_utf8_is_text(tmp_path: Path):
    cells = [TEXTS[0].encode(), b"caf\xe9", TEXTS[1].encode()]
    pa.parquet.write_table(pa.table({"text": pa.array(cells, pa.binary())}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="bytes that are not"):
        opened(tmp_path / "t.parquet").check()
    assert texts_of(tmp_path / "t.parquet", skip_unreadable=True) == TEXTS[:2]


def test_a_folder_is_a_user_as_a_cell_of_a_table_is(tmp_path: Path):
    for name in ("alice", "alice ", " "):
        write_folder(tmp_path / name, TEXTS[:1])
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="the unit it belongs to"):
        opened(tmp_path, unit_column="folder").check()
    found = opened(tmp_path, unit_column="folder", skip_unreadable=True).records()
    assert [r.unit for r in found] == ["alice", "alice"]
    for letter in tmp_path.rglob("*.txt"):
        letter.unlink()
    read = open_dataset(tmp_path, image_shape=(1, 4, 4), unit_column="folder", skip_unreadable=True)
    assert [r.unit for r in read.records()] == ["alice", "alice"]


def test_a_file_that_cannot_be_opened_is_left_out_like_any_other(tmp_path: Path):
    folder = write_folder(tmp_path / "folder", TEXTS)
    (folder / "loud.TXT").write_text(TEXTS[0])
    (folder / "memory.txt").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"memory\.txt"):
        opened(folder).check()
    assert sorted(texts_of(folder, skip_unreadable=True)) == sorted([*TEXTS, TEXTS[0]])


def test_bytes_that_are_not_utf8_are_an_error_or_left_out(tmp_path: Path):
    folder = write_folder(tmp_path / "folder", TEXTS)
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"bad\.txt.*UTF-8"):
        opened(folder).check()
    assert texts_of(folder, skip_unreadable=True) == TEXTS
    table = tmp_path / "a.jsonl"
    table.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        opened(table).check()


@pytest.mark.parametrize("cell", [None, 7, ["a"], {"a": 1}])
def test_a_cell_that_is_no_text_is_an_error_or_left_out(cell: object, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [TEXTS[0], cell, TEXTS[1]])
    with pytest.raises(DataError, match="row 2"):
        opened(path).check()
    assert texts_of(path, skip_unreadable=True) == TEXTS[:2]


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS, name="mail")
    with pytest.raises(DataError, match="--text-column"):
        opened(path).check()
    assert texts_of(path, text_column="mail") == TEXTS


@pytest.mark.parametrize("name", ["none.jsonl", "empty.jsonl", "a.docx", "empty"])
def test_what_is_no_dataset_is_a_usage_error(name: str, tmp_path: Path):
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "none.jsonl":
        path.write_bytes(b"" if name.startswith("empty") else b"x")
    with pytest.raises(UsageError):
        opened(path)


def test_mixed_encodings_never_pass_as_text_unseen(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + "größer".encode() + b"\n" + "größer".encode("latin-1") + b"\n")
    with pytest.raises(HyperdpError, match="UTF-8"):
        opened(path).check()
