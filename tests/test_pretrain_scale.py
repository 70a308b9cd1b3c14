"""Training in several processes, killed and gone on with, with less memory, and watched."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import faiss
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hyperdp.errors import UsageError
from hyperdp.family import UNetFlow
from hyperdp.pretrain.__main__ import main
from hyperdp.pretrain.checkpoint import CHECKPOINT
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.hyper import HyperConfig, train_hyper
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.shares import make_accelerator, own_shares
from hyperdp.pretrain.task_pool import TaskPool
from hyperdp.pretrain.tasks import TaskMix, TaskSampler
from hyperdp.pretrain.world import GlyphWorld
from hyperdp.processes import processes
from tests.worlds import TINY_UNET

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
kind = "hyper"
name = "scale"
base = "{base}"
corpus = "sample"
tasks = 4
queries = 2
support = 8
support_grad = 4
pool = 8
fresh = 2
cells = 8
foretell_steps = 3
foretell_tasks = 4
base_weight = 0.3
base_records = 4

[loop]
steps = {steps}
lr = 2e-3
warmup = 2
checkpoint_every = 4
validate_every = 1000
log_every = 1
workers = 2

[encoder]
embed_dim = 8
widths = [8]
hidden = 8

[hypernetwork]
rank = 2
basis = 4
width = 16
depth = 1
bottleneck = 8
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    UNetFlow.create(**TINY_UNET).save(folder)
    return folder


def _recipe(base: Path, folder: Path, steps: int) -> Path:
    path = folder / "scale.toml"
    path.write_text(RECIPE.format(base=base, steps=steps))
    return path


def _start(recipe: Path, out: Path, processes: int = 1) -> subprocess.Popen:
    launcher = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
    ]  # fmt: skip
    words = [sys.executable, *launcher, "-m", "hyperdp.pretrain", "hyper", recipe, "-o", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(run: subprocess.Popen) -> None:
    shown, _ = run.communicate(timeout=600)
    assert run.returncode == 0, shown


def _curve(folder: Path) -> list[dict[str, float]]:
    """The figures of each step, as they were before smoothing."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    names = set(rows[0]) - {"step", "seconds"}
    raw = [{name: rows[0][name] for name in names}]
    for before, row in pairwise(rows):
        raw.append({name: (row[name] - 0.98 * before[name]) / 0.02 for name in names})
    return raw


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_a_kill_changes_nothing(base: Path, tmp_path: Path):
    """One run as it is, one divided between two processes, one killed on the way."""
    steps = 14
    recipe = _recipe(base, tmp_path, steps)
    _finish(_start(recipe, tmp_path / "one"))
    _finish(_start(recipe, tmp_path / "two", processes=2))
    one, two = _curve(tmp_path / "one"), _curve(tmp_path / "two")
    assert len(one) == len(two) == steps
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert abs(value - other[name]) <= 1e-4 * max(1.0, abs(value)), name
    assert abs(one[0]["loss"] - one[-1]["loss"]) > 1e-3  # the curve is no constant

    broken = tmp_path / "broken"
    run = _start(recipe, broken)
    log = broken / "log.jsonl"
    until = time.monotonic() + 500
    while not log.is_file() or len(log.read_text().splitlines()) < 6:
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (broken / "bundle").exists()
    _finish(_start(recipe, broken))
    whole, resumed = (load_file(tmp_path / name / CHECKPOINT) for name in ("one", "broken"))
    assert whole.keys() == resumed.keys()
    assert {"rng", "sampler"} < whole.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert _curve(broken) == one


