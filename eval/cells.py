"""The cells of a table: which of them are wanted, and measuring those that have no row yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperdp.errors import UsageError
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.study import Progress


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table; n and ε are None where the method does not depend on them."""

    private_set: str
    method: str
    n: int | None
    epsilon: float | None
    seed: int


OnCell = Callable[[Cell, int, int], Progress]
"""Called with a cell, its number and how many there are; returns the cell's own callback."""


@dataclass(frozen=True, kw_only=True)
class Only:
    """Which cells of a recipe are measured now; the others stay for another day.

    Attributes:
        n: numbers of records. epsilon: budgets. seeds: of cells that have an n. () is all of them.
    """

    n: tuple[int, ...] = ()
    epsilon: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    def keeps(self, cell: Cell) -> bool:
        """Whether a cell is one of them; one that depends on no number of records always is."""
        return cell.n is None or (
            (not self.n or cell.n in self.n)
            and (not self.epsilon or cell.epsilon is None or cell.epsilon in self.epsilon)
            and (not self.seeds or cell.seed in self.seeds)
        )

    def check(self, *, n: list[int], epsilon: list[float], seeds: list[int]) -> None:
        """Refuses what a recipe does not have.

        Args:
            n: of the recipe.
            epsilon: of the recipe.
            seeds: of the recipe.

        Raises:
            UsageError: a value that is not among them.
        """
        asked = (("--size", self.n, n), ("--epsilon", self.epsilon, epsilon),
                 ("--seed", self.seeds, seeds))  # fmt: skip
        for option, wanted, known in asked:
            if unknown := [value for value in wanted if value not in known]:
                raise UsageError(
                    expected=f"{option} out of the recipe's: {', '.join(f'{v:g}' for v in known)}",
                    found=", ".join(f"{v:g}" for v in unknown),
                    todo="Choose out of these, or copy the recipe and change it.",
                )


def measure_cells(
    wanted: Iterable[Cell],
    path: Path,
    *,
    bench: str,
    delta: float,
    base: Callable[[Cell], str],
    figures: Callable[[Cell, Progress], dict[str, float]],
    on_cell: OnCell | None = None,
    device: torch.device | None = None,
    settings: Callable[[Cell], str] | None = None,
) -> None:
    """Measures the cells that have no row yet, and writes each as soon as it is measured.

    The file is read before each cell, so that several processes may share the cells of one recipe:
    what another has measured meanwhile is passed over.

    Args:
        wanted: cells.
        path: JSONL of the rows.
        bench: name of the recipe.
        delta: of every budget.
        base: cell → what its rows say of the bundle and its settings.
        figures: (cell, progress) → metric → value.
        on_cell: see `OnCell`.
        device: where networks compute, for the rows to name.
        settings: cell → digest of its settings, where `base` does not name them.
    """
    todo = list(wanted)
    for number, cell in enumerate(todo):
        name, made_with = base(cell), "" if settings is None else settings(cell)
        key = (bench, name, cell.private_set, cell.method, cell.n, cell.epsilon, cell.seed)
        held = [row for row in read_rows(path) if row_key(row) == key]
        if any(row.settings in ("", made_with) for row in held):
            continue
        progress = on_cell(cell, number, len(todo)) if on_cell is not None else _silent
        began = time.monotonic()
        found = figures(cell, progress)
        rows = [
            Row(
                bench=bench,
                base=name,
                private_set=cell.private_set,
                method=cell.method,
                n=cell.n,
                epsilon=cell.epsilon,
                delta=None if cell.epsilon is None else delta,
                seed=cell.seed,
                metric=metric,
                value=value,
                seconds=round(time.monotonic() - began, 1),
                peak_rss_mb=peak_rss_mb(),
                settings=made_with,
                **provenance(device),
            )
            for metric, value in found.items()
        ]
        append_rows(path, rows, once=True)


def row_key(row: Row) -> tuple[str, str, str, str, int | None, float | None, int]:
    """What tells the cell of a row from any other: bench, base, set, method, n, ε, seed."""
    return row.bench, row.base, row.private_set, row.method, row.n, row.epsilon, row.seed


def _silent(done: int, total: int) -> None:
    """No progress."""
