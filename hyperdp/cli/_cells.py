"""What the commands that measure the cells of a recipe share: which cells, and what they print."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from hyperdp.eval.cells import Cell, OnCell, Only

RowsFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="JSONL of the rows; by default BENCH.jsonl in the package's own eval/results.",
        show_default=False,
    ),
]
OnlySets = Annotated[list[str] | None, typer.Option(help="Only this private set; may be repeated.")]
OnlyMethods = Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")]
OnlySizes = Annotated[
    list[int] | None,
    typer.Option("--size", "-n", help="Only this number of records; may be repeated."),
]
OnlyEpsilons = Annotated[
    list[float] | None, typer.Option("--epsilon", "-e", help="Only this ε; may be repeated.")
]
OtherBundle = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        "-b",
        help="Name or folder of the bundle; the recipe's own by default, or glyphs.",
        show_default=False,
    ),
]
OnlySeeds = Annotated[list[int] | None, typer.Option("--seed", help="Only this seed.")]

_PAUSE = 30.0  # seconds between two lines of one cell


def only_cells(
    sizes: list[int] | None, epsilons: list[float] | None, seeds: list[int] | None
) -> Only:
    """The cells that the options ask for."""
    from hyperdp.eval.cells import Only

    return Only(n=tuple(sizes or ()), epsilon=tuple(epsilons or ()), seeds=tuple(seeds or ()))


def cell_lines(console: Console) -> OnCell:
    """A line for each cell, and one now and then of how far it is."""

    def on_cell(cell: Cell, number: int, total: int) -> Callable[[int, int], None]:
        size = "" if cell.n is None else f" n={cell.n}"
        size += "" if cell.epsilon is None else f" ε={cell.epsilon:g}"
        title = f"{number + 1}/{total} {cell.private_set} {cell.method}{size} seed {cell.seed}"
        console.print(title)
        last = time.monotonic()

        def progress(done: int, count: int) -> None:
            nonlocal last
            if time.monotonic() - last > _PAUSE:
                last = time.monotonic()
                console.print(f"   {done}/{count}")

        return progress

    return on_cell
