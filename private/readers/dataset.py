"""Open what people have, and read it record by record.

**What an error tells.** A record that cannot be read stops the run before any noise is drawn, so
nothing is released; the error goes to the operator, who may see the data anyway, and names the
record. A scheduler that keeps the exit status or the log then keeps one bit about one record: treat
these as private, or pass `skip_unreadable`. With it, a record that cannot be read contributes
nothing, exactly as if it were not there. Whether it can be read depends on that record alone, so
the sensitivity under add-remove stands; how many were left out is nowhere told. Under replace-one,
where n is public, leaving out would show in n: mend the data instead.

Whether there is any row at all is looked at first, from the listing, and whether any can be read,
before a budget is spent: nothing there is a usage error, which tells none from one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperdp.errors import DataError, UsageError
from hyperdp.private.embed import silent_logs
from hyperdp.private.readers.arrays import NpzRows
from hyperdp.private.readers.arrow import huggingface, parquet
from hyperdp.private.readers.folder import FolderRows, kind_of
from hyperdp.private.readers.images import Shape, to_pixels
from hyperdp.private.readers.rows import Columns, Row, RowSource
from hyperdp.private.readers.tables import (
    TableRows,
    delimited,
    json_lines,
)
from hyperdp.private.records import Record

FORMATS = "a folder of images, .npz, .parquet, .csv, .tsv, .jsonl or a Hugging Face dataset on disk"
TABLES = {
    ".parquet": parquet,
    ".csv": delimited,
    ".tsv": delimited,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
}
FOLDERS = {"hugging face": huggingface, "parquet": parquet}


@dataclass(frozen=True, kw_only=True, repr=False)
class Dataset:
    """A private dataset, opened; see `open_dataset`.

    Attributes:
        path: where it is, resolved.
        image_shape: (C, H, W) that every record is brought to.
        columns: what was asked for.
        classes: the legal labels, public, or None for any.
        skip_unreadable: leave out records that cannot be read instead of stopping.
        invert: dark becomes light in every record.
    """

    path: Path
    image_shape: Shape
    columns: Columns
    classes: tuple[str, ...] | None
    skip_unreadable: bool
    invert: bool
    _source: RowSource = field(compare=False)

    @property
    def labels_column_present(self) -> bool:
        """Whether every record carries a label."""
        return self.columns.label is not None

    @property
    def units_column_present(self) -> bool:
        """Whether every record carries the unit it belongs to."""
        return self.columns.unit is not None

    def records(self) -> Iterator[Record]:
        """Decode the records one by one; every call starts afresh, in the same order.

        Yields:
            The records.

        Raises:
            DataError: a record cannot be read, lacks its label or unit, or has a label outside
                `classes` (unless these are skipped); or the file itself is damaged.
        """
        for row in self._source.rows():
            try:
                yield self._record(row)
            except DataError:
                if not self.skip_unreadable:
                    raise

    def check(self, progress: Callable[[int], None] | None = None) -> None:
        """Read every record and keep none, so that a bad one is found before a budget is spent.

        Where records that cannot be read are left out, a file that is damaged as a whole is found.

        Args:
            progress: called with the records read.

        Raises:
            DataError: as `records` does.
            UsageError: all of them are left out.
        """
        with silent_logs():  # a library's line of a record would tell how many are left out
            check_some(self.records(), "image", progress)

    def listed(self) -> int:
        """Number of rows in the listing: private, for the operator's progress bar alone."""
        return self._source.count()

    def identity_bytes(self) -> bytes:
        """Bytes that tell this source from others, for the ledger's keyed hash: its path."""
        return os.fsencode(self.path)

    def _record(self, row: Row) -> Record:
        check_row(row, self.columns, self.classes, "image")
        pixels = to_pixels(row.image, self.image_shape, row.where, invert=self.invert)
        return Record(image=pixels, label=row.label, unit=row.unit)


def check_some(
    records: Iterable[object], noun: str, progress: Callable[[int], None] | None = None
) -> None:
    """Takes all records, and raises UsageError where there are none: a budget would buy noise."""
    read = 0
    for _ in records:
        read += 1
        if progress is not None and read % 32 == 0:
            progress(read)
    if not read:
        raise UsageError(
            expected=f"at least one {noun} that can be read as asked",
            found="none: all are left out by --skip-unreadable",
            todo="Run without it, and see what the first one lacks; nothing has been spent.",
        )


