"""Figures on disk: one flat schema, JSONL, a row a figure; docs are rendered from it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from hyperdp.errors import DataError

RESULTS = Path(__file__).parent / "results"
SOURCES = (":/", ":(top,exclude)eval/results", ":(top,exclude)docs")  # what a figure comes from


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and how it came about.

    Attributes:
        bench: name of the recipe. base: the bundle whose base model it is.
        private_set, method: what was measured; `floor` is real against real.
        n, epsilon, delta: None where the method does not depend on them.
        seed: of records, starting noise and training.
        metric: `fid`, `kid`, `recovered_gain`, `accuracy`, …; value: the figure.
        commit, hardware, command: where it comes from. seconds: of the cell's own work.
        peak_rss_mb: of the process so far.
        settings: digest of what it was measured with, see `hyperdp.eval.row_settings`; "" where
            `base` names it, and in rows from before there was one.
    """

    bench: str
    base: str
    private_set: str
    method: str
    n: int | None
    epsilon: float | None
    delta: float | None
    seed: int
    metric: str
    value: float
    commit: str
    hardware: str
    seconds: float
    peak_rss_mb: float
    command: str
    settings: str = ""


def append_rows(path: Path, rows: Iterable[Row], *, once: bool = False) -> None:
    """Appends rows in one write and syncs, so that a kill loses whole cells and nothing else.

    Other processes that append to the same file wait.

    Args:
        path: JSONL.
        rows: to append.
        once: leave out a figure that the file has by now: another process was at the same cell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1  # what follows is a line that a kill cut short
        file.truncate(whole)
        there = {_figure(row) for row in read_rows(path)} if once else set()
        text = "".join(
            json.dumps(asdict(row), ensure_ascii=False) + "\n"
            for row in rows
            if _figure(row) not in there
        )
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # a full disk: a part of a cell's rows would pass for all of them
            os.ftruncate(file.fileno(), whole)
            raise


def _figure(row: Row) -> tuple[object, ...]:
    """What tells one figure from any other."""
    return (row.bench, row.base, row.private_set, row.method, row.n, row.epsilon, row.seed,
            row.metric, row.settings)  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """Reads a results file; [] where there is none.

    A last line without its newline is what a kill left of a cell: it is passed over.

    Raises:
        DataError: a line that is no row.
    """
    if not path.is_file():
        return []
    names = {f.name for f in fields(Row)}
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            values = None
        if not isinstance(values, dict) or set(values) | {"settings"} != names:
            raise DataError(
                expected=f"a row with {', '.join(sorted(names))}",
                found=f"line {number} of {path}",
                todo="Remove the line; the bench makes its cell again.",
            )
        rows.append(Row(**values))
    return rows


def mean_std(values: list[float]) -> str:
    """`mean ± std` over seeds (sample std), or the one value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3g}" if abs(mean) < 10 else f"{mean:.1f}"
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.2f} ± {std:.2f}" if abs(mean) < 10 else f"{mean:.0f} ± {std:.0f}"


def to_markdown(rows: list[Row], metrics: tuple[str, ...]) -> str:
    """A Markdown table: private set, method, n, ε, and a column for each metric.

    Args:
        rows: of one bench.
        metrics: the columns, out of the rows' metric names.
    """
    groups: dict[tuple[str, str, int | None, float | None], dict[str, list[float]]] = {}
    for row in rows:
        key = (row.private_set, row.method, row.n, row.epsilon)
        groups.setdefault(key, {}).setdefault(row.metric, []).append(row.value)
    lines = [
        "| private set | method | n | ε | "
        + " | ".join(m.replace("_", " ") for m in metrics)
        + " |",
        "|" + "---|" * (4 + len(metrics)),
    ]
    for (name, method, n, epsilon), found in groups.items():
        cells = [mean_std(found[m]) if m in found else "–" for m in metrics]
        head = [
            name,
            method,
            "–" if n is None else f"{n:,}",
            "–" if epsilon is None else f"{epsilon:g}",
        ]
        lines.append("| " + " | ".join(head + cells) + " |")
    return "\n".join(lines) + "\n"


def render_into(page: Path, name: str, table: str) -> None:
    """Puts a table between `<!-- table:NAME -->` and `<!-- /table:NAME -->` of a page.

    Args:
        page: Markdown.
        name: of the table.
        table: Markdown.

    Raises:
        DataError: the page has no such pair of marks.
    """
    before, after = check_marks(page, name)
    start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    page.write_text(f"{before}{start}\n\n{table}\n{end}{after}", encoding="utf-8")


def check_marks(page: Path, name: str) -> tuple[str, str]:
    """What stands before and after a table's place in a page.

    Args:
        page: Markdown.
        name: of the table.

    Raises:
        DataError: the page has no such pair of marks.
    """
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    before, found, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise DataError(
            expected=f"{start} and {end} in {page}",
            found="not both",
            todo="Add them where the table belongs.",
        )
    return before, after


def provenance(device: torch.device | None = None) -> dict[str, str]:
    """`commit`, `hardware` and `command` of this run, for `Row`.

    HYPERDP_COMMIT says the commit, where it is set: for a copy that git does not know. A commit
    whose files were changed since is `…-dirty`: it alone does not give the row again.

    Args:
        device: where networks computed; a GPU is named beside the processor.
    """
    git = shutil.which("git")
    commit = os.environ.get("HYPERDP_COMMIT", "")[:7]
    if git is not None and not commit:
        commit = _asked([git, "rev-parse", "--short", "HEAD"])
        changed = _asked([git, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES])
        commit += "-dirty" if commit and changed else ""
    name = Path(sys.argv[0]).name
    words = ["hyperdp" if name == "__main__.py" else name, *sys.argv[1:]]  # or python -m hyperdp
    return {
        "commit": commit or "unknown", "hardware": hardware(device), "command": " ".join(words)
    }  # fmt: skip


def _asked(words: list[str]) -> str:
    """What git answers, in the folder of this file; "" where it has no answer."""
    here = Path(__file__).resolve().parent
    found = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() if found.returncode == 0 else ""


def hardware(device: torch.device | None = None) -> str:
    """Processor and number of cores this process may use, and the GPU, where `device` is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name(device)}" if device and device.type == "cuda" else ""
    return f"{(models or [platform.processor()])[0]}, {cores} cores{gpu}"


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
