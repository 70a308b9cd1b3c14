"""No record decides how others are read: one more moves the exact query by at most its sensitivity.

It may be any record in any place, the first as well.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from hyperdp.errors import DataError, UsageError
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.readers import open_dataset, open_text_dataset
from hyperdp.private.readers.rows import IMAGE_COLUMNS, TEXT_COLUMNS
from tests.private_world import SHAPE as IMAGE
from tests.private_world import TinyBundle, TinyConfig
from tests.reader_samples import SHAPE, png, write_folder, write_huggingface
from tests.text_world import DIM, LENGTH, TEXTS, encoder, tokenizer

CLIP = 0.01  # below every embedding's norm, so that each record has its full weight
TOKENIZER = tokenizer()
ANY_FILES = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclasses.dataclass(frozen=True)
class TextForm:
    embed_dim: int = DIM
    clip_norm: float = CLIP
    text_length: int = LENGTH
    vocab_size: int = TOKENIZER.vocab_size


@dataclasses.dataclass
class OfText:
    name: str = "tiny-text"
    hash: str = "cd" * 32
    encoder: nn.Module = dataclasses.field(default_factory=lambda: encoder(TOKENIZER.vocab_size))
    config: TextForm = TextForm()


TEXT_BUNDLE = OfText()
IMAGE_BUNDLE = TinyBundle(config=TinyConfig(clip_norm=CLIP))


def query(rows: list[dict[str, object]], folder: Path, bundle: OfText | TinyBundle, **options):
    """The exact sum over a JSONL file of these rows."""
    path = folder / "private.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"skip_unreadable": True, **options}
    if bundle is TEXT_BUNDLE:
        data = open_text_dataset(path, encode=TOKENIZER.encode, **common)
    else:
        data = open_dataset(path, image_shape=IMAGE, **common)
    classes = list(options.get("classes", ()))
    spec = MechanismSpec(embedding_dim=DIM, num_classes=len(classes) or 1, clip_norm=CLIP)
    total = aggregate(data.records(), bundle=bundle, spec=spec, unit="record", classes=classes)
    return total.to_vector(), spec.squared_sensitivity


def of_users(folder: Path, kind: str):
    """The exact sum over a folder with a sub-folder for each user."""
    if kind == "texts":
        data = open_text_dataset(folder, encode=TOKENIZER.encode, unit_column="folder")
    else:
        data = open_dataset(folder, image_shape=IMAGE, unit_column="folder")
    bundle = TEXT_BUNDLE if kind == "texts" else IMAGE_BUNDLE
    spec = MechanismSpec(embedding_dim=DIM, num_classes=1, clip_norm=CLIP)
    total = aggregate(data.records(), bundle=bundle, spec=spec, unit="user", classes=[])
    return total.to_vector(), spec.squared_sensitivity


def rows_of(columns: tuple[str, ...], cells: st.SearchStrategy[object]):
    return st.dictionaries(st.sampled_from([*columns, "label", "other"]), cells, max_size=4)


TEXT_ROWS = rows_of(TEXT_COLUMNS, st.one_of(st.sampled_from(TEXTS), st.none(), st.just(7)))
LEVELS = st.integers(0, 255).map(lambda level: np.full((12, 12), level).tolist())
IMAGE_ROWS = rows_of(IMAGE_COLUMNS, st.one_of(LEVELS, st.just("nowhere.png"), st.none()))
LABELLED = {"label_column": "label", "classes": ("7", TEXTS[0])}


def stays_within(rows, more, place, folder, bundle, **options):
    first = {"other": TEXTS[0]} if not rows else rows[0]  # for a file with nothing is no dataset
    rows = [first, *rows[1:]]
    before, bound = query(rows, folder, bundle, **options)
    place %= len(rows) + 1
    after, _ = query([*rows[:place], more, *rows[place:]], folder, bundle, **options)
    assert sum(int(x) ** 2 for x in after - before) <= bound


@pytest.mark.parametrize("options", [{}, {"text_column": "body"}, LABELLED], ids=str)
@ANY_FILES
@example(rows=[{"text": t, "body": TEXTS[0]} for t in TEXTS] * 9, more={"body": "x"}, place=0)
@given(rows=st.lists(TEXT_ROWS, max_size=12), more=TEXT_ROWS, place=st.integers(0, 12))
def test_one_more_document_moves_the_query_by_its_own_share(rows, more, place, options, tmp_path):
    stays_within(rows, more, place, tmp_path, TEXT_BUNDLE, **options)


@pytest.mark.parametrize("options", [{}, {"image_column": "x"}], ids=str)
@ANY_FILES
@given(rows=st.lists(IMAGE_ROWS, max_size=8), more=IMAGE_ROWS, place=st.integers(0, 8))
def test_one_more_image_moves_the_query_by_its_own_share(rows, more, place, options, tmp_path):
    stays_within(rows, more, place, tmp_path, IMAGE_BUNDLE, **options)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_document_that_lacks_the_column_is_alone_in_it(place: int, tmp_path: Path):
    rows = [{"text": text, "user": "u"} for text in TEXTS]
    rows.insert(place, {"body": "only here"})
    path = tmp_path / "private.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"text_column": "text", "unit_column": "user"}
    read = open_text_dataset(path, encode=TOKENIZER.encode, skip_unreadable=True, **options)
    assert [text for text, _ in read.documents()] == TEXTS
    with pytest.raises(DataError, match=rf"row {place + 1} .*--text-column"):
        open_text_dataset(path, encode=TOKENIZER.encode, **options).check()


def plant_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"image": [png(1)] * 9, "text": ["x"] * 9}), folder / "0.parquet")


def plant_huggingface(folder: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": [png(1)] * 9, "text": ["x"] * 9})
    rows.save_to_disk(folder / ".planted")
    for file in (folder / ".planted").iterdir():
        shutil.move(file, folder / file.name)
    (folder / ".planted").rmdir()


@pytest.mark.parametrize("plant", [plant_parquet, plant_huggingface])
def test_a_file_planted_in_a_folder_of_records_is_refused_and_not_read_in_their_place(
    plant, tmp_path: Path
):
    images, _ = write_folder(tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "secret name.txt").write_text(TEXTS[0])
    for folder in (images, texts):
        plant(folder)
    with pytest.raises(UsageError, match="and other files"):
        open_dataset(images, image_shape=SHAPE)
    with pytest.raises(UsageError, match="and other files") as refused:
        open_text_dataset(texts, encode=TOKENIZER.encode)
    assert "secret name" not in str(refused.value)


def test_tables_of_two_kinds_are_refused_and_what_tools_leave_is_not(tmp_path: Path):
    path, _ = write_huggingface(tmp_path)
    (path / "README.md").write_text("of the hub")
    assert open_dataset(path, image_shape=SHAPE).listed() == 4
    plant_parquet(path)
    with pytest.raises(UsageError, match="a Hugging Face dataset and Parquet files"):
        open_dataset(path, image_shape=SHAPE)


def test_hidden_files_are_no_records_and_decide_nothing(tmp_path: Path):
    images, _ = write_folder(tmp_path)
    plant_parquet(images)
    (images / "0.parquet").rename(images / ".0.parquet")
    assert open_dataset(images, image_shape=SHAPE).listed() == 4
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXTS[0])
    (texts / ".b.txt").write_text(TEXTS[1])
    assert open_text_dataset(texts, encode=TOKENIZER.encode).listed() == 1


def test_a_folder_of_images_may_hold_a_parquet_file_deeper_as_an_unreadable_record(tmp_path: Path):
    images, _ = write_folder(tmp_path)
    plant_parquet(images / "a")
    read = open_dataset(images, image_shape=SHAPE, skip_unreadable=True)
    assert len(list(read.records())) == 4


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_one_more_user_whose_folder_links_to_what_others_link_to_takes_nothing_from_them(
    kind: str, tmp_path: Path
):
    """First in the order of paths: a shared folder was entered once, and was the first user's."""
    shared, root = tmp_path / "shared", tmp_path / "users"
    shared.mkdir()
    for i in range(9):
        place = shared / ("1.png" if kind == "images" else "1.txt")
        place.write_bytes(png(1) if kind == "images" else TEXTS[0].encode())
        (root / f"user{i}").mkdir(parents=True)
        (root / f"user{i}" / "link").symlink_to(shared)
    before, bound = of_users(root, kind)
    (root / "aaa").mkdir()
    (root / "aaa" / "link").symlink_to(shared)
    after, _ = of_users(root, kind)
    assert 0 < sum(int(x) ** 2 for x in after - before) <= bound
    (root / "aaa" / "back").symlink_to(root / "user1")
    with pytest.raises(DataError, match="lead back into it"):
        of_users(root, kind)


def test_no_parquet_file_renames_the_labels_of_another(tmp_path: Path):
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        rows = {"image": [{"bytes": png(9), "path": None}], "label": [0]}
        shard = datasets.Dataset.from_dict(rows, features)
        shard.to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match="same class names"):
        open_dataset(tmp_path, image_shape=SHAPE, label_column="label")
    (tmp_path / "1.parquet").unlink()
    [record] = open_dataset(tmp_path, image_shape=SHAPE, label_column="label").records()
    assert record.label == "a"


def test_a_table_without_a_header_shows_no_record_in_the_error(tmp_path: Path):
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"private{suffix}"
        path.write_text(f"7{mark}the diagnosis of Jane\n8{mark}another\n")
        with pytest.raises(DataError, match="2 columns") as refused:
            open_text_dataset(path, encode=TOKENIZER.encode)
        assert "Jane" not in str(refused.value)
    path = tmp_path / "private.jsonl"
    path.write_text(json.dumps({"the diagnosis of Jane": 1}) + "\n")
    with pytest.raises(DataError, match="row 1") as refused:
        open_text_dataset(path, encode=TOKENIZER.encode).check()
    assert "Jane" not in str(refused.value)