def check_row(row: Row, columns: Columns, classes: tuple[str, ...] | None, noun: str) -> None:
    """Raises DataError where a row lacks what was asked for, or has a label outside `classes`."""
    if row.image is None:
        raise _missing({"image": "an image"}.get(noun, f"a {noun}"), columns.image, noun, row.where)
    if columns.unit is not None and row.unit is None:
        raise _missing("the unit it belongs to", columns.unit, "unit", row.where)
    if columns.label is not None and row.label is None:
        raise _missing("a label", columns.label, "label", row.where)
    if row.label is not None and classes is not None and row.label not in classes:
        raise DataError(
            expected=f"the label of {row.where} to be one of the {len(classes)} classes",
            found="another label",
            todo="Add it to --classes, mend it, or leave such records out with --skip-unreadable.",
        )


def open_dataset(
    path: str | Path,
    *,
    image_shape: Shape,
    image_column: str | None = None,
    label_column: str | None = None,
    unit_column: str | None = None,
    classes: tuple[str, ...] | None = None,
    skip_unreadable: bool = False,
    invert: bool = False,
) -> Dataset:
    """Open a private dataset: find its format and its columns; decode nothing yet.

    Args:
        path: a folder of images (flat, or a sub-folder a class), `.npz`, `.parquet` or a folder of
            them, `.csv` / `.tsv` / `.jsonl` with a column of paths, or a folder written by
            `datasets.Dataset.save_to_disk`.
        image_shape: (C, H, W) of the bundle.
        image_column: column (array of `.npz`) of the images; by default the first of
            `rows.IMAGE_COLUMNS` that exists.
        label_column: column of the labels; None for no labels. In a folder of images: `folder`.
        unit_column: column of the user that a record belongs to; None if every record is its own
            unit. In a folder of images: `folder`.
        classes: the legal labels; public, so they are told, never read from the data.
        skip_unreadable: leave out records that cannot be read, instead of stopping at the first.
        invert: make dark light and light dark in every record, whatever is in it.

    Returns:
        The dataset.

    Raises:
        UsageError: the path does not exist, holds nothing, is of no known format or a folder of
            several; a bundle that is neither grey nor RGB.
        DataError: no such column, or the file is damaged.
    """
    if image_shape[0] not in {1, 3}:
        raise UsageError(
            expected="a bundle of grey (1) or RGB (3) images",
            found=f"{image_shape[0]} channels",
            todo="Use another bundle.",
        )
    resolved = Path(path).resolve()
    columns = Columns(image=image_column, label=label_column, unit=unit_column)
    source = _open(resolved, Path(path), columns)
    if source.count() == 0:
        raise nothing(path)
    return Dataset(
        path=resolved,
        image_shape=image_shape,
        columns=columns,
        classes=classes,
        skip_unreadable=skip_unreadable,
        invert=invert,
        _source=source,
    )


def _open(path: Path, given: Path, columns: Columns) -> RowSource:
    """Choose the format by what is there: the kind of folder, or the file's suffix."""
    if not path.exists():
        raise UsageError(
            expected=FORMATS,
            found=f"nothing at '{given}'",
            todo="Check the path.",
        )
    if path.is_dir():
        return _open_folder(path, given, columns)
    if path.suffix.lower() == ".npz":
        return NpzRows(path, columns)
    read = TABLES.get(path.suffix.lower())
    if read is None:
        raise UsageError(
            expected=FORMATS,
            found=f"a file with the suffix '{path.suffix}'",
            todo="Convert it to one of these, or name the folder it is in.",
        )
    if path.stat().st_size == 0:
        raise nothing(given)
    return TableRows(read(path), columns)


def _open_folder(path: Path, given: Path, columns: Columns) -> RowSource:
    kind = kind_of(path, given)
    if kind == "files":
        return FolderRows(path, columns)
    return TableRows(FOLDERS[kind](path), columns)


def nothing(path: str | Path, noun: str = "image") -> UsageError:
    """The error of a path with no record of a bundle's kind in it."""
    other = "images" if noun == "document" else "texts"
    return UsageError(
        expected=f"a dataset with at least one {noun}",
        found=f"none in '{path}'",
        todo=f"Check the path; {other} want a bundle of {other} (--bundle).",
    )


def _missing(what: str, column: str | None, option: str, where: str) -> DataError:
    return DataError(
        expected=f"{where} to have {what}" + (f" (column {column!r})" if column else ""),
        found="none",
        todo=f"Fill it in, name its column with --{option}-column, or leave such records out with "
        "--skip-unreadable.",
    )
