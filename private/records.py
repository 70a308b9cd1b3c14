"""What a reader hands to the private stage: one record at a time, and nothing about the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Record:
    """One private record.

    Its representation shows no value, so that a record in an exception or a log reveals nothing.

    Attributes:
        image: float32 [C, H, W] in [-1, 1], already of the bundle's image shape.
        label: the record's class as text, or None where the data has no labels.
        unit: the user whom the record belongs to, as a text that is not blank, or None where every
            record is its own unit.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: str | None = field(default=None, repr=False)
    unit: str | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TextRecord:
    """One private document; shows no value, as `Record`.

    Attributes:
        tokens: int64 [L], as `hyperdp.text.DocumentTokenizer.encode` gives them.
        label, unit: as of `Record`.
    """

    tokens: NDArray[np.int64] = field(repr=False)
    label: str | None = field(default=None, repr=False)
    unit: str | None = field(default=None, repr=False)


AnyRecord: TypeAlias = Record | TextRecord
