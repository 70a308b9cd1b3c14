"""`hyperdp pretrain library`: LoRAs of public tasks, for the rival that looks one up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hyperdp.cli._bars import counting_bar


def library_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the library.")],
    bundle: Annotated[str, typer.Option(help="A bundle's folder, or a shipped one's name.")] = (
        "glyphs"
    ),
    tasks: Annotated[int, typer.Option("--tasks", "-n", min=1, help="Public tasks.")] = 64,
    records: Annotated[int, typer.Option(min=2, help="Records of each task.")] = 2000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of LoRA on each.")] = 300,
    lr: Annotated[float, typer.Option(help="Learning rate of LoRA.")] = 3e-3,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRAs.")] = 8,
    corpus: Annotated[
        str,
        typer.Option(
            help="The public data of the bundle: `glyphs`, the folder that `hyperdp pretrain "
            "images` wrote, or `sample`, which ships for tests."
        ),
    ] = "glyphs",
    seed: Annotated[int, typer.Option(help="Of the draws of public tasks.")] = 0,
) -> None:
    """Train a LoRA on each of many public tasks, and keep it beside the task's mean embedding.

    Killed and started again, it loses at most the task it was in. Asked for more tasks later, it
    goes on with the library as it is.

    Example: hyperdp pretrain library -o runs/library --tasks 64
    """
    import torch

    from hyperdp.bundle import load_bundle
    from hyperdp.eval.study import lora_weights
    from hyperdp.lora import Weights
    from hyperdp.pretrain.library import LibraryConfig, make_library
    from hyperdp.pretrain.provenance import check_corpus
    from hyperdp.pretrain.recipe import open_recipe_world
    from hyperdp.private.finetune import FinetuneConfig

    loaded = load_bundle(bundle)
    finetune = FinetuneConfig(rank=rank, steps=steps, lr=lr)

    def train(images: torch.Tensor, number: int) -> Weights:
        return lora_weights(loaded, images, finetune, seed=number)

    public = open_recipe_world({"corpus": corpus})
    check_corpus(loaded.path, public.digest)
    with counting_bar() as bar:
        shown = bar.add_task("library: tasks", total=tasks)
        made = make_library(
            loaded,
            public,
            LibraryConfig(tasks=tasks, records=records, seed=seed),
            out,
            train=train,
            settings=dataclasses.asdict(finetune),
            progress=lambda done, _: bar.update(shown, completed=done),
        )
    typer.echo(f"{len(made.indices())} public tasks in {made.path}")
