"""What `hyperdp release` and `hyperdp private` share: from a path to a release on disk."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from hyperdp.cli._opening import Reading, charged_to, check_out, open_checked
from hyperdp.cli._options import default_ledger, split_classes
from hyperdp.errors import UsageError

LIGHT_ON_DARK = (
    "Records are read as light ink on dark, as the shipped bundle knows it; dark ink on white "
    "paper wants --invert."
)

if TYPE_CHECKING:
    from hyperdp.budget import PrivacyBudget
    from hyperdp.bundle import Bundle
    from hyperdp.private.release import Release
    from hyperdp.text_bundle import TextBundle


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
    text_column: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        from hyperdp.private.class_names import check_classes

        # Before anything is opened: options that contradict each other.
        if (self.label_column is None) != (self.classes is None):
            raise UsageError(
                expected="--label-column and --classes together",
                found="one of them",
                todo="Name the column and every label it may hold, such as --classes 0,1,2. The "
                "list is public, so it is told beforehand and never read from the data.",
            )
        check_classes(split_classes(self.classes))
        if self.skip_unreadable and self.adjacency == "replace-one":
            raise UsageError(
                expected="all records readable under replace-one, where their number is public",
                found="--skip-unreadable, which would show in that number",
                todo="Mend the data, or use --adjacency add-remove.",
            )

    def reading(self) -> Reading:
        """How its data is read."""
        return Reading(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Reading)}
        )

    def budget(self) -> PrivacyBudget:
        """What is asked; its unit follows from whether a column of users is named."""
        from hyperdp.budget import PrivacyBudget

        return PrivacyBudget(
            epsilon=self.epsilon,
            delta=self.delta,
            adjacency=self.adjacency,
            unit="record" if self.unit_column is None else "user",
        )


def make_release(request: ReleaseRequest, bundle: Bundle | TextBundle) -> Release:
    """Check the dataset, spend the budget, write the release, and pass its warnings on.

    Args:
        request: the command line.
        bundle: the bundle it names.

    Returns:
        The release that lies in `request.out`.

    Raises:
        HyperdpError: whatever stands in the way; no release is left behind.
    """
    from hyperdp.ledger import Ledger

    budget = request.budget()  # what is wrong with the words is told before the data is read
    check_out(request.out, request.data)
    dataset = open_checked(request.reading(), bundle)
    shape = getattr(bundle.config, "image_shape", ())
    if shape[:1] == (1,) and not request.invert and os.environ.get("RANK", "0") == "0":
        typer.echo(LIGHT_ON_DARK, err=True)
    with signal_warnings(), _layout(request, bundle) as release:
        made = release(
            dataset.records(),
            bundle=bundle,
            budget=budget,
            ledger=Ledger(request.ledger or default_ledger()),
            out=request.out,
            dataset=charged_to(dataset, request.dataset),
            classes=dataset.classes,
            allow_weak_delta=request.allow_weak_delta,
            inverted=request.invert,
            progress=True,
        )
    if made is None:  # not the main process of several: the rest is for that one to do and say
        raise typer.Exit
    return made


@contextmanager
def _layout(
    request: ReleaseRequest, bundle: Bundle | TextBundle
) -> Iterator[Callable[..., Release | None]]:
    """`release` by this process, by workers of its own, or by all that a launcher started."""
    from hyperdp.private.release import release

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from hyperdp.private.together import release_together
        from hyperdp.processes import joined_processes

        with joined_processes() as state:
            yield partial(release_together, state=state)
    elif request.workers > 1:
        from hyperdp.private.workers import Workers

        with Workers(bundle, request.workers) as workers:
            yield partial(release, add_up=workers.add_up)
    else:
        yield release


@contextmanager
def signal_warnings() -> Iterator[None]:
    """Passes on, at the end, what a release warns of: that it is nearly all noise, say."""
    from hyperdp.private.release import SignalWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SignalWarning)
        yield
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)


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
