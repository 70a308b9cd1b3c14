"""`hyperdp demo`: the whole story on real handwriting."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from hyperdp.cli._bars import PublicProgress


def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for all it makes.")] = Path(
        "out/demo"
    ),
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            "-b",
            help="Name or folder; glyphs by default, text-tiny with --text.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Real mail instead of handwriting (`make texts`).")
    ] = False,
    epsilon: Annotated[float, typer.Option(help="ε of each of the two releases.")] = 1.0,
    samples: Annotated[int, typer.Option(min=64, help="Images of each method.")] = 500,
    seed: Annotated[int, typer.Option(help="Of records and starting noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Adapt a generator to 2,000 real handwritten digits with ε = 1, and write a report.

    Example: hyperdp demo --out out/demo

    Example: hyperdp demo --text --out out/mail
    """
    if text:
        from hyperdp.cli._text_demo import text_demo

        text_demo(out, bundle or "text-tiny", epsilon=epsilon, seed=seed, as_json=as_json)
        return
    from hyperdp.compute import has_fast_bf16
    from hyperdp.eval.demo import DemoConfig, demo_report, run_demo
    from hyperdp.eval.report import write_report

    console = Console(stderr=True)
    config = DemoConfig(
        bundle=bundle or "glyphs", epsilon=epsilon, samples=samples, seed=seed, bf16=has_fast_bf16()
    )
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    began = time.monotonic()
    with PublicProgress(*columns, console=console) as bar:

        def finish() -> None:
            for task in bar.task_ids:
                bar.update(task, total=1, completed=1) if bar.tasks[task].total is None else None
                bar.stop_task(task)

        def stage(name: str) -> Callable[[int, int], None]:
            finish()
            current = bar.add_task(name, total=None)
            return lambda done, total: bar.update(current, completed=done, total=total)

        result = run_demo(config, out, stage)
        finish()
    report = demo_report(result, config, command=shlex.join(["hyperdp", *sys.argv[1:]]))
    page = write_report(report, out / "report.html")
    if as_json:
        figures = {"fid": result.fid, "kid": result.kid, "seconds": time.monotonic() - began}
        typer.echo(json.dumps({"report": str(page), **figures}))
        return
    typer.echo(f"{'method':<34}{'FID':>8}{'KID':>9}")
    for row in report.rows:
        typer.echo(f"{row.label:<34}{row.fid:>8.1f}{row.kid:>9.3f}")
    typer.echo(f"{'real against real (floor)':<34}{report.floor_fid:>8.1f}{report.floor_kid:>9.3f}")
    typer.echo(f"\n{time.monotonic() - began:.0f} seconds. Look at it: {page.resolve().as_uri()}")
