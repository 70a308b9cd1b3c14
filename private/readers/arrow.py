"""Tables that Arrow reads: Parquet, and a Hugging Face dataset on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from hyperdp.errors import DataError
from hyperdp.private.readers.tables import Cells, Table, undamaged

# Encoded images of a few megabytes each: this bounds what is held at once.
BATCH = 32


def parquet(path: Path) -> Table:
    """Open a Parquet file, or a folder of them as one table.

    Args:
        path: the file, or the folder that holds `*.parquet`.

    Returns:
        The table; nothing but the files' footers has been read.

    Raises:
        DataError: a file is damaged, or its columns or the class names that it declares differ from
            another's.
    """
    files = shards(path) if path.is_dir() else [path]
    with undamaged(path, "Parquet"):
        footers = [pyarrow.parquet.read_metadata(file) for file in files]
        schemas = [pyarrow.parquet.read_schema(file) for file in files]
        declared = [_declared_names(schema.metadata or {}) for schema in schemas]
    if any(schema.names != schemas[0].names for schema in schemas):
        raise _unlike(path, "columns")
    if any(names != declared[0] for names in declared):  # or one file would rename others' labels
        raise _unlike(path, "class names declared")

    def read(needed: list[str]) -> Iterator[Cells]:
        for file in files:
            with undamaged(file, "Parquet"):
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH, columns=needed)
                for batch in batches:
                    yield from _cells(batch)

    return Table(
        path=path,
        base=path if path.is_dir() else path.parent,
        columns=tuple(schemas[0].names),
        class_names=declared[0],
        size=lambda: sum(footer.num_rows for footer in footers),
        read=read,
    )


def shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder, hidden ones left out, in the order of their names."""
    found = folder.glob("*.parquet")
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def _unlike(path: Path, what: str) -> DataError:
    return DataError(
        expected=f"every Parquet file in '{path}' to have the same {what}",
        found="files that differ",
        todo="Put them in one folder a table.",
    )


def _declared_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Class names that the `datasets` library left in a Parquet file's schema."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def huggingface(path: Path) -> Table:
    """Open a dataset saved with `datasets.Dataset.save_to_disk`.

    Args:
        path: its folder.

    Returns:
        The table, memory-mapped.

    Raises:
        DataError: it is damaged.
    """
    import datasets  # noqa: PLC0415 - takes seconds, and few have such a folder

    kind = "Hugging Face dataset"
    with undamaged(path, kind):
        dataset: Any = datasets.load_from_disk(str(path))
        features = dataset.features
        # Its file is memory-mapped, and Arrow trusts it: a damaged one would end the process.
        dataset.data.table.validate(full=True)

    def read(needed: list[str]) -> Iterator[Cells]:
        with undamaged(path, kind):
            for batch in dataset.select_columns(needed).with_format("arrow").iter(batch_size=BATCH):
                yield from _cells(batch)

    return Table(
        path=path,
        base=path,
        columns=tuple(features),
        class_names={
            name: feature.names
            for name, feature in features.items()
            if isinstance(feature, datasets.ClassLabel)
        },
        size=lambda: len(dataset),
        read=read,
    )


def _cells(batch: Any) -> list[Cells]:
    """The rows of an Arrow batch or table, once Arrow has looked through all of it."""
    batch.validate(full=True)
    rows: list[Cells] = batch.to_pylist()
    return rows
