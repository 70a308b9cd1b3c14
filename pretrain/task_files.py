"""Work on many public tasks, a file a task: killed it goes on, and several processes share it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]
Figures = dict[str, dict[str, Any]]
POLL = 5.0  # seconds between looks at what another process measures


class TaskFiles:
    """The figures of finished tasks, in a folder that is named after what was measured.

    Args:
        folder: of all such folders.
        what: whatever the figures depend on, as JSON has it; other settings, another folder.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any]) -> None:
        text = json.dumps(what, sort_keys=True, indent=1)
        self.folder = folder / f"tasks-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(text, encoding="utf-8")

    def fill(
        self, count: int, measure: Callable[[int], Figures], progress: Progress | None = None
    ) -> list[Figures]:
        """Measure the tasks that nobody has, and wait for those that another process is at.

        Args:
            count: tasks 0 … count - 1.
            measure: figures of a task, which depend on its number alone.
            progress: called with (tasks done by anybody, count).

        Returns:
            The figures of every task, in order.
        """
        while True:
            for index in range(count):
                if self._path(index).is_file():
                    continue
                with self._claim(index) as mine:
                    if mine and not self._path(index).is_file():
                        self._write(index, measure(index))
                if progress is not None:
                    progress(self._done(count), count)
            if self._done(count) == count:
                break
            time.sleep(POLL)
        if progress is not None:
            progress(count, count)
        files = (self._path(index) for index in range(count))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def elsewhere(self, index: int) -> Iterator[tuple[dict[str, Any], Figures]]:
        """The same number's task as others measured it, with what its figures depend on.

        Args:
            index: of the task.
        """
        for other in sorted(self.folder.parent.glob("tasks-*")):
            task, settings = other / self._path(index).name, other / "settings.json"
            if other != self.folder and task.is_file() and settings.is_file():
                yield tuple(json.loads(f.read_text(encoding="utf-8")) for f in (settings, task))

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:04d}.json"

    def _done(self, count: int) -> int:
        return sum(self._path(index).is_file() for index in range(count))

    def _write(self, index: int, figures: Figures) -> None:
        draft = self._path(index).with_suffix(".tmp")
        draft.write_text(json.dumps(figures), encoding="utf-8")
        draft.replace(self._path(index))

    @contextmanager
    def _claim(self, index: int) -> Iterator[bool]:
        """Whether the task is ours; a process that dies lets go of its own."""
        with self._path(index).with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
