"""What every format is read as before it becomes records: rows with an image, a label, a unit."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hyperdp.errors import DataError

# Where the image is looked for when no column is named; the first that exists is taken, in each
# row by itself where rows have keys of their own.
IMAGE_COLUMNS = ("image", "images", "img", "x", "file_name", "path", "file")
TEXT_COLUMNS = ("text", "body", "content", "document", "message")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns were asked for; None for the image means the first of `IMAGE_COLUMNS`.

    Of a text dataset, `image` is the column of documents, and `TEXT_COLUMNS` are looked through.
    """

    image: str | None = None
    label: str | None = None
    unit: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Row:
    """One row of a source, nothing decoded yet.

    Attributes:
        where: how an error names it.
        image: what `images.to_pixels` takes, or a document; None where the cell is empty.
        label: text of the label, None where it is missing or was not asked for.
        unit: text of the unit, None where it is missing or was not asked for.
    """

    where: str
    image: object
    label: str | None
    unit: str | None


class RowSource(Protocol):
    """One format. `rows` starts afresh at every call, always in the same order."""

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        ...

    def count(self) -> int:
        """Number of rows listed: private, for the operator's progress bar."""
        ...


def pick(
    asked: str | None,
    present: Sequence[str],
    *,
    option: str,
    source: str,
    usual: tuple[str, ...] = IMAGE_COLUMNS,
    tell: bool = True,
) -> str:
    """Find a column.

    Args:
        asked: the name given, or None to look through `usual`.
        present: names that the source has.
        option: the option that names it, for the error.
        source: how the error names the source.
        usual: names that are looked for when none is given; the first that exists is taken.
        tell: whether the error may show `present`; without a header, they are a record.

    Returns:
        The column's name.

    Raises:
        DataError: there is none of that name.
    """
    wanted = usual if asked is None else (asked,)
    other = "texts" if usual == IMAGE_COLUMNS else "images"
    for name in wanted:
        if name in present:
            return name
    raise DataError(
        expected=f"a column {' or '.join(map(repr, wanted))} in {source}",
        found="the columns " + ", ".join(map(repr, present))
        if tell
        else f"{len(present)} columns, none of that name",
        todo=f"Name {'one of them' if tell else 'the column'} with {option}"
        + (f"; {other} want a bundle of {other} (--bundle)." if asked is None else "."),
    )


def as_text(value: object) -> str | None:
    """The text of a label or unit, the same for 7, 7.0 and numpy's 7; None where it is missing.

    Args:
        value: a cell.

    Returns:
        Its text, its Unicode composed (NFC): as one file system or program spells an accent and as
        another does, it is one name. None for an empty cell (None, NaN, blanks), for a list or a
        struct, whose spelling would be one more user of the people in it, and for bytes that are
        not UTF-8: with U+FFFD in place of what they are, two users would become one.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    if value is None or isinstance(value, (Mapping, Set, list, tuple, np.ndarray)):
        return None
    return unicodedata.normalize("NFC", str(value).strip()) or None
