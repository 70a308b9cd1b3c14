"""`hyperdp sample`: images from an adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from hyperdp.cli._bars import counting_bar
from hyperdp.cli._device import OnDevice, on_device


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def sample_command(
    adapter: Annotated[
        Path, typer.Argument(help="A PEFT directory, or a folder with one for each class.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and `grid.png`.")],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Images of each adapter.")
    ] = 100,
    bundle: Annotated[
        str, typer.Option("--bundle", "-b", help="Name or folder of the bundle.")
    ] = "glyphs",
    seed: Annotated[int, typer.Option(help="Of the starting noise; it protects nothing.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps; the bundle's own by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 50,
    device: OnDevice = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Draw images from an adapter; of a labelled release, a folder of images for each class.

    Example: hyperdp sample out/adapter -n 1000 -o out/samples
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.errors import UsageError
    from hyperdp.images import save_grid, save_images
    from hyperdp.lora import attach_peft, load_peft

    loaded = on_device(load_bundle(bundle), device)
    if (adapter / "adapter_config.json").is_file():
        sources = {"": adapter}
    else:
        sources = {p.parent.name: p.parent for p in sorted(adapter.glob("*/adapter_config.json"))}
    if not sources:
        raise UsageError(
            expected="a PEFT directory (adapter_config.json), or a folder of them",
            found=str(adapter),
            todo="Make one with `hyperdp emit`.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="an empty or new folder for the images",
            found=str(out),
            todo="Choose another --out; images are never overwritten.",
        )
    known = {name for name, _ in loaded.base.model.named_modules()}
    for source in sources.values():
        if foreign := sorted(set(load_peft(source)) - known):
            raise UsageError(
                expected=f"an adapter of the bundle {loaded.name!r}",
                found=f"{source}, which is of another model: {foreign[0]} is no part of this one",
                todo="Name the adapter's bundle with --bundle. What an adapter of a language model "
                "writes, `transformers` and `peft` show; see README, `Your own texts`.",
            )
    written = {}
    with counting_bar() as bar:
        for name, source in sources.items():
            task = bar.add_task(f"sampling {name}".strip(), total=count)
            base = loaded.load_base()
            images = base.sample(
                count,
                seed=seed,
                steps=steps or loaded.config.sampling_steps,
                batch_size=batch_size,
                model=attach_peft(base.model, source),
                progress=partial(_advance, bar, task),
            )
            save_images(images, out / name)
            save_grid(images[:100], (out / f"{name or 'grid'}.png") if name else out / "grid.png")
            written[name or "."] = count
    if as_json:
        typer.echo(json.dumps({"out": str(out), "images": written}))
    else:
        typer.echo(f"{sum(written.values())} images in {out}")
