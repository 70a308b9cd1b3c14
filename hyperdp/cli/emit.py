"""`hyperdp emit`: a release becomes LoRA adapters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle

PUBLIC_STEPS = 150

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
    public: Annotated[
        str | None,
        typer.Option(
            help="Public records (never private ones: they are read without privacy). The adapter "
            "is trained on, on those of them that the release points at. Minutes instead of a "
            "second; clearly better for a labelled release."
        ),
    ] = None,
    public_steps: Annotated[
        int, typer.Option(min=1, help="Steps of that training.")
    ] = PUBLIC_STEPS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Turn a release into a PEFT adapter (one for each class of a labelled release).

    Costs no privacy: it reads the release, never the data.

    Example: hyperdp emit out/release -o out/adapter

    Example: hyperdp pretrain public -o public.npz, then
    hyperdp emit out/release -o out/adapter --public public.npz
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.private.emit import emit_adapter, judge_release

    loaded = load_bundle(bundle)
    finding = judge_release(release, loaded)
    if public is None:
        folders = emit_adapter(release, loaded, out)
    else:
        folders = _emit_with_public(release, loaded, out, public, public_steps)
    if as_json:
        judged = None if finding is None else dataclasses.asdict(finding)
        typer.echo(json.dumps({"adapters": [str(f) for f in folders], "guard": judged}))
        return
    for folder in folders:
        typer.echo(f"adapter in {folder}")
    typer.echo(NOT_JUDGED if finding is None else finding.sentence())
    typer.echo("Draw from it with `hyperdp sample`, or load it with peft and diffusers.")


def _emit_with_public(
    release: Path, bundle: Bundle, out: Path, public: str, steps: int
) -> list[Path]:
    import torch

    from hyperdp.cli._bars import counting_bar
    from hyperdp.private.emit import emit_adapter
    from hyperdp.private.readers import open_dataset
    from hyperdp.private.reweight import ReweightConfig, adapt_on_public

    records = open_dataset(public, image_shape=bundle.config.image_shape).records()
    images = torch.stack([torch.from_numpy(record.image) for record in records])
    config = ReweightConfig(steps=steps)
    with counting_bar() as bar:
        task = bar.add_task("training on public records", total=steps)
        return emit_adapter(
            release,
            bundle,
            out,
            read=lambda own, mean, noise_std: adapt_on_public(
                own,
                mean,
                noise_std,
                images,
                config,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            ),
        )
