"""A bench that is killed again and again loses no finished cell. Run with `pytest -m faults`."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hyperdp import mechanism
from hyperdp.cli import bench as bench_cli
from hyperdp.cli._app import run
from hyperdp.eval import bench as bench_module
from hyperdp.eval.bench_recipe import cells, read_bench_recipe
from hyperdp.eval.results import Row, read_rows
from tests.worlds import tiny_bundle

pytestmark = pytest.mark.faults

LOADED = (bench_cli, bench_module)  # before the first fork, so that no child imports them anew
KILLS = 5
RECIPE = """
bench = "killed"
bundle = "bundle"
private_sets = ["set.npz"]
n = [40]
epsilon = [2.0, 8.0]
delta = 1e-4
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
methods = ["floor", "base", "public_mean", "other_task", "lora", "hyper"]

[sampling]
count = 12
steps = 2
batch_size = 3
bf16 = false

[finetune]
rank = 2
steps = 2
batch_size = 4
bf16 = false
"""


def same_noise(domain: object, metric: object, scale: float) -> Callable[[list[int]], list[int]]:
    """In place of the operating system's: two runs can only be compared with one draw of noise."""
    draws = np.random.default_rng(7)
    return lambda query: [
        value + round(scale * draw)
        for value, draw in zip(query, draws.standard_normal(len(query)), strict=True)
    ]


def child(work: Callable[[], int]) -> tuple[int, Iterator[str]]:
    """A process of its own, which never returns into pytest, and what it writes on stderr."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(reading)
            sys.stderr = os.fdopen(writing, "w", buffering=1)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            code = work()
        finally:
            os._exit(code)
    os.close(writing)
    return pid, os.fdopen(reading)


def bench(folder: Path) -> tuple[int, Iterator[str]]:
    """`hyperdp bench` as people run it, but for the noise."""

    def work() -> int:
        os.environ.update(HYPERDP_CONFIG_DIR=str(folder / "config"), COLUMNS="200")
        mechanism.dp.m.make_gaussian = same_noise
        words = ["bench", "recipe.toml", "-o", str(folder / "rows.jsonl")]
        return run([*words, "--into", str(folder / "page.md")])

    return child(work)


def place(folder: Path) -> Path:
    folder.mkdir()
    (folder / "page.md").write_text("<!-- table:killed -->\n<!-- /table:killed -->\n")
    return folder


def key(row: Row) -> tuple[str, int | None, float | None, int]:
    return row.method, row.n, row.epsilon, row.seed


def begun(line: str) -> int | None:
    """The number of the cell that a line says is begun."""
    found = re.match(r"(\d+)/\d+ set\.npz", line)
    return int(found[1]) if found else None


def test_a_bench_killed_five_times_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    pool = np.random.default_rng(0).integers(0, 256, (60, 1, 28, 28)).astype(np.uint8)
    np.savez("set.npz", pool=pool, reference=pool[::-1][:30])
    # In a child too: here no operator may run, as its threads would not live on after a fork.
    pid, _ = child(lambda: int(tiny_bundle(Path("bundle")) is None))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    number = {
        (c.method, c.n, c.epsilon, c.seed): i + 1
        for i, c in enumerate(cells(read_bench_recipe("recipe.toml")))
    }
    whole, broken = place(tmp_path / "whole"), place(tmp_path / "broken")
    pid, told = bench(whole)
    text = list(told)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text

    rng, out = random.Random(20261123), broken / "rows.jsonl"
    for _ in range(KILLS):
        before = read_rows(out)
        pid, told = bench(broken)
        started, cell = [], rng.randint(1, 3)
        while len(started) < cell:  # up to a random cell of this run
            number_told = begun(next(told))
            started += [] if number_told is None else [number_told]
        time.sleep(rng.expovariate(10))  # and a random moment in it or after it
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        started += [found for line in told if (found := begun(line)) is not None]
        assert not set(started) & {number[key(row)] for row in before}  # none is made again
        assert read_rows(out)[: len(before)] == before  # and none is lost
    left = len(number) - len({key(row) for row in read_rows(out)})
    assert left > 0  # the kills hit a run that was not over
    pid, told = bench(broken)
    text = list(told)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert len([line for line in text if begun(line) is not None]) == left

    rows = read_rows(out)
    assert set(Counter((*key(row), row.metric) for row in rows).values()) == {1}
    found, wanted = (
        {(*key(row), row.metric): row.value for row in made}
        for made in (rows, read_rows(whole / "rows.jsonl"))
    )
    assert found == wanted
    page = (broken / "page.md").read_text(encoding="utf-8")
    assert page == (whole / "page.md").read_text(encoding="utf-8")
    assert "| set.npz | hyper | 40 | 8 |" in page
