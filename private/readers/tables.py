"""Tables with a row a record, whatever their format; CSV and JSONL (Arrow's are in `arrow`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hyperdp.errors import DataError
from hyperdp.private.readers.rows import IMAGE_COLUMNS, Columns, Row, as_text, pick

Cells: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a format offers of itself.

    Attributes:
        path: the file or folder; relative image paths start at `base`.
        base: folder that image paths are relative to.
        columns: names of the columns; None where every row has keys of its own.
        class_names: for a column of class indices, the names that its schema declares.
        size: number of rows.
        read: yields the cells of every row, given the columns that are needed.
        tell: whether an error may show the columns' names.
    """

    path: Path
    base: Path
    columns: tuple[str, ...] | None
    class_names: Mapping[str, Sequence[str]]
    size: Callable[[], int]
    read: Callable[[list[str]], Iterator[Cells]]
    tell: bool = True


class TableRows:
    """The rows of any table.

    Where every row has keys of its own, what a row lacks is that row's fault alone, and its image
    is in the first of the usual columns that this row has: no record decides how others are read.

    Args:
        table: the format.
        columns: names of columns; see `rows.IMAGE_COLUMNS` for the default of the image.

    Raises:
        DataError: there is no such column.
    """

    usual: tuple[str, ...] = IMAGE_COLUMNS
    option = "--image-column"

    def __init__(self, table: Table, columns: Columns) -> None:
        self._table, self._image = table, columns.image
        self._label, self._unit = columns.label, columns.unit
        if table.columns is not None:
            self._image = self._pick(columns.image, table.columns, self.option)
            for name, option in ((self._label, "--label-column"), (self._unit, "--unit-column")):
                if name is not None:
                    self._pick(name, table.columns, option)

    def count(self) -> int:
        """Number of rows."""
        return self._table.size()

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        needed = [name for name in (self._image, self._label, self._unit) if name is not None]
        for number, cells in enumerate(self._table.read(list(dict.fromkeys(needed))), start=1):
            yield Row(
                where=f"row {number} of '{self._table.path}'",
                image=self._source(self._image_cell(cells)),
                label=self._text(cells, self._label),
                unit=self._text(cells, self._unit),
            )

    def _pick(self, asked: str | None, present: tuple[str, ...], option: str) -> str:
        return pick(
            asked,
            present,
            option=option,
            source=f"'{self._table.path}'",
            usual=self.usual,
            tell=self._table.tell,
        )

    def _image_cell(self, cells: Cells) -> object:
        wanted = self.usual if self._image is None else (self._image,)
        return next((cells[name] for name in wanted if name in cells), None)

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
            raise damaged(path, "UTF-8 CSV", error) from error

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
        tell=False,  # without a header, the first record stands in its place
    )


def json_lines(path: Path) -> Table:
    """Open a JSONL file: one object a line, each with keys of its own.

    Args:
        path: the file; image paths in it are relative to its folder.

    Returns:
        The table; nothing has been read.

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
        except (ValueError, RecursionError) as error:
            raise damaged(path, "JSONL (an object a line, UTF-8)", error) from error

    return Table(
        path=path,
        base=path.parent,
        columns=None,
        class_names={},
        size=lambda: sum(1 for _ in read([])),
        read=read,
    )


@contextmanager
def undamaged(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises inside means a damaged file; none of them promises its types."""
    try:
        yield
    except Exception as error:
        raise damaged(path, kind, error) from error


def damaged(path: Path, kind: str, error: Exception) -> DataError:
    """The error of a file that its library cannot read; tells the type of the library's alone."""
    return DataError(
        expected=f"'{path}' to be an undamaged {kind} file",
        found=f"something that cannot be read as one ({type(error).__name__})",
        todo="Write it again.",
    )
