"""`hyperdp emit`: a release becomes LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._device import OnDevice, on_device
from hyperdp.cli._emitting import emit
from hyperdp.cli._public import PublicLabels, PublicRecords, PublicSteps, read_public


def emit_command(
    release: Annotated[Path, typer.Argument(help="Folder of a release.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the PEFT adapter to.")],
    bundle: o.BundleName = "glyphs",
    public: PublicRecords = None,
    public_label_column: PublicLabels = None,
    public_steps: PublicSteps = None,
    device: OnDevice = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Turn a release into a PEFT adapter (one for each class of a labelled release).

    Costs no privacy: it reads the release, never the data. --public helps labelled releases of
    images; unlabelled ones, and texts, came out worse with it.

    Example: hyperdp emit out/release -o out/adapter

    Example: hyperdp pretrain public -o public.npz, then
    hyperdp emit out/labelled -o out/adapter --public public.npz

    Example: hyperdp pretrain public --digits -o digits.npz, then, for a release of --classes
    0,1,2,3,4,5,6,7,8,9: hyperdp emit out/release -o out/adapter --public digits.npz
    --public-label-column labels
    """
    from hyperdp.text_bundle import open_bundle

    loaded = on_device(open_bundle(bundle), device)
    records = read_public(public, loaded, label_column=public_label_column)
    made = emit(release, loaded, out, public=records, steps=public_steps)
    if as_json:
        typer.echo(json.dumps(made.facts()))
        return
    made.tell()
