"""`hyperdp bench guard`: false alarms on fresh public tasks, and what is caught."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console


def bench_guard(bundle: str, out: Path | None, into: Path | None, *, table_only: bool) -> None:
    """Measure what is missing, and print the table.

    Args:
        bundle: a bundle with a guard beside it.
        out: JSONL; `eval/results/guard.jsonl` by default.
        into: Markdown page whose table is replaced.
        table_only: measure nothing.
    """
    from hyperdp.eval.guard_bench import (
        BENCH,
        METRIC,
        GuardBenchConfig,
        run_guard,
        stored_caption,
        stored_rows,
    )
    from hyperdp.eval.results import RESULTS, check_marks, render_into, to_markdown
    from hyperdp.pretrain.corpus import open_corpus
    from hyperdp.pretrain.tasks import TaskMix, TaskSampler

    if into is not None:
        check_marks(into, BENCH)
    path = out if out is not None else RESULTS / f"{BENCH}.jsonl"
    console = Console(stderr=True)
    if table_only:
        rows = stored_rows(bundle, path, earlier=True)
    else:
        sampler = TaskSampler(open_corpus(), 1, TaskMix())
        rows = run_guard(
            GuardBenchConfig(),
            bundle,
            lambda records, rng: sampler.draw(1, records, rng)[0],
            path,
            progress=console.print,
        )
    above = stored_caption(bundle, path) if table_only else ""
    table = above + to_markdown(rows, (METRIC,))
    typer.echo(table, nl=False)
    if into is not None:
        render_into(into, BENCH, table)
    console.print(f"rows in {path}")
