"""Every bad input that a dataset can be: expected, found, what to do, exit code 2."""

import io
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyperdp.errors import DataError, UsageError
from hyperdp.private.readers import open_dataset
from tests.reader_samples import (
    LEVELS,
    SHAPE,
    WRITERS,
    picture,
    png,
    table,
    write_csv,
    write_folder,
    write_huggingface,
    write_jsonl,
    write_npz,
    write_parquet_bytes,
    write_parquet_shards,
)


def test_a_folder_that_may_not_be_listed_is_refused_not_skipped(tmp_path, monkeypatch):
    path, _ = write_folder(tmp_path)

    def forbidden(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", forbidden)
    error = refused(path, skip_unreadable=True)
    assert str(path / "b") in error.expected
    assert error.found == "Permission denied"


def refused(path, kind=DataError, **options):
    """Open and read to the end; return the error that this must end with."""
    with pytest.raises(kind) as caught:
        list(open_dataset(path, image_shape=SHAPE, **options).records())
    error = caught.value
    assert error.expected
    assert error.found
    assert error.todo.endswith(".")
    assert error.exit_code == 2
    return error


def empty_folder(root):
    (root / "d" / "sub").mkdir(parents=True)
    return root / "d"


def empty_npz(root):
    np.savez(root / "d.npz", images=np.zeros((0, 8, 8)))
    return root / "d.npz"


def empty_parquet(root):
    pq.write_table(table(image=[b""] * 4).slice(0, 0), root / "d.parquet")
    return root / "d.parquet"


def empty_csv(root):
    (root / "d.csv").write_text("path,label\n")
    return root / "d.csv"


def empty_file(root):
    (root / "d.jsonl").write_text("")
    return root / "d.jsonl"


def blank_jsonl(root):
    (root / "d.jsonl").write_text("\n\n")
    return root / "d.jsonl"


@pytest.mark.parametrize(
    "write", [empty_folder, empty_npz, empty_parquet, empty_csv, empty_file, blank_jsonl]
)
def test_a_path_with_nothing_in_it_is_a_usage_error(write, tmp_path):
    assert "none in" in refused(write(tmp_path), UsageError).found


def test_what_is_not_there_or_of_no_known_format(tmp_path):
    assert "nothing at" in refused(tmp_path / "no", UsageError).found
    (tmp_path / "d.zip").write_text("x")
    assert ".zip" in refused(tmp_path / "d.zip", UsageError).found
    with pytest.raises(UsageError, match="4 channels"):
        open_dataset(tmp_path, image_shape=(4, 8, 8))


def test_several_splits_ask_for_one(tmp_path):
    import datasets

    path, _ = write_huggingface(tmp_path)
    whole = datasets.load_from_disk(str(path))
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "both")
    assert "/train" in refused(tmp_path / "both", UsageError).todo
    assert open_dataset(tmp_path / "both" / "train", image_shape=SHAPE).listed() == 4


@pytest.mark.parametrize(
    ("name", "data"),
    [("notes.txt", b"hello"), ("cut.png", png(7)[:50]), ("empty.png", b"")],
)
def test_a_file_that_cannot_be_read_is_named_or_left_out(name, data, tmp_path):
    path, _ = write_folder(tmp_path)
    (path / name).write_bytes(data)
    assert name in refused(path).expected
    left = open_dataset(path, image_shape=SHAPE, skip_unreadable=True)
    assert len(list(left.records())) == 4


def test_a_pipe_is_not_waited_for(tmp_path):
    path, _ = write_folder(tmp_path)
    os.mkfifo(path / "pipe.png")
    assert "no regular file" in refused(path).found


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_column_that_is_not_there_is_named_with_those_that_are(write, tmp_path):
    path, columns = write(tmp_path)
    for option in ("image_column", "label_column", "unit_column"):
        error = refused(path, **{option: "nope"})
        assert "nope" in error.expected
        if path.suffix not in {".csv", ".tsv", ".jsonl"}:  # of which a record's words may be names
            assert repr(columns["label_column"]) in error.found
        assert f"--{option.replace('_', '-')}" in error.todo


def unlabelled(root, missing, name="d.parquet"):
    labels = pa.array(["a", missing, "b", "c"])
    pq.write_table(pa.table({"image": [png(1)] * 4, "label": labels}), root / name)
    return root / name


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_label_is_named_or_left_out(missing, tmp_path):
    path = unlabelled(tmp_path, missing)
    error = refused(path, label_column="label")
    assert "row 2" in error.expected
    assert "a label" in error.expected
    left = open_dataset(path, image_shape=SHAPE, label_column="label", skip_unreadable=True)
    assert [record.label for record in left.records()] == ["a", "b", "c"]
    assert "unit" in refused(path, unit_column="label").expected


def test_in_a_folder_a_label_is_missing_where_there_is_no_sub_folder(tmp_path):
    path, columns = write_folder(tmp_path)
    picture(1).save(path / "z.png")
    assert "z.png" in refused(path, **columns).expected


def test_a_class_index_outside_the_declared_ones_is_a_missing_label(tmp_path):
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    cells = {"image": [{"bytes": png(1), "path": None}] * 2, "label": [0, -1]}
    datasets.Dataset.from_dict(cells, features).save_to_disk(tmp_path / "d")
    assert "a label" in refused(tmp_path / "d", label_column="label").expected


