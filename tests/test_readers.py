"""Every format gives the same records, and the same ones again."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hyperdp.errors import DataError, UsageError
from hyperdp.private.readers import open_dataset
from hyperdp.private.readers.rows import as_text
from tests.reader_samples import (
    LABELS,
    LEVELS,
    SHAPE,
    USERS,
    WRITERS,
    picture,
    write_folder,
    write_npz,
    write_parquet_bytes,
)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_records_again_and_again(write, tmp_path):
    path, columns = write(tmp_path)
    dataset = open_dataset(path, image_shape=SHAPE, classes=("a", "b", "c"), **columns)
    assert dataset.listed() == len(LEVELS)
    for _ in range(2):
        records = list(dataset.records())
        got = {(round((record.image[0, 0, 0] + 1) * 127.5), record.label) for record in records}
        assert got == set(zip(LEVELS, LABELS, strict=True))
        assert all(record.image.shape == SHAPE for record in records)
        if dataset.units_column_present:
            assert [record.unit for record in records] == list(USERS)
        else:
            assert [record.unit for record in records] == [None] * len(LEVELS)
    assert dataset.labels_column_present


@pytest.mark.parametrize("shape", [(2, 9, 7), (2, 9, 7, 3), (2, 3, 9, 7), (2, 9, 7, 1)])
def test_arrays_may_be_grey_or_colour_channels_first_or_last(shape, tmp_path):
    np.savez(tmp_path / "d.npz", pixels=np.full(shape, 85, np.uint8))
    dataset = open_dataset(tmp_path / "d.npz", image_shape=(3, 9, 7), image_column="pixels")
    for record in dataset.records():
        np.testing.assert_allclose(record.image, np.full((3, 9, 7), 85 / 127.5 - 1), atol=1e-6)


def test_without_columns_there_are_neither_labels_nor_units(tmp_path):
    path, _ = write_parquet_bytes(tmp_path)
    dataset = open_dataset(path, image_shape=SHAPE)
    assert not dataset.labels_column_present
    assert {(record.label, record.unit) for record in dataset.records()} == {(None, None)}


def test_the_identity_is_the_place_however_it_is_spelled(tmp_path, monkeypatch):
    path, _ = write_npz(tmp_path)
    link = tmp_path / "link.npz"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    spelled = [path, link, "d.npz", str(tmp_path / "x" / ".." / "d.npz")]
    (tmp_path / "x").mkdir()
    names = {open_dataset(one, image_shape=SHAPE).identity_bytes() for one in spelled}
    assert names == {os.fsencode(path.resolve())}


def test_one_image_and_mixed_sizes_and_modes(tmp_path):
    picture(9).save(tmp_path / "1.png")
    assert len(list(open_dataset(tmp_path, image_shape=SHAPE).records())) == 1
    picture((9, 9, 9), (30, 11), "RGB").save(tmp_path / "2.jpg")
    picture((0, 0, 0, 9), (5, 90), "CMYK").save(tmp_path / "3.jpg")
    picture(257 * 9, (8, 8), "I;16").save(tmp_path / "4.tiff")
    records = list(open_dataset(tmp_path, image_shape=SHAPE).records())
    assert [record.image.shape for record in records] == [SHAPE] * 4


@pytest.mark.parametrize("invert", [False, True])
def test_a_transparent_value_of_sixteen_bits_is_black(tmp_path, invert):
    values = np.full((8, 8), 60_000, np.uint16)
    values[:, :4] = 30_000
    Image.fromarray(values).save(tmp_path / "1.png", transparency=30_000)
    [record] = open_dataset(tmp_path, image_shape=(1, 8, 8), invert=invert).records()
    shown = (65_535 - 60_000 if invert else 60_000) / 65_535 * 2 - 1
    np.testing.assert_allclose(record.image[0, :, :3], -1, atol=1e-6)
    np.testing.assert_allclose(record.image[0, :, 5:], shown, atol=0.01)


def test_what_file_managers_leave_is_no_record_whatever_is_in_it(tmp_path):
    write_folder(tmp_path)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "d" / name).write_bytes(b"no image")
    picture(9).save(tmp_path / "d" / "thumbs.db.png")
    picture(9).save(tmp_path / "d" / "Thumbs.png")
    assert open_dataset(tmp_path / "d", image_shape=SHAPE).listed() == 6
    assert len(list(open_dataset(tmp_path / "d", image_shape=SHAPE).records())) == 6


def test_links_back_into_a_folder_are_refused_and_loops_elsewhere_end(tmp_path):
    write_folder(tmp_path)
    folder, link = tmp_path / "d", tmp_path / "d" / "again"
    inside = next(path for path in folder.rglob("*.png"))
    for target in (folder, inside, inside.parent, tmp_path, folder / "gone.png"):
        link.symlink_to(target)
        with pytest.raises(DataError, match="lead back into it"):
            open_dataset(folder, image_shape=SHAPE)
        link.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "loop").symlink_to(elsewhere)
    picture(9).save(elsewhere / "1.png")
    link.symlink_to(elsewhere)
    assert open_dataset(folder, image_shape=SHAPE).listed() == 5
    (folder / ".store").mkdir()
    picture(9).save(folder / ".store" / "1.png")
    (folder / "stored.png").symlink_to(folder / ".store" / "1.png")
    (folder / "turning.png").symlink_to(folder / "turning.png")
    with pytest.raises(DataError, match="lead back into it"):
        open_dataset(folder, image_shape=SHAPE)
    (folder / "turning.png").unlink()
    assert open_dataset(folder, image_shape=SHAPE).listed() == 6


def test_a_budget_is_not_spent_on_nothing(tmp_path):
    write_folder(tmp_path)
    wrong = open_dataset(
        tmp_path / "d", image_shape=SHAPE, label_column="folder", classes=("cats",),
        skip_unreadable=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="all are left out"):
        wrong.check()
    counted: list[int] = []
    open_dataset(tmp_path / "d", image_shape=SHAPE).check(counted.append)
    for name in ("year=1", "P.PARQUET"):
        folder = tmp_path / f"of-{name}"
        (folder / "year=1").mkdir(parents=True)
        place = folder / (f"{name}/1.parquet" if name == "year=1" else name)
        place.write_bytes(b"whatever is in it")
        with pytest.raises(UsageError, match=r"in '.*' itself"):
            open_dataset(folder, image_shape=SHAPE)


def test_a_name_is_one_however_its_accent_is_spelt_and_a_list_is_none():
    assert as_text("Jose\u0301") == as_text("José") == "José"
    for nested in (["w", "v"], {"id": "w"}, ("w",), {"w"}, np.array(["w"])):
        assert as_text(nested) is None


def test_ids_that_are_no_text_are_refused_not_made_one(tmp_path):
    """Several users under one U+FFFD would be one unit of several people."""
    ids = [bytes([255, 254, i, 128]) for i in range(4)]
    assert [as_text(one) for one in ids] == [None] * 4
    assert as_text("käse".encode()) == "käse"
    path, _ = write_parquet_bytes(tmp_path)
    table = pq.read_table(path).slice(0, 4).append_column("id", pa.array(ids, pa.binary()))
    pq.write_table(table, path)
    with pytest.raises(DataError, match="unit it belongs to"):
        list(open_dataset(path, image_shape=SHAPE, unit_column="id").records())
    left = open_dataset(path, image_shape=SHAPE, unit_column="id", skip_unreadable=True)
    assert list(left.records()) == []


@given(st.one_of(st.integers(), st.booleans(), st.text(), st.floats(), st.none(), st.binary()))
def test_a_label_reads_the_same_from_python_and_numpy(value):
    text = as_text(value)
    assert as_text(float("nan")) is as_text(np.float32("nan")) is as_text(" ") is None
    assert text is None or text == text.strip() != ""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        assert as_text(float(value)) == as_text(np.int64(value)) == text == str(value)
