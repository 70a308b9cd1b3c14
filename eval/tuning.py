"""Which variant of a method a table takes: the best on public tasks, by a rule fixed beforehand.

Variants are measured by a recipe of their own on public tasks. What a cell (n, ε) of a table takes
is the variant of least mean KID, over tasks and seeds, at the measured cell of the nearest n·ε: the
signal of a sum over n units against noise of a given ε grows with n·ε. Ties in n·ε go to the
nearest n. Where a recipe draws no images (`sampling.count = 0`) the loss takes KID's place;
the two need not agree, as noise in the weights that hardly moves the loss can spoil what is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import BenchConfig, read_bench_recipe
from hyperdp.eval.results import RESULTS, Row, read_rows

CHOSEN_BY = ("kid", "loss")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best variant of a method at one measured cell.

    Attributes:
        method: without the variant.
        n, epsilon: the cell; None where the method does not depend on them.
        variant: its name.
        metric: what it was chosen by.
        value: its mean over tasks and seeds.
        of: number of variants.
    """

    method: str
    n: int | None
    epsilon: float | None
    variant: str
    metric: str
    value: float
    of: int


def choices(config: BenchConfig, rows: list[Row]) -> list[Choice]:
    """The best variant of every method at every cell where all of them are measured.

    Args:
        config: the recipe of the variants.
        rows: of that bench and one base; a figure that is not finite counts as the worst.
    """
    found = []
    for method, variants in config.variants.items():
        mine = [r for r in rows if r.method.startswith(f"{method}/")]
        for n, epsilon in dict.fromkeys((r.n, r.epsilon) for r in mine):
            here = [r for r in mine if (r.n, r.epsilon) == (n, epsilon)]
            for metric in CHOSEN_BY:
                means = _means([r for r in here if r.metric == metric], list(variants), method)
                if means is not None:
                    best = min(means, key=means.__getitem__)
                    found.append(
                        Choice(
                            method=method, n=n, epsilon=epsilon, variant=best, metric=metric,
                            value=means[best], of=len(means),
                        )
                    )  # fmt: skip
                    break
    return found


def _means(rows: list[Row], variants: list[str], method: str) -> dict[str, float] | None:
    """Mean figure of every variant, or None where they were not all measured alike."""
    places = {(r.private_set, r.seed) for r in rows}
    means = {}
    for variant in variants:
        mine = [r for r in rows if r.method == f"{method}/{variant}"]
        if not mine or {(r.private_set, r.seed) for r in mine} != places:
            return None
        values = [r.value if math.isfinite(r.value) else math.inf for r in mine]
        means[variant] = sum(values) / len(values)
    return means


class Tuning:
    """The recipes of variants that a bench leans on, with what was measured of them.

    Args:
        names: of the recipes; each has its rows in the results folder under its bench's name.
        base: the bundle and its hash, as rows spell them.
    """

    def __init__(self, names: list[str], base: str) -> None:
        self._base = base
        self._parts = []
        for name in names:
            config = read_bench_recipe(name)
            rows = read_rows(RESULTS / f"{config.bench}.jsonl")
            mine = [r for r in rows if r.bench == config.bench and r.base == base]
            self._parts.append((name, config, choices(config, mine)))

    def settings(self, method: str, n: int | None, epsilon: float | None) -> tuple[str, Any] | None:
        """What a method takes at a cell.

        Args:
            method: without a variant.
            n: records of the cell, or None.
            epsilon: budget of the cell, or None.

        Returns:
            The variant's name and its settings; None where no recipe has variants of the method.

        Raises:
            UsageError: a recipe has, and no cell of them is whole.
        """
        for name, config, made in self._parts:
            if method not in config.variants:
                continue
            mine = [c for c in made if c.method == method]
            if not mine:
                raise UsageError(
                    expected=f"all variants of {method} measured with {self._base} in "
                    f"{RESULTS / config.bench}.jsonl",
                    found="no cell where they are",
                    todo=f"Run `hyperdp bench {name}` first, or take it out of `tuning`.",
                )
            best = min(mine, key=lambda c: _distance(c, n, epsilon))
            return best.variant, config.settings(f"{method}/{best.variant}")
        return None


def _distance(choice: Choice, n: int | None, epsilon: float | None) -> tuple[float, float]:
    """How far a cell lies: |log ratio of n·ε|, then of n; nothing where one has no n or ε."""
    by_n = abs(math.log(choice.n / n)) if choice.n and n else 0.0
    if choice.epsilon and epsilon and choice.n and n:
        return abs(math.log(choice.n * choice.epsilon / (n * epsilon))), by_n
    return by_n, 0.0
