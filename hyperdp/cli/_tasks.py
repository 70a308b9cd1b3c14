"""`hyperdp pretrain tasks`: public tasks that settings are chosen on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def write_texts(path: Path, documents: list[str]) -> None:
    """JSONL with one document, as `text`, in each line."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    path.write_text("".join(lines), encoding="utf-8")


def tasks_command(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the tasks, an .npz or a JSONL each.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of tasks.")] = 6,
    records: Annotated[
        int, typer.Option(min=2, help="Records in pool and reference each; of texts, in both.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    unseen: Annotated[
        bool,
        typer.Option(
            "--unseen",
            help="References of glyphs that the pool has none of, as `unseen-SEED-I.npz`: without "
            "it a task of few glyphs may have the same images in both. Documents never have.",
        ),
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Documents, in forms that nothing was trained on.")
    ] = False,
    forms: Annotated[
        int, typer.Option(min=1, help="Of texts: forms that each task mixes, in equal parts.")
    ] = 8,
) -> None:
    """Draw held-out public tasks, to choose hyper-parameters on.

    Example: hyperdp pretrain tasks -o runs/tasks --unseen

    Example: hyperdp pretrain tasks --texts -n 2 --records 900 -o runs/text-tasks
    """
    if texts:
        from hyperdp.pretrain.text_forms import unseen_forms

        out.mkdir(parents=True, exist_ok=True)
        for name, documents in unseen_forms(count, records, forms=forms, seed=seed).items():
            path = out / f"{name}.jsonl"
            write_texts(path, documents)
            typer.echo(str(path))
        return
    import numpy as np
    import torch

    from hyperdp.images import to_uint8
    from hyperdp.pretrain import corpus
    from hyperdp.pretrain.tasks import TaskMix, TaskSampler

    sampler = TaskSampler(corpus.open_corpus(), 1, TaskMix(everything=0.0))
    rng = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        images = sampler.draw(1, 2 * records, rng, unseen=records if unseen else 0)[0]
        pixels = to_uint8(images).transpose(0, 3, 1, 2)
        path = out / f"{'unseen' if unseen else 'public'}-{seed}-{index}.npz"
        np.savez_compressed(path, pool=pixels[:records], reference=pixels[records:])
        typer.echo(str(path))
