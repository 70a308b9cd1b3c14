"""Open a private dataset of documents, and read it document by document.

A document is one cell of a table, or one `.txt` file of a folder. What is done with it:

- nothing in it, or blanks only: it counts, with v = 0, as a record that cannot be embedded does;
- longer than the bundle's text length (a line of 10 MB among them): its beginning is measured;
- control characters, right-to-left text, emoji: tokenised as they are, byte by byte where need be;
- unpaired surrogates of JSON escapes: U+FFFD;
- bytes that are not UTF-8, a missing cell, a cell that is no text: an error, as of every reader, or
  left out with `skip_unreadable`. Nothing else is dropped, and how many were is nowhere told.

What an error tells, and to whom: see `hyperdp.private.readers.dataset`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperdp.errors import DataError, UsageError
from hyperdp.private.embed import silent_logs
from hyperdp.private.readers.dataset import FOLDERS, TABLES, check_row, check_some, nothing
from hyperdp.private.readers.folder import kind_of, list_files
from hyperdp.private.readers.rows import TEXT_COLUMNS, Columns, Row, RowSource, as_text
from hyperdp.private.readers.tables import TableRows
from hyperdp.private.records import TextRecord

TEXT_FORMATS = (
    ".jsonl, .csv, .tsv, .parquet, a folder of .txt files or a Hugging Face dataset on disk"
)
LARGEST_CELL = 2**28  # characters of one CSV cell; the csv module stops at 131,072 by itself

OTHER = object()  # in place of a document: a file that is none

Encode = Callable[[str], NDArray[np.int64]]


class TextTableRows(TableRows):
    """The rows of any table, whose cells are documents."""

    usual = TEXT_COLUMNS
    option = "--text-column"

    def _source(self, cell: object) -> object:
        """The cell; binary columns, as Spark and Hive have them, hold UTF-8 more often than not."""
        with suppress(UnicodeDecodeError):
            return cell.decode("utf-8") if isinstance(cell, bytes) else cell
        return cell


class TextFolderRows:
    """The `.txt` files of a folder and of its sub-folders, hidden ones left out, in sorted order.

    Any other file is a record that cannot be read, as in a folder of images.

    Args:
        path: the folder.
        columns: `folder` as label or unit means the first-level sub-folder that a file lies in, as
            in a folder of images: of `alice/inbox/1.txt` it is `alice`.

    Raises:
        DataError: another column is asked for.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path, self._columns = path, columns
        for name in (columns.image, columns.label, columns.unit):
            if name not in {None, "folder"} or columns.image is not None:
                raise DataError(
                    expected="`folder` as the label or unit of a folder of .txt files",
                    found=f"the column {name!r}",
                    todo="Give a table instead, or leave the option out.",
                )
        self._files = list_files(path)

    def count(self) -> int:
        """Number of files."""
        return len(self._files)

    def rows(self) -> Iterator[Row]:
        """Yield one row a file; what is not UTF-8 stays bytes."""
        for file in self._files:
            relative = file.relative_to(self._path)
            folder = as_text(relative.parts[0]) if len(relative.parts) > 1 else None
            document: object = None  # a file that cannot be opened holds no text
            with suppress(OSError):
                document = file.read_bytes() if file.suffix.lower() == ".txt" else OTHER
            with suppress(UnicodeDecodeError):
                if isinstance(document, bytes):
                    document = document.decode("utf-8-sig")
            yield Row(
                where=f"'{relative}'",
                image=document,
                label=folder if self._columns.label else None,
                unit=folder if self._columns.unit else None,
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class TextDataset:
    """A private dataset of documents, opened; see `open_text_dataset`.

    Attributes:
        path: where it is, resolved.
        encode: document → tokens int64 [L].
        columns, classes, skip_unreadable: as of `hyperdp.private.readers.Dataset`.
    """

    path: Path
    encode: Encode
    columns: Columns
    classes: tuple[str, ...] | None
    skip_unreadable: bool
    _source: RowSource = field(compare=False)

    def documents(self) -> Iterator[tuple[str, Row]]:
        """The documents with their rows, one by one; every call starts afresh, in the same order.

        Raises:
            DataError: a document cannot be read, lacks its label or unit, or has a label outside
                `classes` (unless these are skipped); or the file itself is damaged.
        """
        for row in self._source.rows():
            try:
                yield self._document(row), row
            except DataError:
                if not self.skip_unreadable:
                    raise

    def records(self) -> Iterator[TextRecord]:
        """Tokenise the documents one by one, as `documents` reads them."""
        for document, row in self.documents():
            yield TextRecord(tokens=self.encode(document), label=row.label, unit=row.unit)

    def check(self, progress: Callable[[int], None] | None = None) -> None:
        """Read every document and keep none, so that a bad one is found before a budget is spent.

        Args:
            progress: called with the documents read.

        Raises:
            DataError: as `documents` does.
            UsageError: all of them are left out.
        """
        with silent_logs():  # a library's line of a document would tell how many are left out
            check_some(self.documents(), "document", progress)

    def listed(self) -> int:
        """Number of rows in the listing: private, for the operator's progress bar alone."""
        return self._source.count()

    def identity_bytes(self) -> bytes:
        """Bytes that tell this source from others, for the ledger's keyed hash: its path."""
        return os.fsencode(self.path)

    def _document(self, row: Row) -> str:
        check_row(row, self.columns, self.classes, "text")
        if row.image is OTHER:
            raise DataError(
                expected=f"{row.where} to be a .txt file",
                found="another suffix",
                todo="Convert it or take it out, or leave such files out with --skip-unreadable.",
            )
        if not isinstance(row.image, str):
            raise DataError(
                expected=f"{row.where} to be a text in UTF-8",
                found="bytes that are not" if isinstance(row.image, bytes) else "another type",
                todo="Convert it, or leave such records out with --skip-unreadable.",
            )
        return row.image


def open_text_dataset(
    path: str | Path,
    *,
    encode: Encode,
    text_column: str | None = None,
    label_column: str | None = None,
    unit_column: str | None = None,
    classes: tuple[str, ...] | None = None,
    skip_unreadable: bool = False,
) -> TextDataset:
    """Open a private dataset of documents: find its format and its columns; tokenise nothing yet.

    Args:
        path: `.jsonl`, `.csv`, `.tsv`, `.parquet` or a folder of them, a folder of `.txt` files, or
            a folder written by `datasets.Dataset.save_to_disk`.
        encode: document → tokens int64 [L], a function of that document alone.
        text_column: column of the documents; by default the first of `rows.TEXT_COLUMNS`.
        label_column: column of the labels; in a folder of files: `folder`.
        unit_column: column of the user that a document belongs to; in a folder of files: `folder`.
        classes: the legal labels; public, so they are told, never read from the data.
        skip_unreadable: leave out documents that cannot be read, instead of stopping.

    Returns:
        The dataset.

    Raises:
        UsageError: the path does not exist, holds nothing, is of no known format or a folder of
            several.
        DataError: no such column, or the file is damaged.
    """
    resolved = Path(path).resolve()
    columns = Columns(image=text_column, label=label_column, unit=unit_column)
    source = _open(resolved, Path(path), columns)
    if source.count() == 0:
        raise nothing(path, "document")
    return TextDataset(
        path=resolved,
        encode=encode,
        columns=columns,
        classes=classes,
        skip_unreadable=skip_unreadable,
        _source=source,
    )


def _open(path: Path, given: Path, columns: Columns) -> RowSource:
    if not path.exists():
        raise UsageError(
            expected=TEXT_FORMATS, found=f"nothing at '{given}'", todo="Check the path."
        )
    if path.is_dir():
        kind = kind_of(path, given)
        if kind == "files":
            return TextFolderRows(path, columns)
        return TextTableRows(FOLDERS[kind](path), columns)
    read = TABLES.get(path.suffix.lower())
    if read is None:
        raise UsageError(
            expected=TEXT_FORMATS,
            found=f"a file with the suffix '{path.suffix}'",
            todo="Convert it to one of these, or name the folder it is in.",
        )
    if path.stat().st_size == 0:
        raise nothing(given, "document")
    csv.field_size_limit(LARGEST_CELL)
    return TextTableRows(read(path), columns)
