"""Kills, races, full disks and locked files. Run with `pytest -m faults`."""

import itertools
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError, HyperdpError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import check_independence
from hyperdp.private.release import Release, release
from hyperdp.verification import verify
from tests.private_world import TinyBundle, own_keys, records  # noqa: F401

pytestmark = pytest.mark.faults

ONE = PrivacyBudget(epsilon=1.0, delta=1e-5)
BUNDLE = TinyBundle()
DATA = records(300)
KILLS = 200
RACERS = 64
OUTCOMES = {"released": 0, "refused": 3, "error": 2, "fault": 1}


def run(folder: Path, dataset: str, out: str) -> int:
    """One release in this process, as an exit code."""
    try:
        release(
            iter(DATA),
            bundle=BUNDLE,
            budget=ONE,
            ledger=Ledger(folder / "ledger.db"),
            out=folder / out,
            dataset=dataset,
        )
    except BudgetRefusedError:
        return OUTCOMES["refused"]
    except HyperdpError:
        return OUTCOMES["error"]
    except BaseException:  # noqa: BLE001
        return OUTCOMES["fault"]
    return OUTCOMES["released"]


def child(work) -> int:
    """Fork, so that torch is imported once; the child never returns into pytest."""
    pid = os.fork()
    if pid == 0:
        code = OUTCOMES["fault"]
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def outcome(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def needles() -> list[bytes]:
    """Every spelling in which a file could hold one of the exact sums."""
    spec = MechanismSpec(embedding_dim=8, clip_norm=1.0)
    exact = aggregate(DATA, bundle=BUNDLE, spec=spec, unit="record", classes=[])
    spelt = []
    for value in [*exact._sums.ravel(), *exact._counts]:
        spelt += [str(value).encode(), value.tobytes()]
        spelt += [np.float32(value / 2**24).tobytes(), np.float64(value / 2**24).tobytes()]
    return spelt


def ledger_was_made(ledger: Ledger) -> bool:
    """Or else it was killed before there was any ledger, or in the middle of making it."""
    try:
        ledger.history()
    except UsageError:
        assert not ledger.path.exists()
        return False
    except VerificationError as error:
        assert "no ledger" in str(error)
        return False
    return True


def check_world(folder: Path, dataset: str, out: str, secrets: list[bytes]) -> bool:
    """What must hold whenever the power may have gone; returns whether a budget was spent."""
    ledger = Ledger(folder / "ledger.db")
    if not ledger_was_made(ledger):
        assert not (folder / out).exists()
        return False
    mine = ledger.history(dataset)
    reserved = [e.seal for e in mine if e.kind == "reserve"]
    assert len(reserved) <= 1, "a budget was spent twice"
    account = ledger.account(dataset)
    assert account is None or account.spent_epsilon <= account.cap.epsilon
    if (folder / out).exists():
        made = Release.load(folder / out)  # whole, or not there
        assert made.certificate.ledger_seal in reserved, "a release without a ledger entry"
        verify(folder / out, ledger=folder / "ledger.db")
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret in content for secret in secrets), f"un-noised value in {path}"
    return bool(reserved)


def check_again(folder: Path, dataset: str, out: str, *, spent: bool) -> None:
    """A second run is granted exactly where the first spent nothing."""
    code = outcome(child(lambda: run(folder, dataset, f"{out}-again")))
    assert code == (OUTCOMES["refused"] if spent else OUTCOMES["released"])
    shutil.rmtree(folder / f"{out}-again", ignore_errors=True)
    for draft in folder.glob(f".{out}*"):
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(folder / out, ignore_errors=True)


def test_200_kills_at_random_points(tmp_path):
    secrets = needles()
    check_independence(BUNDLE)
    start = time.monotonic()
    assert outcome(child(lambda: run(tmp_path, "warm up", "warm"))) == OUTCOMES["released"]
    usual = time.monotonic() - start
    rng = random.Random(0)
    killed = spent = 0
    for i in range(KILLS):
        dataset, out = f"set {i}", f"out{i}"
        pid = child(lambda d=dataset, o=out: run(tmp_path, d, o))
        time.sleep(rng.uniform(0, 1.1 * usual))
        os.kill(pid, signal.SIGKILL)
        killed += outcome(pid) == -signal.SIGKILL
        was_spent = check_world(tmp_path, dataset, out, secrets)
        spent += was_spent
        if i % 4 == 0:
            check_again(tmp_path, dataset, out, spent=was_spent)
    print(f"{KILLS} runs: {killed} killed, {spent} had reserved their budget")
    assert killed > KILLS / 2
    assert 0 < spent < KILLS


