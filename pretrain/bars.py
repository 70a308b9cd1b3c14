"""The progress bar of training: steps, time taken, time left and the figures of the loss."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def training_bar(*, shown: bool) -> Progress:
    """A bar whose tasks have a field `figures`.

    Args:
        shown: whether it is this process that shows it.
    """
    times = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    said, figures = TextColumn("{task.description}"), TextColumn("{task.fields[figures]}")
    return Progress(said, BarColumn(), *times, figures, disable=not shown)
