"""`hyperdp pretrain images`: public images of one's own, for the recipes to draw from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._bars import counting_bar
from hyperdp.cli._opening import check_out, check_public
from hyperdp.cli._options import split_classes

if TYPE_CHECKING:
    from hyperdp.pretrain.image_corpus import ImageCorpus, Pixels
    from hyperdp.private.readers import Dataset


def images_command(
    data: Annotated[
        list[Path],
        typer.Argument(help="PUBLIC images, one or more of what `hyperdp release` reads."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus; is made.")],
    size: Annotated[int, typer.Option(min=8, help="Pixels of a side.")] = 32,
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey.")] = 3,
    image_column: o.ImageColumn = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of labels, which tasks are made of; `folder` in a folder."),
    ] = None,
    left_out: Annotated[
        str | None,
        typer.Option("--leave-out", help="Labels that do not enter, as a,b,c: those kept private."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Labels for validation; a sixth of them by default."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    invert: Annotated[
        bool, typer.Option("--invert", help="Make dark light in every image, and light dark.")
    ] = False,
) -> None:
    """Gather PUBLIC images into a corpus that recipes name: `corpus = "FOLDER"`.

    Images are read and brought to one size exactly as `hyperdp release` does it with private ones,
    so that both look alike to the encoder.

    Example: hyperdp pretrain images photos/ -o runs/photos --size 32 --label-column folder
    """
    from hyperdp.pretrain.image_corpus import write_images
    from hyperdp.private.readers import open_dataset

    never = split_classes(left_out) or ()
    for path in data:
        check_out(out, path)
        # A folder of a label that does not enter may be what is private.
        check_public(
            path,
            todo="Name public images; of a folder with sub-folders, private ones with --leave-out.",
            apart=never if label_column == "folder" else (),
        )
    shape = (channels, size, size)
    sources = [
        open_dataset(
            path,
            image_shape=shape,
            image_column=image_column,
            label_column=label_column,
            skip_unreadable=skip_unreadable,
            invert=invert,
        )
        for path in data
    ]
    listed, read = sum(source.listed() for source in sources), itertools.count()
    with counting_bar() as bar:
        shown = bar.add_task("images", total=listed)
        made = write_images(
            (pixels for pixels, _ in zip(_pixels(sources), read, strict=False)),
            out,
            shape,
            held_out=split_classes(held_out) or (),
            left_out=never,
            progress=lambda done: bar.update(shown, completed=done),
        )
    for path in data:
        _remember(path, made, by_folder=label_column == "folder")
    train, kept = int((made.split == 0).sum()), int((made.split == 1).sum())
    typer.echo(
        f"{train:,} images to train on, {kept:,} held out, {len(made.labels)} labels in {out}"
    )
    if (unread := listed - next(read)) > 0:  # public ones: they may be counted
        typer.echo(f"{unread:,} that cannot be read are left out")
    _warn_of_few(made)
    typer.echo(f'Next: corpus = "{out}" in a recipe; see pretrain/recipes/images.toml')


def _remember(path: Path, made: ImageCorpus, *, by_folder: bool) -> None:
    """Notes what was read as public, so that a later release of it can say so."""
    from hyperdp import sources

    place = path.expanduser().resolve()
    inside = [place / label for label in made.labels] if by_folder else []
    for folder in [one for one in inside if one.is_dir()] or [place]:
        sources.remember_public(folder)


def _warn_of_few(made: ImageCorpus) -> None:
    """Says where labels have too few images to be tasks."""
    from hyperdp.pretrain.image_tasks import ImageTaskMix, ImageTaskSampler

    few = {
        part: ImageTaskSampler(made, split, ImageTaskMix(cluster=0.0))
        for split, part in ((0, "to train on"), (1, "held out"))
    }
    for part, sampler in few.items():
        if made.labels and len(sampler.labels) < 2:
            typer.echo(
                f"warning: of the labels {part} {len(sampler.labels)} have the "
                f"{sampler.min_pool} images that a task is made of. Tasks will hardly differ: give "
                "more images of each, coarser labels, or other ones with --held-out.",
                err=True,
            )


def fashion_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
) -> None:
    """Write the seven public classes of Fashion-MNIST; dress, bag and boot are private sets.

    Example: hyperdp pretrain fashion -o runs/fashion.npz
    """
    import numpy as np

    from hyperdp.eval.private_sets import fashion_public
    from hyperdp.images import to_uint8

    images, labels = fashion_public()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, images=to_uint8(images)[..., 0], labels=np.array(labels))
    typer.echo(str(out))


def _pixels(sources: list[Dataset]) -> Iterator[tuple[Pixels, str | None]]:
    for source in sources:
        for record in source.records():
            yield record.image, record.label