def test_a_label_outside_the_classes_is_refused_without_being_told(tmp_path):
    path, columns = write_npz(tmp_path)
    error = refused(path, classes=("a", "b"), **columns)
    assert "images[3]" in error.expected
    assert "'c'" not in str(error)


def test_an_empty_cell_is_a_missing_image(tmp_path):
    for number, cell in enumerate([None, b"", {"bytes": None, "path": None}]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": pa.array([cell])}), path)
        assert "an image" in refused(path).expected


@pytest.mark.parametrize("cell", [3, 2.5, [[1, 2], [3]], [[[1] * 5] * 5] * 5])
def test_a_cell_that_is_no_image_is_refused(cell, tmp_path):
    pq.write_table(pa.table({"image": [cell]}), tmp_path / "d.parquet")
    assert "row 1" in refused(tmp_path / "d.parquet").expected


def test_a_path_in_a_table_that_leads_nowhere(tmp_path):
    for cell in ("gone.png", "https://example.org/a.png", "x" * 5000, "a\0b"):
        (tmp_path / "d.jsonl").write_text(json.dumps({"path": cell}))
        assert "row 1" in refused(tmp_path / "d.jsonl").expected


def save_npz(root, **arrays):
    np.savez(root / "d.npz", **arrays)
    return root / "d.npz"


def test_nan_in_an_npz_names_the_image(tmp_path):
    images = np.zeros((3, 8, 8))
    images[1, 2, 3] = np.nan
    path = save_npz(tmp_path, images=images)
    error = refused(path)
    assert "images[1]" in error.expected
    assert error.found == "NaN or infinity"
    assert len(list(open_dataset(path, image_shape=SHAPE, skip_unreadable=True).records())) == 2


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((3, 64))}, "2 dimensions"),
        ({"pixels": np.zeros((3, 8, 8))}, "'pixels'"),
        ({"images": np.array([None, {}])}, "Python objects"),
        ({"images": np.zeros(3, [("a", "f4")])}, "dimensions"),
        ({"images": np.zeros(3, [("あ", "f4")])}, "structured"),
        ({"images": np.zeros((3, 0, 8))}, "width or height 0"),
        ({"images": np.zeros((3, 8, 8)), "y": np.zeros(2)}, "another length"),
        ({"images": np.zeros((3, 8, 8)), "y": np.zeros((3, 2))}, "2 dimensions"),
        ({"images": np.zeros((3, 8, 8)), "y": np.array([1, None, "x"])}, "Python objects"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_npz_files_that_cannot_be_used(arrays, words, tmp_path):
    path = save_npz(tmp_path, **arrays)
    assert words in refused(path, label_column="y" if "y" in arrays else None).found


def test_a_600_megapixel_array_is_refused_by_its_header(tmp_path):
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1, 30_000, 20_000)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", stream.getvalue())
    with pytest.raises(DataError, match="declares more"):
        open_dataset(tmp_path / "d.npz", image_shape=SHAPE)
    header["shape"] = (9, 8, 8)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("images.npy", stream.getvalue())
    assert "EOFError" in refused(tmp_path / "e.npz", skip_unreadable=True).found


def cut(data):
    return data[: len(data) // 2]


def scratched(data):
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 8 + data[middle + 8 :]


@pytest.mark.parametrize(
    ("write", "damage"),
    [
        (write_npz, cut),
        (write_parquet_bytes, cut),
        (write_csv, scratched),
        (write_jsonl, scratched),
    ],
)
def test_a_damaged_file_is_refused_even_where_records_may_be_left_out(write, damage, tmp_path):
    path, _ = write(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert path.name in refused(path, skip_unreadable=True).expected


def test_any_flipped_byte_of_an_npz_is_noticed_or_changes_nothing(tmp_path):
    path, _ = write_npz(tmp_path)
    data = path.read_bytes()
    refusals = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            records = list(open_dataset(path, image_shape=SHAPE).records())
        except DataError:
            refusals += 1
        else:
            levels = [round((record.image.mean() + 1) * 127.5) for record in records]
            assert levels == list(LEVELS)
    assert refusals > 4 * 64


def test_more_damage_to_tables(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"path": "a.png"}\n[1]\n')
    (tmp_path / "a.png").write_bytes(png(1))
    assert "JSONL" in refused(tmp_path / "d.jsonl").expected
    path, _ = write_parquet_shards(tmp_path)
    pq.write_table(pa.table({"other": [1]}), path / "2.parquet")
    assert "files that differ" in refused(path).found
    path, _ = write_huggingface(tmp_path / "hf")
    next(path.glob("*.arrow")).write_bytes(b"")
    assert "Hugging Face" in refused(path).expected


def test_text_that_is_no_utf8_is_damage_and_is_not_shown(tmp_path):
    labels = pa.array([b"secret \x8e"] * 4, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [png(level) for level in LEVELS], "label": labels}),
                   tmp_path / "d.parquet")  # fmt: skip
    dataset = open_dataset(tmp_path / "d.parquet", image_shape=SHAPE, label_column="label")
    with pytest.raises(DataError, match="undamaged Parquet") as caught:
        list(dataset.records())
    assert "secret" not in str(caught.value)
