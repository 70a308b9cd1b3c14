"""One record of a private dataset, as every reader yields it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A record: private, so it is only ever an argument and never shown.

    Attributes:
        image: float32 [C, H, W] in [-1, 1], at the bundle's shape.
        label: the record's class, or None where labels were not asked for.
        unit: the user the record belongs to, or None where every record is its own unit.
    """

    image: npt.NDArray[np.float32]
    label: str | None = None
    unit: str | None = None

    def __repr__(self) -> str:
        return "Record(private)"
