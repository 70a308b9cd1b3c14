"""The progress bar of commands that count: what, how far, how long yet. On standard error."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PERIOD = 30.0  # seconds between two lines where there is no terminal


class PublicProgress(Progress):
    """A bar on a terminal; in a log, a line at most every half minute.

    For work whose pace tells nothing of private records: a line with a time is one more thing that
    a log keeps.
    """

    def __init__(self, *columns: ProgressColumn, console: Console | None = None) -> None:
        shown_on = console or Console(stderr=True)
        super().__init__(*columns, console=shown_on, disable=not shown_on.is_terminal)
        self._next_line = time.monotonic() + PERIOD

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        """As `Progress.add_task`; a log gets the name of what begins."""
        if not self.console.is_terminal:
            self.console.print(description)
        return super().add_task(description, *args, **fields)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As `Progress.update`, and the line when it is due."""
        super().update(task_id, **changes)
        if self.console.is_terminal or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + PERIOD
        task = self._tasks[task_id]
        if task.finished:
            return
        of = "" if task.total is None else f"/{task.total:.0f}"
        left = task.time_remaining
        remaining = "" if left is None else f", {timedelta(seconds=round(left))} left"
        self.console.print(f"{task.description}: {task.completed:.0f}{of}{remaining}")


def advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    """A callback of work that counts: so much is done."""
    bar.update(task, completed=done, total=total)


def counting_bar() -> Progress:
    """A bar for tasks with a total; enter it as a context."""
    return PublicProgress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def steps_bar(unit: str = "step") -> Progress:
    """A bar for steps over private records with the ε spent so far, on a terminal only.

    A task needs the field `epsilon`. Elsewhere one line says that nothing more will come.
    """
    on_terminal = sys.stderr.isatty()
    console = Console(stderr=True)
    if not on_terminal:
        console.print(
            f"Each {unit} reads private records, and its time tells of them: progress is shown on "
            "a terminal only. This takes minutes.",
            soft_wrap=True,
        )
    return Progress(
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ε spent {task.fields[epsilon]:.3g}"),
        TimeRemainingColumn(),
        console=console,
        disable=not on_terminal,
    )
