"""A picture of each cell's images beside the benchmark's rows, for its report."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hyperdp.eval.cells import Cell
from hyperdp.images import grid_picture

COLUMNS = 8
SHOWN = COLUMNS**2


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A folder with one PNG a cell: its first 64 images, 8 in a row, as they were drawn.

    Attributes:
        folder: made where it is missing. The pictures of `floor` show private records.
    """

    folder: Path

    def path(self, cell: Cell) -> Path:
        """Where a cell's picture lies."""
        words = [cell.private_set, cell.method]
        words += [] if cell.n is None else [f"n{cell.n}"]
        words += [] if cell.epsilon is None else [f"e{cell.epsilon:g}"]
        name = "--".join([*words, f"s{cell.seed}"])
        return self.folder / (re.sub(r"[^\w.=-]", "_", name) + ".png")

    def keep(self, cell: Cell, images: Tensor) -> None:
        """Writes a cell's picture, whole or not at all.

        Args:
            cell: whose.
            images: float32 [N, C, H, W] in [-1, 1]; nothing is written where N is 0.
        """
        if not len(images):
            return
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        grid_picture(images[:SHOWN], columns=COLUMNS, zoom=2).save(buffer, "PNG", optimize=True)
        part = path.with_suffix(".part")
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)  # noqa: PTH105 - a kill leaves the old picture or the new one

    def find(self, cell: Cell) -> bytes | None:
        """A cell's picture as PNG; None where it was not kept."""
        path = self.path(cell)
        return path.read_bytes() if path.is_file() else None


Keep = Callable[[Cell, Tensor], None]
