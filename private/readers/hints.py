"""What the readers' errors advise, where their options are not there to be given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hyperdp.errors import DataError

OF_A_RELEASE = ("--label-column", "--image-column", "--text-column", "--skip-unreadable")


@contextmanager
def without_options(source: str, *, label: str | None = None) -> Iterator[None]:
    """Put advice that fits in place of advice to give an option of `hyperdp release`.

    Args:
        source: how the data was named, as `--public`.
        label: the option that names its column of labels; None where there is none.

    Raises:
        DataError: as the reader raised it, but for the advice.
    """
    try:
        yield
    except DataError as error:
        if not any(option in error.todo for option in OF_A_RELEASE):
            raise
        todo = f"Mend the data, or give {source} other records."
        if label is not None and "--label-column" in error.todo:
            todo = f"Name the right column with {label}, or mend the data."
        raise DataError(expected=error.expected, found=error.found, todo=todo) from None
