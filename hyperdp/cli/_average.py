"""`hyperdp pretrain average`: of a bundle and of a run that was trained on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def average_command(
    first: Annotated[str, typer.Argument(help="A bundle's folder, or a shipped one's name.")],
    second: Annotated[Path, typer.Argument(help="Folder of a run that began with that bundle.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the second one's weights.")
    ] = 0.5,
) -> None:
    """Average a bundle's weights with those of a run that was trained on from it.

    What comes out is where a further run may begin: a recipe's `base` and `start` both name it.

    Example: hyperdp pretrain average glyphs runs/further --share 0.7 -o runs/average
    """
    from hyperdp.bundle import bundle_folder
    from hyperdp.pretrain.average import average_runs

    average_runs(bundle_folder(first), second, share=share, out=out)
    typer.echo(str(out))
