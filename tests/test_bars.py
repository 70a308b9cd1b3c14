"""What a command shows of its progress, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hyperdp.cli import _bars


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    hands = Clock()
    monkeypatch.setattr(_bars, "time", hands)
    return hands


def test_a_log_gets_a_line_every_half_minute(clock):
    log = io.StringIO()
    with _bars.PublicProgress(console=Console(file=log, width=200)) as bar:
        task = bar.add_task("drawing", total=100)
        for done in range(1, 101):
            clock.now += 1
            bar.update(task, completed=done)
    lines = log.getvalue().splitlines()
    assert lines[0] == "drawing" and "\x1b" not in log.getvalue()
    assert [line.split(",")[0] for line in lines[1:]] == [f"drawing: {n}/100" for n in (30, 60, 90)]


def test_a_terminal_gets_the_bar_alone(clock):
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True)
    with _bars.PublicProgress(console=console) as bar:
        task = bar.add_task("drawing", total=None)
        clock.now += 99
        bar.update(task, completed=7, total=100)
    assert "drawing: 7" not in screen.getvalue() and "drawing" in screen.getvalue()


def test_steps_over_private_records_leave_no_pace_in_a_log(capsys):
    with _bars.steps_bar() as bar:
        task = bar.add_task("steps", total=5, epsilon=0.0)
        for done in range(5):
            bar.update(task, completed=done, epsilon=0.1 * done)
    [line] = capsys.readouterr().err.splitlines()
    assert "on a terminal only" in line and "0.1" not in line
