"""`hyperdp drift`: whether a source has changed between two releases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hyperdp.cli import _options as o
from hyperdp.errors import BundleError, UsageError


def drift_command(
    first: Annotated[Path, typer.Argument(help="Folder of the earlier release.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Folder of the later release.", metavar="B")],
    bundle: o.BundleName = "glyphs",
    as_json: o.AsJson = False,
) -> None:
    """Compare two releases of one source: is their difference more than noise and sampling?

    Costs no privacy. The p-value holds for sources like the public tasks; the bound holds for any
    source, and is much weaker. Both take the records of A and B for independent draws.

    Example: hyperdp drift out/2025/release out/2026/release
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.drift import LEVEL, compare
    from hyperdp.guard import load_guard
    from hyperdp.private.release import Release

    loaded = load_bundle(bundle)
    guard = load_guard(loaded.path, loaded.hash)
    if guard is None:
        raise BundleError(
            expected=f"calibration data beside the bundle in {loaded.path}",
            found="none",
            todo="Make it from public tasks: `hyperdp pretrain forecast BUNDLE`, with --corpus "
            "for images of your own.",
        )
    sides = [Release.load(folder) for folder in (first, second)]
    for side, folder in zip(sides, (first, second), strict=True):
        if side.certificate.bundle_hash != loaded.hash:
            raise BundleError(
                expected=f"releases made with {loaded.name!r}, {loaded.hash[:12]}",
                found=f"{folder}, made with {side.certificate.bundle_hash[:12]}",
                todo="Give their bundle with --bundle.",
            )
    if sides[0].classes != sides[1].classes:
        raise UsageError(
            expected="the same classes in both releases",
            found=" and ".join(", ".join(side.classes or ["none"]) for side in sides),
            todo="Compare releases of one source with one --classes.",
        )
    units = [side.certificate.unit for side in sides]
    if units[0] != units[1]:
        raise UsageError(
            expected="one unit of privacy in both releases: what a mean is of depends on it",
            found=" and ".join(f"unit {unit}" for unit in units),
            todo="Compare releases of one source with one --unit-column, or with none.",
        )
    if sides[0].certificate.inverted != sides[1].certificate.inverted:
        raise UsageError(
            expected="both releases made with --invert, or neither",
            found="one of each kind",
            todo="Compare releases whose records were read alike.",
        )
    from hyperdp.private.emit import measured_classes

    drift = compare(measured_classes(sides[0]), measured_classes(sides[1]), guard)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(drift), "classes": sides[0].classes}))
        return
    table = Table("class", "distance", "by chance alone", "p", "p, any source", box=None)
    for index, name in enumerate(sides[0].classes or ["all"]):
        table.add_row(
            name,
            f"{drift.distance[index]:.4f}",
            f"{drift.expected[index]:.4f}",
            f"{drift.p_values[index]:.2g}",
            f"{drift.p_bounds[index]:.2g}",
        )
    Console().print(table)
    verdict = "has changed" if drift.changed else "has not been shown to change"
    sure = " (certain for any source)" if drift.p_bound <= LEVEL else ""
    typer.echo(f"The source {verdict}: p = {drift.p_value:.2g}{sure}.")
