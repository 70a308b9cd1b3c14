"""`hyperdp report`: a benchmark's rows as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report_command(
    recipe: Annotated[
        str, typer.Argument(help="The recipe that was run: a TOML file, or a shipped name.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to be written.")] = Path(
        "out/report.html"
    ),
    rows: Annotated[
        Path | None,
        typer.Option(help="JSONL; by default BENCH.jsonl in the package's own eval/results."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="The folder that `hyperdp bench --pictures` filled.")
    ] = None,
) -> None:
    """Write the report of a benchmark: curves over ε, pictures, tables, times and costs.

    It measures nothing: it shows the rows there are, and what is still missing. The page needs
    nothing beside itself. `hyperdp demo` writes a report of its own.

    Example: hyperdp report bench-quick --pictures out/bench-quick -o out/bench-quick.html
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.errors import UsageError
    from hyperdp.eval.bench_recipe import read_bench_recipe
    from hyperdp.eval.bench_report import write_bench_report
    from hyperdp.eval.bench_table import stored_rows
    from hyperdp.eval.earlier import base_name
    from hyperdp.eval.kept_pictures import Pictures
    from hyperdp.eval.results import RESULTS

    config = read_bench_recipe(recipe)
    if pictures is not None and not pictures.is_dir():
        raise UsageError(
            expected="a folder that `hyperdp bench --pictures` filled",
            found=str(pictures),
            todo="Give that folder, or leave --pictures out.",
        )
    bundle = load_bundle(config.bundle)
    path = rows if rows is not None else RESULTS / f"{config.bench}.jsonl"
    page = write_bench_report(
        config,
        stored_rows(config, path),
        bundle,
        out,
        pictures=None if pictures is None else Pictures(folder=pictures / base_name(bundle)),
        command=" ".join(["hyperdp", *sys.argv[1:]]),
    )
    typer.echo(f"Look at it: {page.resolve().as_uri()}")
