"""The same four records in every format that the readers know."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHAPE = (1, 8, 8)
LEVELS = (0, 85, 170, 255)
LABELS = ("a", "b", "a", "c")
USERS = ("u1", "u1", "u2", "u2")


def picture(level, size=(8, 8), mode="L"):
    return Image.new(mode, size, level)


def png(level):
    stream = io.BytesIO()
    picture(level).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root):
    for number, (level, label) in enumerate(zip(LEVELS, LABELS, strict=True)):
        (root / "d" / label).mkdir(parents=True, exist_ok=True)
        picture(level).save(root / "d" / label / f"{number}.png")
    (root / "d" / ".hidden").write_text("not an image")
    return root / "d", {"label_column": "folder"}


def write_npz(root):
    images = np.stack([np.full((8, 8), level, np.uint8) for level in LEVELS])
    np.savez(root / "d.npz", images=images, y=np.array(LABELS), user=np.array(USERS))
    return root / "d.npz", {"label_column": "y", "unit_column": "user"}


def write_npz_fortran(root):
    images = np.stack([np.full((8, 8), level, np.uint8) for level in LEVELS])
    np.savez_compressed(root / "d.npz", x=np.asfortranarray(images), y=np.array(LABELS, "S"))
    return root / "d.npz", {"label_column": "y"}


def table(**extra):
    return pa.table({"label": LABELS, "user": USERS} | extra)


COLUMNS = {"label_column": "label", "unit_column": "user"}


def write_parquet_bytes(root):
    pq.write_table(table(image=[png(level) for level in LEVELS]), root / "d.parquet")
    return root / "d.parquet", COLUMNS


def write_parquet_struct(root):
    cells = [{"bytes": png(level), "path": None} for level in LEVELS[:3]]
    picture(LEVELS[3]).save(root / "last.png")
    cells.append({"bytes": None, "path": "last.png"})
    pq.write_table(table(image=cells), root / "d.parquet")
    return root / "d.parquet", COLUMNS


def write_parquet_shards(root):
    whole = table(image=[png(level) for level in LEVELS])
    (root / "d").mkdir()
    pq.write_table(whole.slice(0, 3), root / "d" / "0.parquet")
    pq.write_table(whole.slice(3), root / "d" / "1.parquet")
    return root / "d", COLUMNS


def write_paths(root):
    (root / "img").mkdir()
    for number, level in enumerate(LEVELS):
        picture(level).save(root / "img" / f"{number}.png")
    return [
        {"path": f"img/{number}.png", "label": label, "user": user}
        for number, (label, user) in enumerate(zip(LABELS, USERS, strict=True))
    ]


def write_csv(root, delimiter=",", name="d.csv"):
    rows = write_paths(root)
    with (root / name).open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return root / name, COLUMNS


def write_tsv(root):
    return write_csv(root, "\t", "d.tsv")


def write_jsonl(root):
    rows = write_paths(root)
    (root / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return root / "d.jsonl", COLUMNS


def write_huggingface(root):
    import datasets

    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b", "c"]),
        user=datasets.Value("string"),
    )
    cells = {
        "image": [{"bytes": png(level), "path": None} for level in LEVELS],
        "label": list(LABELS),
        "user": list(USERS),
    }
    datasets.Dataset.from_dict(cells, features).save_to_disk(root / "d")
    return root / "d", COLUMNS


def write_parquet_of_huggingface(root):
    import datasets

    path, columns = write_huggingface(root)
    datasets.load_from_disk(str(path)).to_parquet(root / "d.parquet")
    return root / "d.parquet", columns


def write_nested_lists(root):
    import datasets

    features = datasets.Features(
        image=datasets.Array2D((8, 8), "uint8"), label=datasets.Value("string")
    )
    images = [np.full((8, 8), level, np.uint8) for level in LEVELS]
    datasets.Dataset.from_dict({"image": images, "label": list(LABELS)}, features).save_to_disk(
        root / "d"
    )
    return root / "d", {"label_column": "label"}


WRITERS = [
    write_folder,
    write_npz,
    write_npz_fortran,
    write_parquet_bytes,
    write_parquet_struct,
    write_parquet_shards,
    write_csv,
    write_tsv,
    write_jsonl,
    write_huggingface,
    write_parquet_of_huggingface,
    write_nested_lists,
]
