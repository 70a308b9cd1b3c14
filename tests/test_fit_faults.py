"""Kills of fits and hybrids, at random and at every durable write. Run with `pytest -m faults`."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError
from hyperdp.ledger import Ledger
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.fit import fit
from hyperdp.private.learners.hybrid import fit_hybrid
from hyperdp.verification import verify
from tests.known_noise import make_known
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.test_learner_fit import some_records
from tests.test_ledger_faults import child, ledger_was_made, outcome
from tests.worlds import tiny_bundle

pytestmark = pytest.mark.faults

BUDGET = PrivacyBudget(epsilon=0.5, delta=1e-4)
KILLS = 25
DONE, LOST = 0, 3
CONFIG = FitConfig(
    method="dpsgd", size=12, expected_batch=4, steps=3, rank=2, start="public-mean",
)  # fmt: skip
PACE = Pace(microbatch=4, checkpoint_every=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.set_num_threads(1)  # a fork has the threads of its parent no more
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    make_known(monkeypatch)


def start_fit(bundle, folder: Path, name: str) -> int:
    fit(
        some_records(), bundle=bundle, config=CONFIG, budget=BUDGET, pace=PACE, dataset=name,
        ledger=Ledger(folder / "ledger.db"), out=folder / name / "adapter",
    )  # fmt: skip
    return DONE


def start_hybrid(bundle, folder: Path, name: str) -> int:
    try:
        fit_hybrid(
            some_records, bundle=bundle, config=CONFIG, budget=BUDGET, pace=PACE, dataset=name,
            ledger=Ledger(folder / "ledger.db"), out=folder / name, fraction=0.4,
            allow_weak_delta=True,
        )  # fmt: skip
    except BudgetRefusedError:
        return LOST
    return DONE


RUNS = {"fit": (start_fit, 1), "hybrid": (start_hybrid, 2)}  # and the events that each reserves


def steps_of(state: Path) -> int:
    """Steps whose noise a kept state carries."""
    return int(load(state.read_bytes()[64:])["step"])  # what comes first is its seal


def check_world(folder: Path, name: str, events: int) -> None:
    """What must hold whenever the power may have gone."""
    ledger = Ledger(folder / "ledger.db")
    place = folder / name
    kept = [steps_of(path) for path in place.glob(".adapter.run/state.sealed")]
    shown = [place / part / "certificate.json" for part in ("release", "adapter")]
    shown = [path for path in shown if path.exists()]
    if not ledger_was_made(ledger):
        assert not kept and not shown
        return
    mine = ledger.history(name)
    reserved = [e.seal for e in mine if e.kind == "reserve"]
    assert len(reserved) == len(set(reserved)) <= events, "a budget was reserved twice"
    spent = [e.body["reservation"] for e in mine if e.kind == "spend"]
    assert len(spent) == len(set(spent)), "a budget was spent twice"
    # What carries noise is paid for, in whole.
    assert len(spent) >= max([len(shown), *(events if steps else events - 1 for steps in kept)])
    account = ledger.account(name)
    assert account is None or account.spent_epsilon <= account.cap.epsilon


def finish(bundle, folder: Path, name: str, kind: str, wanted: bytes) -> bool:
    """Start it again until it ends; whether it ended with the adapter of an unbroken run."""
    start, events = RUNS[kind]
    code = outcome(child(lambda: start(bundle, folder, name)))
    check_world(folder, name, events)
    history = Ledger(folder / "ledger.db").history(name)
    if code == LOST:
        # Only where noise of the release was drawn and the release is not there.
        first = next(e for e in history if e.kind == "reserve")
        noted = [e.kind for e in history if e.body.get("reservation") == first.seal]
        assert (kind, noted) == ("hybrid", ["spend"])
        assert not (folder / name / "release").exists()
        return False
    if code != DONE:  # killed when all was done but the last of its traces
        assert not (folder / name / ".adapter.run" / "run.json").exists()
    for end in ("reserve", "spend", "commit"):
        assert sum(e.kind == end for e in history) == events
    assert (folder / name / "adapter" / "adapter_model.safetensors").read_bytes() == wanted
    return True


def unbroken(bundle, folder: Path, kind: str) -> tuple[bytes, float]:
    """The adapter of a run that nobody kills, and the seconds that it took."""
    start = RUNS[kind][0]
    start(bundle, folder, "calibrates")  # in this process, for the children to inherit
    began = time.monotonic()
    assert outcome(child(lambda: start(bundle, folder, "unbroken"))) == DONE
    seconds = time.monotonic() - began
    return (folder / "unbroken/adapter/adapter_model.safetensors").read_bytes(), seconds


@pytest.mark.parametrize("kind", RUNS)
def test_kills_at_random_points(kind, bundle, tmp_path):
    wanted, usual = unbroken(bundle, tmp_path, kind)
    start, events = RUNS[kind]
    rng = random.Random(0)
    killed = whole = 0
    for i in range(KILLS):
        name = f"set {i}"
        pid = child(lambda name=name: start(bundle, tmp_path, name))
        time.sleep(rng.uniform(0, 1.1 * usual))
        os.kill(pid, signal.SIGKILL)
        killed += outcome(pid) == -signal.SIGKILL
        check_world(tmp_path, name, events)
        whole += finish(bundle, tmp_path, name, kind, wanted)
    print(f"{kind}: {KILLS} runs, {killed} killed, {whole} ended as an unbroken one")
    assert killed > KILLS / 2
    # A release is lost only where the kill comes between its noise and its folder.
    assert whole == KILLS if kind == "fit" else whole > 0.7 * KILLS


@pytest.mark.parametrize("kind", RUNS)
def test_a_kill_at_every_durable_write(kind, bundle, tmp_path):
    """Before or after each fsync, rename and unlink; which of the two, a coin says."""
    wanted, _ = unbroken(bundle, tmp_path, kind)
    start, events = RUNS[kind]
    rng = random.Random(1)
    whole = 0
    for place in itertools.count():
        name, after = f"at {place}", rng.random() < 0.5

        def work(name=name, place=place, after=after):
            calls = itertools.count()

            def deadly(real):
                def call(*values, **options):
                    mine = next(calls) == place
                    if mine and not after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = real(*values, **options)
                    if mine:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                return call

            os.fsync = deadly(os.fsync)
            for method in ("rename", "replace", "unlink"):
                setattr(Path, method, deadly(getattr(Path, method)))
            return start(bundle, tmp_path, name)

        code = outcome(child(work))
        if code == DONE:
            break
        assert code == -signal.SIGKILL
        check_world(tmp_path, name, events)
        whole += finish(bundle, tmp_path, name, kind, wanted)
    print(f"{kind}: killed at each of {place} durable writes, {whole} ended as an unbroken run")
    assert place >= 20
    # Of a hybrid's writes these lie between the note that noise is drawn and the release's folder:
    # the note's anchor (fsync, replace, fsync), two files of the release likewise, and its rename.
    assert place - whole <= 10 * (events - 1)


def test_verify_accepts_what_a_killed_hybrid_ends_with(bundle, tmp_path):
    pid = child(lambda: start_hybrid(bundle, tmp_path, "one"))
    while not list(tmp_path.glob("one/.adapter.run/state.sealed")):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    outcome(pid)
    assert start_hybrid(bundle, tmp_path, "one") == DONE
    for part in ("release", "adapter"):
        verify(tmp_path / "one" / part, ledger=tmp_path / "ledger.db")
