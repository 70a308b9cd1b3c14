"""`hyperdp emit`: a release becomes LoRA adapters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

NOT_JUDGED = (
    "Whether the data is like the public data was not judged: the bundle has no calibration data "
    "(`hyperdp pretrain forecast` makes it)."
)


def emit_command(
    release: Annotated[Path, typer.Argument(help="Folder of a release.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the PEFT adapter to.")],
    bundle: Annotated[
        str, typer.Option("--bundle", "-b", help="Name or folder of the bundle.")
    ] = "glyphs",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Turn a release into a PEFT adapter (one for each class of a labelled release).

    Costs no privacy: it reads the release, never the data.

    Example: hyperdp emit out/release -o out/adapter
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.private.emit import emit_adapter, judge_release

    loaded = load_bundle(bundle)
    finding = judge_release(release, loaded)
    folders = emit_adapter(release, loaded, out)
    if as_json:
        judged = None if finding is None else dataclasses.asdict(finding)
        typer.echo(json.dumps({"adapters": [str(f) for f in folders], "guard": judged}))
        return
    for folder in folders:
        typer.echo(f"adapter in {folder}")
    typer.echo(NOT_JUDGED if finding is None else finding.sentence())
    typer.echo("Draw from it with `hyperdp sample`, or load it with peft and diffusers.")
