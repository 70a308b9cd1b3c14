"""Rows that another recipe's run has measured in the very same way, taken over instead of again."""

from __future__ import annotations

import dataclasses

from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import BenchConfig, cells, read_bench_recipe
from hyperdp.eval.cells import row_key
from hyperdp.eval.methods import METHODS
from hyperdp.eval.results import RESULTS, Row, read_rows
from hyperdp.eval.row_settings import bench_settings, fits


def reused_rows(config: BenchConfig, base: str, held: list[Row]) -> list[Row]:
    """Copies of other benches' rows for the cells of this recipe that it has no rows of.

    They say what they said of commit, hardware and command; only the bench's name is another. A
    method whose settings `tuning` chooses is always measured anew.

    Args:
        config: the recipe; `reuse` names the others.
        base: the bundle and its hash, as rows spell them.
        held: rows of this bench.

    Returns:
        The copies, without recovered gains: these are of this bench's own base and LoRA.

    Raises:
        UsageError: images or a method's settings differ between the recipes.
    """
    have = {row_key(row) for row in held}
    wanted = {
        (config.bench, base, c.private_set, c.method, c.n, c.epsilon, c.seed) for c in cells(config)
    } - have
    found: list[Row] = []
    for name in config.reuse:
        other = read_bench_recipe(name)
        _check_alike(config, other, name)
        for row in read_rows(RESULTS / f"{other.bench}.jsonl"):
            copied = dataclasses.replace(row, bench=config.bench)
            tuned = METHODS[row.method.partition("/")[0]].settings not in {"", "finetune"}
            if row.bench != other.bench or tuned or row.metric == "recovered_gain":
                continue
            alike = fits(row, bench_settings(config, row))
            if row_key(copied) in wanted and alike and _all_of_it(row, config, other):
                found.append(copied)
        wanted -= {row_key(row) for row in found}
    return found


def _all_of_it(row: Row, config: BenchConfig, other: BenchConfig) -> bool:
    """Whether a row of a whole set is of as many records here: what LoRA is trained on, say."""
    return row.n is not None or max(config.n) == max(other.n)


def _check_alike(config: BenchConfig, other: BenchConfig, name: str) -> None:
    for field in ("sampling", "finetune", "delta", "labelled"):
        if getattr(config, field) != getattr(other, field):
            raise UsageError(
                expected=f"the same {field} as in {name}, whose rows are reused",
                found="another",
                todo="Make them the same, or leave it out of `reuse`.",
            )
