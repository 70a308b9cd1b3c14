"""What every command that reads private data shares: from its options to an opened dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperdp.cli._options import split_classes
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.private.readers import Dataset, TextDataset
    from hyperdp.text_bundle import TextBundle


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that say how data is read; see `hyperdp release --help` for each."""

    data: Path
    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    unit_column: str | None = None
    classes: str | None = None
    skip_unreadable: bool = False
    invert: bool = False


def open_checked(reading: Reading, bundle: Bundle | TextBundle) -> Dataset | TextDataset:
    """The dataset of a command line, tried by its reader before anything is spent.

    Raises:
        DataError: it cannot be read as asked. UsageError: an option of the other kind of bundle.
    """
    from hyperdp.text_bundle import TextBundle

    is_text = isinstance(bundle, TextBundle)
    for option, given, fits in (
        ("--image-column", reading.image_column is not None, not is_text),
        ("--invert", reading.invert, not is_text),
        ("--text-column", reading.text_column is not None, is_text),
    ):
        if given and not fits:
            raise UsageError(
                expected=f"options of a bundle of {'texts' if is_text else 'images'}",
                found=option,
                todo="Leave it out, or name another bundle with --bundle.",
            )
    dataset = _open(reading, bundle)
    dataset.check()
    return dataset


def _open(reading: Reading, bundle: Bundle | TextBundle) -> Dataset | TextDataset:
    from hyperdp.private.readers import open_dataset, open_text_dataset
    from hyperdp.text_bundle import TextBundle

    if isinstance(bundle, TextBundle):
        return open_text_dataset(
            reading.data,
            encode=bundle.base.tokenizer.encode,
            text_column=reading.text_column,
            label_column=reading.label_column,
            unit_column=reading.unit_column,
            classes=split_classes(reading.classes),
            skip_unreadable=reading.skip_unreadable,
        )
    return open_dataset(
        reading.data,
        image_shape=bundle.config.image_shape,
        image_column=reading.image_column,
        label_column=reading.label_column,
        unit_column=reading.unit_column,
        classes=split_classes(reading.classes),
        skip_unreadable=reading.skip_unreadable,
        invert=reading.invert,
    )