def test_a_kill_at_every_durable_write(tmp_path):
    """Before and after each fsync, link and rename of a release."""
    secrets = needles()
    for step in itertools.count():
        for moment in ("before", "after"):
            dataset, out = f"{moment} {step}", f"{moment}{step}"

            def work(dataset=dataset, out=out, step=step, moment=moment):
                calls = itertools.count()

                def deadly(real):
                    def call(*values):
                        mine = next(calls) == step
                        if mine and moment == "before":
                            os.kill(os.getpid(), signal.SIGKILL)
                        result = real(*values)
                        if mine:
                            os.kill(os.getpid(), signal.SIGKILL)
                        return result

                    return call

                os.fsync, Path.rename = deadly(os.fsync), deadly(Path.rename)
                Path.replace = deadly(Path.replace)
                return run(tmp_path, dataset, out)

            code = outcome(child(work))
            spent = check_world(tmp_path, dataset, out, secrets)
            check_again(tmp_path, dataset, out, spent=spent)
        if code == OUTCOMES["released"]:
            break
    print(f"killed before and after each of {step} durable writes")
    assert step >= 12


def test_64_processes_race_for_one_budget(tmp_path):
    secrets = needles()
    pids = [child(lambda i=i: run(tmp_path, "one", f"out{i}")) for i in range(RACERS)]
    codes = sorted(outcome(pid) for pid in pids)
    assert codes == [OUTCOMES["released"]] + [OUTCOMES["refused"]] * (RACERS - 1)
    (out,) = [p.name for p in tmp_path.glob("out*")]
    assert check_world(tmp_path, "one", out, secrets)
    assert not list(tmp_path.glob(".out*"))


def test_64_processes_race_for_a_cap_of_many(tmp_path):
    """Sixteen composed releases fit; whoever comes first."""
    ledger = Ledger(tmp_path / "ledger.db")
    small = PrivacyBudget(epsilon=0.25, delta=1e-5)
    spec = MechanismSpec(embedding_dim=8, clip_norm=1.0)
    tau = spec.calibrate(small).noise_multiplier
    from dp_accounting import get_epsilon_gaussian

    cap = get_epsilon_gaussian(tau / 4, 1e-5 * (1 - 1e-5))  # 16 events are one of τ / 4
    ledger.set_cap("many", PrivacyBudget(epsilon=cap, delta=1e-5))

    def work(i):
        try:
            release(
                iter(DATA), bundle=BUNDLE, budget=small, ledger=ledger, out=tmp_path / f"out{i}",
                dataset="many",
            )  # fmt: skip
        except BudgetRefusedError:
            return OUTCOMES["refused"]
        return OUTCOMES["released"]

    codes = [outcome(pid) for pid in [child(lambda i=i: work(i)) for i in range(RACERS)]]
    assert codes.count(OUTCOMES["released"]) == 16
    assert codes.count(OUTCOMES["refused"]) == RACERS - 16
    assert ledger.account("many").spent_epsilon <= cap


@pytest.mark.parametrize("limit", [0, 100, 500, 1000, 2000, 4096, 8192, 12288, 16384, 24576, 65536])
def test_a_full_disk(tmp_path, limit):
    """A limit on file size fails every write beyond it, whoever writes."""
    assert run(tmp_path, "before", "before") == OUTCOMES["released"]

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return run(tmp_path, "set", "out")

    code = outcome(child(work))
    assert code in {OUTCOMES["error"], OUTCOMES["released"]}
    spent = check_world(tmp_path, "set", "out", needles())
    assert (tmp_path / "out").exists() == (code == OUTCOMES["released"])
    assert not list(tmp_path.glob(".out*"))
    check_again(tmp_path, "set", "out", spent=spent)


@pytest.mark.parametrize("what", ["ledger", "folder", "config"])
def test_what_cannot_be_written_refuses_and_releases_nothing(what, monkeypatch):
    """As an ordinary user, since permissions do not bind root."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(folder / "config"))
        assert run(folder, "before", "before") == OUTCOMES["released"]
        (folder / "mine").mkdir()
        user = 65534 if os.getuid() == 0 else os.getuid()
        if os.getuid() == 0:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, user, user)
        before = (folder / "ledger.db").read_bytes()
        target = {"ledger": "ledger.db", "folder": "mine", "config": "config"}[what]
        (folder / target).chmod(0o444 if what == "ledger" else 0o555)

        def work():
            os.setuid(user)
            return run(folder, "set", "mine/out")

        assert outcome(child(work)) == OUTCOMES["error"]
        assert not list((folder / "mine").iterdir())
        if what != "config":
            assert (folder / "ledger.db").read_bytes() == before
    finally:
        shutil.rmtree(folder)


def test_a_killed_writer_does_not_lock_others_out(tmp_path):
    """The lock dies with its holder."""

    def work():
        with Ledger(tmp_path / "ledger.db").open():
            os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    run(tmp_path, "first", "first")
    pid = child(work)
    time.sleep(0.5)
    waiting = child(lambda: run(tmp_path, "second", "second"))
    time.sleep(0.5)
    assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    outcome(pid)
    assert outcome(waiting) == OUTCOMES["released"]


def test_keys_made_in_a_race_with_kills_stay_whole(tmp_path, monkeypatch):
    rng = random.Random(1)
    for i in range(40):
        monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / f"config{i}"))
        pids = [child(lambda: len(keys.seal(b"x")) - 64) for _ in range(3)]
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pids[0], signal.SIGKILL)
        codes = [outcome(pid) for pid in pids]
        assert codes[1:] == [0, 0]
        assert len(keys.seal(b"x")) == 64
