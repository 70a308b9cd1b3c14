"""What `hyperdp release` and `hyperdp private` share: from a path to a release on disk."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from hyperdp.cli._options import default_ledger, split_classes
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.private.readers import Dataset
    from hyperdp.private.release import Release


@dataclass(frozen=True, kw_only=True)
class ReleaseRequest:
    """The command line of a release; see `hyperdp release --help` for each.

    Raises:
        UsageError: labels without classes or the other way round; leaving records out where their
            number is public.
    """

    data: Path
    epsilon: float
    delta: float
    out: Path
    ledger: Path | None
    dataset: str | None
    adjacency: Literal["add-remove", "replace-one"]
    image_column: str | None
    label_column: str | None
    unit_column: str | None
    classes: str | None
    skip_unreadable: bool
    invert: bool
    allow_weak_delta: bool

    def __post_init__(self) -> None:
        # Before anything is opened: options that contradict each other.
        if (self.label_column is None) != (self.classes is None):
            raise UsageError(
                expected="--label-column and --classes together",
                found="one of them",
                todo="Name the column and every label it may hold, such as --classes 0,1,2. The "
                "list is public, so it is told beforehand and never read from the data.",
            )
        if self.skip_unreadable and self.adjacency == "replace-one":
            raise UsageError(
                expected="all records readable under replace-one, where their number is public",
                found="--skip-unreadable, which would show in that number",
                todo="Mend the data, or use --adjacency add-remove.",
            )


def make_release(request: ReleaseRequest, bundle: Bundle) -> Release:
    """Check the dataset, spend the budget, write the release, and pass its warnings on.

    Args:
        request: the command line.
        bundle: the bundle it names.

    Returns:
        The release that lies in `request.out`.

    Raises:
        HyperdpError: whatever stands in the way; no release is left behind.
    """
    from hyperdp.budget import PrivacyBudget
    from hyperdp.ledger import Ledger
    from hyperdp.private.release import SignalWarning, release

    budget = PrivacyBudget(
        epsilon=request.epsilon,
        delta=request.delta,
        adjacency=request.adjacency,
        unit="record" if request.unit_column is None else "user",
    )
    dataset = _open(request, bundle)
    dataset.check()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SignalWarning)
        made = release(
            dataset.records(),
            bundle=bundle,
            budget=budget,
            ledger=Ledger(request.ledger or default_ledger()),
            out=request.out,
            dataset=request.dataset or str(dataset.path),
            classes=dataset.classes,
            allow_weak_delta=request.allow_weak_delta,
            inverted=request.invert,
            progress=True,
        )
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    return made


def describe(made: Release, out: Path) -> dict[str, Any]:
    """What a release says of itself, all of it public.

    Args:
        made: the release.
        out: the folder it lies in.

    Returns:
        Values for `--json`.
    """
    c = made.certificate
    return {
        "release": str(out),
        "bundle": c.bundle_name,
        "epsilon": c.epsilon,
        "delta": c.delta,
        "adjacency": c.adjacency,
        "unit": c.unit,
        "classes": c.classes,
        "inverted": c.inverted,
        "noisy_count": [round(float(count), 1) for count in made.count()],
        "signal_to_noise": made.signal_to_noise(),
    }


def tell(facts: dict[str, Any]) -> None:
    """Print what `describe` says, in words."""
    typer.echo(f"release in {facts['release']}")
    typer.echo(
        f"spent: epsilon {facts['epsilon']:g}, delta {facts['delta']:g}, {facts['adjacency']}, "
        f"unit {facts['unit']}"
    )
    typer.echo(f"signal-to-noise ratio of the mean: at most {facts['signal_to_noise']:.2g}")


def _open(request: ReleaseRequest, bundle: Bundle) -> Dataset:
    from hyperdp.private.readers import open_dataset

    return open_dataset(
        request.data,
        image_shape=bundle.config.image_shape,
        image_column=request.image_column,
        label_column=request.label_column,
        unit_column=request.unit_column,
        classes=split_classes(request.classes),
        skip_unreadable=request.skip_unreadable,
        invert=request.invert,
    )
