"""`hyperdp pretrain images`: public images of one's own, for the recipes to draw from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._bars import counting_bar
from hyperdp.cli._opening import check_public
from hyperdp.cli._options import split_classes

if TYPE_CHECKING:
    from hyperdp.pretrain.image_corpus import Pixels
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
        typer.Option("--held-out", help="Labels for validation; every sixth by default."),
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

    if left_out is None:  # else a part of it may be what is private, by its label
        for path in data:
            check_public(path, todo="Name public images, or the private labels with --leave-out.")
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
    with counting_bar() as bar:
        shown = bar.add_task("images", total=sum(source.listed() for source in sources))
        made = write_images(
            _pixels(sources),
            out,
            shape,
            held_out=split_classes(held_out) or (),
            left_out=split_classes(left_out) or (),
            progress=lambda done: bar.update(shown, completed=done),
        )
    train, kept = int((made.split == 0).sum()), int((made.split == 1).sum())
    typer.echo(
        f"{train:,} images to train on, {kept:,} held out, {len(made.labels)} labels in {out}"
    )
    typer.echo(f'Next: corpus = "{out}" in a recipe; see pretrain/recipes/images.toml')


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
