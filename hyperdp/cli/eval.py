"""`hyperdp eval`: how close generated images are to real ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hyperdp.cli import _options as o

if TYPE_CHECKING:
    from hyperdp.eval.measure import Measurement


def eval_command(
    generated: Annotated[
        Path, typer.Argument(help="A folder of generated images.", metavar="GENERATED_DIR")
    ],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            "-r",
            help="Real images: a dataset as for `hyperdp release`, or a private test set's name.",
        ),
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Real images that are not in the reference, for the floor; by default a part of "
            "the reference is set apart.",
            show_default=False,
        ),
    ] = None,
    public_reference: Annotated[
        bool,
        typer.Option("--public-reference", help="The real images are public: no warning."),
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure FID and KID of generated images, each beside what real images score.

    FID depends on the sample sizes, so both are measured at the same ones: compare only figures
    with the same number of images on either side. Nothing here is differentially private.

    Example: hyperdp eval out/samples --reference data/digits --json
    """
    from hyperdp.eval.features import EfficientNetLite0
    from hyperdp.eval.measure import NOT_PRIVATE, measure, read_generated, read_reference

    start = time.monotonic()
    with Console(stderr=True).status("reading images"):
        images = read_generated(generated)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        real, apart = read_reference(reference, shape)
        if held_out is not None:
            apart, _ = read_reference(str(held_out), shape)
    with Console(stderr=True).status("extracting features"):
        found = measure(images, real, apart, EfficientNetLite0())
    warning = None if public_reference else NOT_PRIVATE
    if as_json:
        facts = {"warning": warning, **_facts(found), "seconds": time.monotonic() - start}
        typer.echo(json.dumps(facts))
        return
    _tell(found)
    if warning is not None:
        typer.echo(f"computed on private data: {warning}")


def _facts(found: Measurement) -> dict[str, Any]:
    return {
        "extractor": found.fid.extractor,
        "generated": found.fid.generated,
        "reference": found.fid.reference,
        "fid": found.fid.value,
        "fid_floor": found.fid_floor.value,
        "kid": found.kid.value,
        "kid_std": found.kid.std,
        "kid_floor": found.kid_floor.value,
        "kid_floor_std": found.kid_floor.std,
    }


def _tell(found: Measurement) -> None:
    table = Table("metric", "generated", "real/real floor", box=None)
    table.add_row(found.fid.title, f"{found.fid.value:.1f}", f"{found.fid_floor.value:.1f}")
    kid, floor = found.kid, found.kid_floor
    table.add_row(
        kid.title, f"{kid.value:.4f} ± {kid.std:.4f}", f"{floor.value:.4f} ± {floor.std:.4f}"
    )
    Console().print(table)
    typer.echo(
        f"{found.fid.generated} images against {found.fid.reference} reference images; "
        "± is the standard deviation over subsets"
    )
