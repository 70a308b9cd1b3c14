"""Tables with a row a record: Parquet, CSV, JSONL, and a Hugging Face dataset on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet

from hyperdp.errors import DataError
from hyperdp.private.readers.rows import IMAGE_COLUMNS, Columns, Row, as_text, pick

# Encoded images of a few megabytes each: this bounds what is held at once.
BATCH = 32

Cells: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a format offers of itself.

    Attributes:
        path: the file or folder; relative image paths start at `base`.
        base: folder that image paths are relative to.
        columns: names of the columns.
        class_names: for a column of class indices, the names that its schema declares.
        size: number of rows.
        read: yields the cells of every row, given the columns that are needed.
    """

    path: Path
    base: Path
    columns: tuple[str, ...]
    class_names: Mapping[str, Sequence[str]]
    size: Callable[[], int]
    read: Callable[[list[str]], Iterator[Cells]]


class TableRows:
    """The rows of any table.

    Args:
        table: the format.
        columns: names of columns; see `rows.IMAGE_COLUMNS` for the default of the image.

    Raises:
        DataError: there is no such column.
    """

    usual: tuple[str, ...] = IMAGE_COLUMNS
    option = "--image-column"

    def __init__(self, table: Table, columns: Columns) -> None:
        source = f"'{table.path}'"
        self._table = table
        self._image = pick(
            columns.image, table.columns, option=self.option, source=source, usual=self.usual
        )
        for asked, option in ((columns.label, "--label-column"), (columns.unit, "--unit-column")):
            if asked is not None:
                pick(asked, table.columns, option=option, source=source)
        self._label, self._unit = columns.label, columns.unit

    def count(self) -> int:
        """Number of rows."""
        return self._table.size()

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        needed = [name for name in (self._image, self._label, self._unit) if name is not None]
        for number, cells in enumerate(self._table.read(list(dict.fromkeys(needed))), start=1):
            yield Row(
                where=f"row {number} of '{self._table.path}'",
                image=self._source(cells.get(self._image)),
                label=self._text(cells, self._label),
                unit=self._text(cells, self._unit),
            )

    def _text(self, cells: Cells, name: str | None) -> str | None:
        if name is None:
            return None
        value = cells.get(name)
        names = self._table.class_names.get(name)
        if names is not None and isinstance(value, int):
            return as_text(names[value]) if 0 <= value < len(names) else None
        return as_text(value)

    def _source(self, cell: object) -> object:
        """Of an image cell, which may be a struct of bytes and path, what `to_pixels` takes."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        return self._table.base / cell if isinstance(cell, str) and cell else cell or None


def parquet(path: Path) -> Table:
    """Open a Parquet file, or a folder of them as one table.

    Args:
        path: the file, or the folder that holds `*.parquet`.

    Returns:
        The table; nothing but the files' footers has been read.

    Raises:
        DataError: a file is damaged or its columns differ from the first one's.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    with _undamaged(path, "Parquet"):
        footers = [pyarrow.parquet.read_metadata(file) for file in files]
        schemas = [pyarrow.parquet.read_schema(file) for file in files]
        class_names = _declared_names(schemas[0].metadata or {})
    if any(schema.names != schemas[0].names for schema in schemas):
        raise DataError(
            expected=f"every Parquet file in '{path}' to have the same columns",
            found="files that differ",
            todo="Put them in one folder a table.",
        )

    def read(needed: list[str]) -> Iterator[Cells]:
        for file in files:
            with _undamaged(file, "Parquet"):
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH, columns=needed)
                for batch in batches:
                    yield from _cells(batch)

    return Table(
        path=path,
        base=path if path.is_dir() else path.parent,
        columns=tuple(schemas[0].names),
        class_names=class_names,
        size=lambda: sum(footer.num_rows for footer in footers),
        read=read,
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
    with _undamaged(path, kind):
        dataset: Any = datasets.load_from_disk(str(path))
        features = dataset.features
        # Its file is memory-mapped, and Arrow trusts it: a damaged one would end the process.
        dataset.data.table.validate(full=True)

    def read(needed: list[str]) -> Iterator[Cells]:
        with _undamaged(path, kind):
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


def delimited(path: Path) -> Table:
    """Open a CSV (or, by its suffix, TSV) file whose first line names the columns.

    Args:
        path: the file; image paths in it are relative to its folder.

    Returns:
        The table; only the first line has been read.

    Raises:
        DataError: it is not UTF-8 text, or a line cannot be read.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","

    def lines() -> Iterator[dict[str | Any, str | Any]]:
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
                yield dict.fromkeys(reader.fieldnames or ())
                yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise _damaged(path, "UTF-8 CSV", error) from error

    def read(_: list[str]) -> Iterator[Cells]:
        rows = lines()
        next(rows)
        yield from rows

    return Table(
        path=path,
        base=path.parent,
        columns=tuple(next(lines())),
        class_names={},
        size=lambda: sum(1 for _ in read([])),
        read=read,
    )


def json_lines(path: Path) -> Table:
    """Open a JSONL file: one object a line, the first one's keys are the columns.

    Args:
        path: the file; image paths in it are relative to its folder.

    Returns:
        The table; only the first line has been read.

    Raises:
        DataError: a line is not a JSON object.
    """

    def read(_: list[str]) -> Iterator[Cells]:
        try:
            with path.open(encoding="utf-8-sig") as stream:
                for line in stream:
                    if line.strip():
                        cells = json.loads(line)
                        if not isinstance(cells, dict):
                            raise ValueError("not an object")
                        yield cells
        except ValueError as error:
            raise _damaged(path, "JSONL (an object a line, UTF-8)", error) from error

    return Table(
        path=path,
        base=path.parent,
        columns=tuple(next(read([]), {})),
        class_names={},
        size=lambda: sum(1 for _ in read([])),
        read=read,
    )


def _cells(batch: Any) -> list[Cells]:
    """The rows of an Arrow batch or table, once Arrow has looked through all of it."""
    batch.validate(full=True)
    rows: list[Cells] = batch.to_pylist()
    return rows


@contextmanager
def _undamaged(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises inside means a damaged file; none of them promises its types."""
    try:
        yield
    except Exception as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(
        expected=f"'{path}' to be an undamaged {kind} file",
        found=f"something that cannot be read as one ({type(error).__name__})",
        todo="Write it again.",
    )
