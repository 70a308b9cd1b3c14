"""`hyperdp eval`: how close generated images are to real ones."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hyperdp.cli import _options as o

if TYPE_CHECKING:
    from hyperdp.eval.measure import Measurement
    from hyperdp.eval.metrics.interval import Interval
    from hyperdp.eval.metrics.precision_recall import ManifoldScores

MANIFOLD = ("precision", "recall", "density", "coverage")


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
    train: Annotated[
        str | None,
        typer.Option(
            help="The private records that the generator learned from; then the images are also "
            "tested for repeating them, against the reference, which must hold none of them.",
            show_default=False,
        ),
    ] = None,
    image_column: o.ImageColumn = None,
    skip_unreadable: o.SkipUnreadable = False,
    invert: Annotated[
        bool,
        typer.Option(
            "--invert",
            help="Make dark light in the real images, as the release did whose certificate says "
            "that they were inverted.",
        ),
    ] = False,
    features: Annotated[
        str, typer.Option(help="Features: efficientnet-lite0, inception, clip or dino.")
    ] = "efficientnet-lite0",
    feature_weights: Annotated[
        Path | None,
        typer.Option(help="Local weights of the features; nothing is downloaded."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Also say how sure FID and KID are; slower.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure generated images, each figure beside what real images score.

    FID depends on the sample sizes, so both are measured at the same ones: compare only figures
    with the same number of images on either side. Nothing here is differentially private.

    Example: hyperdp eval out/samples --reference data/digits --json
    """
    from hyperdp.eval.extractors import load_extractor
    from hyperdp.eval.measure import NOT_PRIVATE, measure, read_generated, read_reference

    start = time.monotonic()
    extractor = load_extractor(features, feature_weights)
    with Console(stderr=True).status("reading images"):
        images = read_generated(generated)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        read = partial(
            read_reference, image_column=image_column, skip_unreadable=skip_unreadable,
            invert=invert,
        )  # fmt: skip
        real, apart = read(reference, shape)
        if held_out is not None:
            apart, _ = read(str(held_out), shape)
        private = None if train is None else read(train, shape)[0]
    with Console(stderr=True).status("extracting features"):
        found = measure(images, real, apart, extractor, train=private, intervals=intervals)
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
        **{f"{name}_interval": [i.low, i.high] for name, i in found.intervals.items()},
        **_manifold(found.manifold, ""),
        **_manifold(found.manifold_floor, "_floor"),
        "flags": [] if found.findings is None else [asdict(f) for f in found.findings.flags],
        "membership": None if found.attack is None else asdict(found.attack),
    }


def _manifold(scores: ManifoldScores, ending: str) -> dict[str, float]:
    return {f"{name}{ending}": getattr(scores, name) for name in MANIFOLD}


def _tell(found: Measurement) -> None:
    table = Table("metric", "generated", "real/real floor", box=None)
    for name, digits in (("fid", 1), ("kid", 4)):
        made, floor = getattr(found, name), getattr(found, f"{name}_floor")
        cells = [
            f"{score.value:.{digits}f}"
            + ("" if score.std is None else f" ± {score.std:.{digits}f}")
            + _between(found.intervals.get(key), digits)
            for score, key in ((made, name), (floor, f"{name}_floor"))
        ]
        table.add_row(made.title, *cells)
    for name in MANIFOLD:
        made, floor = getattr(found.manifold, name), getattr(found.manifold_floor, name)
        table.add_row(
            f"{name} ({found.manifold.extractor} features)", f"{made:.3f}", f"{floor:.3f}"
        )
    Console().print(table)
    typer.echo(
        f"{found.fid.generated} images against {found.fid.reference} reference images; "
        "± is the standard deviation over subsets"
        + (", [] a 95 % interval" if found.intervals else "")
    )
    for flag in () if found.findings is None else found.findings.flags:
        typer.echo(f"{'FLAG' if flag.raised else 'ok'}: {flag.text}")
    if found.attack is not None:
        typer.echo(
            f"membership inference by distance: AUC {found.attack.auc:.3f} (0.5 is a coin), "
            f"{found.attack.tpr:.1%} of records found at {found.attack.fpr:.1%} false alarms"
        )


def _between(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