def _config(base: Path, **changes: object) -> HyperConfig:
    loop = LoopConfig(steps=3, lr=2e-3, warmup=1, workers=1, validate_every=1000)
    config = HyperConfig(
        name="t", base=str(base), loop=loop, tasks=2, queries=2, support=6, support_grad=3, pool=4,
        fresh=1, cells=4, foretell_steps=0, encoder={"embed_dim": 8, "widths": [8], "hidden": 8},
        hypernetwork={"rank": 2, "basis": 4, "width": 16, "depth": 1, "bottleneck": 8},
        base_weight=0.3, base_records=2,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def _fork(work: Callable[[], None], rank: int = 0, count: int = 1, port: int = 0) -> int:
    """Does work in a process of its own, one of `count` that talk by gloo; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
            LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        if count == 1:
            del os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]
        torch.set_num_threads(1)  # OpenMP does not survive a fork
        faiss.omp_set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert processes().num_processes == count
        work()
        status = 0
    except BaseException:  # noqa: BLE001  # whatever it is, pytest must not go on in the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _joined(*children: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_two_gloo_processes_take_the_steps_of_one(base: Path, tmp_path: Path):
    """And a run that is killed goes on to the same bits, samplers and all."""
    corpus = open_sample()
    config = _config(base, foretell_steps=2, foretell_tasks=2)
    loop = dataclasses.replace(
        config.loop, steps=6, workers=2, log_every=1, checkpoint_every=2, warmup=2
    )
    config = dataclasses.replace(config, loop=loop)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def train(name: str) -> None:
        train_hyper(config, tmp_path / name, GlyphWorld(corpus))

    def killed() -> None:
        honest = Loop._average

        def dies(self: Loop) -> None:
            honest(self)
            if self.config.steps == 6 and self.done == 5:  # after the checkpoint of step 4
                os.kill(os.getpid(), signal.SIGKILL)

        Loop._average = dies
        train("broken")

    assert _joined(_fork(lambda: train("one"))) == [0]
    assert _joined(*(_fork(lambda: train("two"), r, 2, port) for r in (0, 1))) == [0, 0]
    assert _joined(_fork(killed)) == [-signal.SIGKILL]
    assert not (tmp_path / "broken/bundle").exists()
    assert _joined(_fork(lambda: train("broken"))) == [0]

    one, two = _curve(tmp_path / "one"), _curve(tmp_path / "two")
    assert len(one) == len(two) == 6
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert abs(value - other[name]) <= 1e-4 * max(1.0, abs(value)), name
    whole, shared, resumed = (
        load_file(tmp_path / name / CHECKPOINT) for name in ("one", "two", "broken")
    )
    assert torch.equal(whole["sampler"], shared["sampler"])
    for name, value in whole.items():
        if name.startswith("param/"):
            torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)
    assert {"rng", "sampler"} < whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert _curve(tmp_path / "broken") == one


def test_gradient_checkpointing_computes_twice_and_changes_no_weight(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from diffusers.models.resnet import ResnetBlock2D

    calls = 0
    forward = ResnetBlock2D.forward

    def counted(self, *given, **named):
        nonlocal calls
        calls += torch.is_grad_enabled()
        return forward(self, *given, **named)

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    corpus, found, counts = open_sample(), [], []
    for saving in (False, True):
        calls = 0
        folder = tmp_path / str(saving)
        train_hyper(_config(base, gradient_checkpointing=saving), folder, GlyphWorld(corpus))
        counts.append(calls)
        found.append(load_file(folder / CHECKPOINT))
    assert counts[1] > 1.5 * counts[0]
    for name, value in found[0].items():
        if name.startswith("param/"):
            torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=2e-6)
    moved = load_file(tmp_path / "True" / CHECKPOINT)["param/hypernetwork.head.weight"]
    assert moved.abs().max() > 1e-3  # which begins at zero


def test_figures_reach_tensorboard(base: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = _config(base)
    loop = dataclasses.replace(config.loop, tracker="tensorboard", log_every=1)
    train_hyper(dataclasses.replace(config, loop=loop), tmp_path, GlyphWorld(open_sample()))
    [events] = (tmp_path / "hypernetwork").glob("events.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    wanted = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    shown = [(s.step, s.value) for s in seen.Scalars("loss")]
    assert [step for step, _ in shown] == [step for step, _ in wanted] == [1, 2, 3]
    for (_, one), (_, other) in zip(shown, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert any("val_hyper" in tag for tag in seen.Tags()["scalars"])


def test_an_unknown_tracker_and_shares_that_do_not_divide_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="'nobody'"):
        make_accelerator("nobody", tmp_path)

    class Three(Accelerator):
        num_processes, process_index = 3, 1

    assert own_shares(6, Three()) == [1, 4]
    with pytest.raises(UsageError, match="workers = 4 for 3 processes"):
        own_shares(4, Three())


def test_a_pool_goes_on_from_its_state():
    sampler = TaskSampler(open_sample(), 0, TaskMix())
    rng = torch.Generator().manual_seed(0)
    pool = TaskPool(sampler, size=5, records=3, fresh=2)
    fresh = TaskPool(sampler, size=5, records=3, fresh=2)
    fresh.restore(pool.state())  # of nothing drawn
    assert fresh.seeds is None
    for _ in range(4):
        pool.draw(2, rng)
    state, later = pool.state(), copy.deepcopy(rng.get_state())
    expected = [pool.draw(2, rng) for _ in range(3)]
    rng.set_state(later)
    fresh.restore(state)
    for images, content in expected:
        again = fresh.draw(2, rng)
        assert torch.equal(again[0], images)
        assert torch.equal(again[1], content)
    assert torch.equal(fresh.state(), pool.state())


def test_a_process_saves_the_state_of_its_own_shares_alone(tmp_path: Path):
    class Full:  # as after a resume, when every process has restored the pools of all
        def state(self) -> torch.Tensor:
            return torch.tensor([[1, 5], [1, 6]])

        def restore(self, state: torch.Tensor) -> None:
            raise AssertionError

    layer = torch.nn.Linear(2, 1)
    config = LoopConfig(steps=1, workers=2)
    loop = Loop(config, layer, lambda rng, worker: (torch.zeros(()), {}), tmp_path, sampler=Full())
    loop.shares = [1]
    loop._save()
    assert load_file(tmp_path / CHECKPOINT)["sampler"].tolist() == [[0, 0], [1, 6]]


def test_the_launched_module_says_what_is_wrong(tmp_path: Path, capsys):
    assert main(["hyper", "nothing"]) == 2
    assert "Shipped recipes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["neither"])
