"""`hyperdp bench train-step|step-time|release|…`: what the engine costs, without data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import typer

from hyperdp.errors import UsageError

ENGINE = ("train-step", "step-time", "release", "emission", "device")


def bench_engine(name: str, out: Path | None, into: Path | None, bundle: str) -> None:
    """Measure, append the rows and print them.

    Args:
        name: one of `ENGINE`.
        out: JSONL; `eval/results/NAME.jsonl` by default.
        into: Markdown page with a table of that name between marks, or None.
        bundle: whose base and encoder; `emission` needs none.
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.eval.results import RESULTS, render_into, to_markdown

    path = out if out is not None else RESULTS / f"{name}.jsonl"
    # Each imported for itself: a GPU's machine may lack what another needs.
    if name == "emission":
        from hyperdp.eval import emission_bench

        rows = emission_bench.run_emission(emission_bench.EmissionConfig(), path)
    elif name == "device":
        from hyperdp.eval import device_bench

        rows = device_bench.run_device_bench(
            load_bundle(bundle), device_bench.DeviceBenchConfig(), path
        )
    elif name == "release":
        from hyperdp.eval import release_bench

        rows = release_bench.run_release_bench(
            load_bundle(bundle), release_bench.ReleaseBenchConfig(), path
        )
    elif name == "step-time":
        if find_spec("opacus") is None:
            raise UsageError(
                expected="the package opacus, whose step is timed beside ours",
                found="no such package",
                todo="Install `hyperdp[dev]`.",
            )
        from hyperdp.eval import step_time_bench

        rows = step_time_bench.run_step_time(
            load_bundle(bundle), step_time_bench.StepTimeConfig(), path
        )
    else:
        from hyperdp.eval import train_step_bench

        rows = train_step_bench.run_train_step(
            load_bundle(bundle), train_step_bench.TrainStepConfig(), path
        )
    for row in rows:
        size = "" if row.n is None else f" n={row.n:,}"
        typer.echo(f"{row.method}{size} {row.metric}: {row.value:,.4g}")
    if into is not None:
        metrics = tuple(dict.fromkeys(row.metric for row in rows))
        render_into(into, name, to_markdown(rows, metrics))
    typer.echo(f"rows in {path}; all data is synthetic")
