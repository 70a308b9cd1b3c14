"""A fit from records to a verified PEFT directory: events in order, kills, bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError, DataError, UsageError, VerificationError
from hyperdp.ledger import Ledger, Reservation
from hyperdp.lora import load_peft
from hyperdp.private.forms import Form
from hyperdp.private.learners import fit as fit_module
from hyperdp.private.learners import units as units_module
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.fit import fit
from hyperdp.private.learners.run_folder import RunFolder
from hyperdp.private.records import Record
from hyperdp.private.release import Release, release
from hyperdp.training_certificate import TrainingCertificate
from hyperdp.verification import verify
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle

BUDGET = PrivacyBudget(epsilon=0.5, delta=1e-4)
SCANS = Form(noun="image", shape=(1, 28, 28))
PACE = Pace(microbatch=4, checkpoint_every=1)


def settings(**changes) -> FitConfig:
    start = {"method": "dpsgd", "size": 12, "expected_batch": 4, "steps": 3, "rank": 2}
    return FitConfig(**{**start, **changes})


def some_records(n: int = 12, users: int = 0) -> list[Record]:
    pixels = np.random.default_rng(0).uniform(-1, 1, (n, 1, 28, 28)).astype(np.float32)
    return [
        Record(image=image, unit=f"u{i % users}" if users else None)
        for i, image in enumerate(pixels)
    ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def run(bundle, folder, **changes):
    given = {
        "config": settings(), "budget": BUDGET, "ledger": Ledger(folder / "ledger.db"),
        "out": folder / "out", "dataset": "some scans", "pace": PACE, **changes,
    }  # fmt: skip
    records = given.pop("records", None) or some_records()
    return fit(records, bundle=bundle, **given)


def kinds(folder) -> list[str]:
    return [entry.kind for entry in Ledger(folder / "ledger.db").history()]


@pytest.mark.parametrize("method", ["dpsgd", "ffa", "projected", "prism", "anadp"])
def test_every_method_ends_in_a_certificate_that_verifies(method, bundle, tmp_path):
    start = "public-mean" if method == "prism" else "fresh"
    told = []
    made = run(
        bundle,
        tmp_path,
        config=settings(method=method, start=start, dims=4),
        progress=lambda done, steps, epsilon: told.append((done, steps, epsilon)),
    )
    assert kinds(tmp_path) == ["cap", "reserve", "spend", "commit"]
    assert [(done, steps) for done, steps, _ in told] == [(1, 3), (2, 3), (3, 3)]
    spent = [epsilon for *_, epsilon in told]
    assert 0 < spent[0] < spent[1] < spent[2] <= BUDGET.epsilon
    assert spent[2] > 0.99 * BUDGET.epsilon  # all of it, and no more
    claims = verify(tmp_path / "out", ledger=tmp_path / "ledger.db")
    assert {"epsilon (PLD)", "epsilon (Fourier)", "ledger entry"} <= {c.name for c in claims}
    again = load_peft(tmp_path / "out")
    for name, pair in made.weights.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, again[name], strict=True))
    assert sorted(p.name for p in tmp_path.glob(".*")) == []  # the run's folder is gone
    assert made.certificate.method == method


def test_any_changed_byte_of_the_adapter_or_the_certificate_is_found(bundle, tmp_path):
    run(bundle, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json", "certificate.json"):
        path = tmp_path / "out" / name
        good = path.read_bytes()
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises(VerificationError):
            verify(tmp_path / "out")
        path.write_bytes(good)
    verify(tmp_path / "out")
    # Nobody vouches for a file of a stock pipeline that the certificate does not name.
    other = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    other.write_bytes((tmp_path / "out" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(VerificationError, match="pytorch_lora_weights"):
        verify(tmp_path / "out")


def test_settings_that_differ_from_what_was_accounted_for_are_found(bundle, tmp_path):
    honest = run(bundle, tmp_path).certificate
    path = tmp_path / "out" / "certificate.json"
    for name in ("method", "size", "expected_batch", "steps", "clip_norm"):
        for value in (7, None):
            config = {**honest.config, name: value}
            path.write_bytes(dataclasses.replace(honest, config=config).signed().to_bytes())
            with pytest.raises(VerificationError, match="settings"):
                verify(tmp_path / "out")
    path.write_bytes(dataclasses.replace(honest, config={}).signed().to_bytes())
    with pytest.raises(VerificationError, match="settings"):
        verify(tmp_path / "out")


@pytest.mark.parametrize("method", ["dpsgd", "ffa", "prism"])
def test_a_spectral_start_serves_any_learner_and_ends_in_an_adapter_for_the_base(
    method, bundle, tmp_path
):
    before = {k: v.clone() for k, v in bundle.base.model.state_dict().items()}
    config = settings(method=method, start="spectral", steps=2)
    made = run(bundle, tmp_path, config=config)
    c = made.certificate
    assert (c.rank, c.config["rank"], c.config["start"]) == (4, 2, "spectral")
    verify(tmp_path / "out", ledger=tmp_path / "ledger.db")
    # The adapter is what training changed, not the base's own weights that it was given to hold.
    modules = dict(bundle.base.model.named_modules())
    for name, (a, b) in made.weights.items():
        change = b[0].double() @ a[0].flatten(1).double()
        weight = modules[name].weight.detach().flatten(1).double()
        top = torch.linalg.matrix_norm(weight, 2)
        assert 0 < torch.linalg.matrix_norm(change, 2) < 0.2 * top
    assert all(torch.equal(v, before[k]) for k, v in bundle.base.model.state_dict().items())


def test_what_a_spectral_start_cannot_serve_is_told_before_anything_is_spent(bundle, tmp_path):
    for changes, match in (
        ({"method": "projected"}, "public subspace"),
        ({"rank": 500}, "rank at least 500"),
    ):
        with pytest.raises(UsageError, match=match):
            run(bundle, tmp_path, config=settings(start="spectral", **changes))
    with pytest.raises(UsageError, match=r"--start spectral.*--start public-mean.*--init REL"):
        run(bundle, tmp_path, config=settings(method="prism"))
    with pytest.raises(UsageError, match="start in"):
        settings(start="nowhere")
    assert not (tmp_path / "ledger.db").exists()


class Killed(BaseException):
    """A kill that cannot be caught by mistake."""


def test_a_killed_run_goes_on_under_the_same_reservation(bundle, tmp_path):
    def kill(done, steps, epsilon):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    assert kinds(tmp_path) == ["cap", "reserve", "spend"]
    assert not (tmp_path / "out").exists()
    seen = []
    run(bundle, tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen == [3]  # two of three steps were kept
    assert kinds(tmp_path) == ["cap", "reserve", "spend", "commit"]
    verify(tmp_path / "out", ledger=tmp_path / "ledger.db")


def killed(bundle, folder):
    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, folder, progress=kill)
    return folder / ".out.run" / "state.sealed"


@pytest.mark.parametrize("step", [-1, 4])
def test_a_state_of_steps_that_were_not_reserved_is_refused(step, bundle, tmp_path):
    folder = folder_of(killed(bundle, tmp_path))
    _, tensors = folder.load()
    keys.forget_run(folder.run_id)
    folder.save(step, tensors)
    seen = []
    with pytest.raises(BudgetRefusedError, match="0 to 3 steps"):
        run(bundle, tmp_path, progress=lambda *told: seen.append(told))
    assert not seen and not (tmp_path / "out").exists()


def folder_of(state: Path) -> RunFolder:
    """A run's folder in the hands of whoever has the operator's key."""
    run_id = json.loads((state.parent / "run.json").read_bytes())["run_id"]
    return RunFolder(path=state.parent, run_id=run_id)


def test_a_state_that_was_changed_or_put_back_is_refused_and_no_step_is_taken(bundle, tmp_path):
    state = killed(bundle, tmp_path)
    first = state.read_bytes()

    def kill_at_two(done, *_):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill_at_two)
    second = state.read_bytes()
    seen = []

    def refused(data: bytes, match: str) -> None:
        state.write_bytes(data)
        with pytest.raises(BudgetRefusedError, match=match):
            run(bundle, tmp_path, progress=lambda *told: seen.append(told))
        assert not seen and not (tmp_path / "out").exists()

    rng = np.random.default_rng(0)
    for place in [0, 63, 64, len(second) - 1, *rng.integers(0, len(second), 4)]:
        changed = bytearray(second)
        changed[place] ^= 1
        refused(bytes(changed), "changed")
    refused(second[:64], "changed")
    refused(first, "one of step 1, though 2 were taken")  # from a backup: it is sealed rightly
    state.write_bytes(second)
    run(bundle, tmp_path)
    verify(tmp_path / "out", ledger=tmp_path / "ledger.db")
    assert not list((keys.config_dir() / "runs").iterdir())


@contextmanager
def another_account(folder: Path, monkeypatch) -> Iterator[None]:
    """Somebody who can write where the run writes and has keys of their own."""
    with monkeypatch.context() as patch:
        patch.setenv("HYPERDP_CONFIG_DIR", str(folder / "theirs"))
        yield


@pytest.mark.parametrize("theirs", [True, False])
def test_an_adapter_that_somebody_put_there_is_not_taken_for_the_runs_own(
    theirs, bundle, tmp_path, monkeypatch
):
    """The seal of a reservation is no secret: every certificate and export shows it."""
    killed(bundle, tmp_path)
    run(bundle, tmp_path, out=tmp_path / "other", dataset="others")
    other = TrainingCertificate.from_bytes((tmp_path / "other" / "certificate.json").read_bytes())
    (reserved, *_) = [e for e in Ledger(tmp_path / "ledger.db").history() if e.kind == "reserve"]
    forged = dataclasses.replace(other, ledger_seal=reserved.seal, total_epsilon=0.01)
    shutil.copytree(tmp_path / "other", tmp_path / "out")
    with nullcontext() if not theirs else another_account(tmp_path, monkeypatch):
        forged = dataclasses.replace(other, ledger_seal=reserved.seal).signed()
    (tmp_path / "out" / "certificate.json").write_bytes(forged.to_bytes())
    with pytest.raises(VerificationError, match="this account" if theirs else "ledger entry"):
        run(bundle, tmp_path)
    mine = Ledger(tmp_path / "ledger.db").history("some scans")
    assert [e.kind for e in mine] == ["cap", "reserve", "spend"]


def test_a_start_whose_cost_nobody_vouches_for_is_refused(bundle, tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.set_cap("some scans", PrivacyBudget(epsilon=2.0, delta=1e-4))
    given = {"bundle": bundle, "budget": BUDGET, "ledger": ledger, "allow_weak_delta": True}
    made = release(some_records(), out=tmp_path / "release", dataset="some scans", **given)
    spent = kinds(tmp_path)
    forged = {"event": {"type": "gaussian", "noise_multiplier": 1e4}}
    with another_account(tmp_path, monkeypatch):
        theirs = dataclasses.replace(made.certificate, **forged).signed()
        moved = dataclasses.replace(made.certificate, dataset="0" * 64).signed()
    own = dataclasses.replace(made.certificate, **forged).signed()
    for statement, match in ((theirs, "this account"), (moved, "this account"), (own, "committed")):
        (tmp_path / "release" / "certificate.json").write_bytes(statement.to_bytes())
        with pytest.raises(VerificationError, match=match):
            run(bundle, tmp_path, start=Release.load(tmp_path / "release"))
    assert kinds(tmp_path) == spent
    (tmp_path / "release" / "certificate.json").write_bytes(made.certificate.to_bytes())
    started = run(bundle, tmp_path, start=Release.load(tmp_path / "release"))
    assert started.certificate.start_event == made.certificate.event
    verify(tmp_path / "out", ledger=tmp_path / "ledger.db")


def test_a_delta_that_no_certificate_may_state_is_refused_before_it_is_spent(bundle, tmp_path):
    weak = PrivacyBudget(epsilon=0.5, delta=0.6)
    with pytest.raises(UsageError, match=r"at most 0\.5"):
        run(bundle, tmp_path, budget=weak, allow_weak_delta=True)
    assert not (tmp_path / "ledger.db").exists()
    with pytest.raises(UsageError, match="1 / size"):
        run(bundle, tmp_path, budget=PrivacyBudget(epsilon=0.5, delta=0.5))


def test_a_run_that_may_have_taken_steps_and_lost_its_state_takes_none_again(bundle, tmp_path):
    killed(bundle, tmp_path).unlink()
    read = []
    with pytest.raises(BudgetRefusedError, match="the state of the run"):
        run(bundle, tmp_path, records=(read.append(r) for r in some_records()))
    assert not read and not (tmp_path / "out").exists()


def test_a_run_killed_at_the_very_note_that_it_is_spent_goes_on(bundle, tmp_path, monkeypatch):
    honest = Reservation.spend

    def spend_and_die(reservation):
        honest(reservation)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Reservation, "spend", spend_and_die)
        run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap", "reserve", "spend"]
    run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap", "reserve", "spend", "commit"]


def test_an_error_of_a_reader_comes_without_what_its_library_said(bundle, tmp_path):
    def reader():
        yield some_records()[0]
        try:
            raise ValueError("a very private value")
        except ValueError as error:
            raise DataError(expected="x", found="y", todo="z.") from error

    with pytest.raises(DataError, match="expected x") as refused:
        run(bundle, tmp_path, records=reader())
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_a_copy_of_a_killed_run_is_no_run_and_a_second_commit_leaves_nothing(
    bundle, tmp_path, monkeypatch
):
    def die(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=die)
    shutil.copytree(tmp_path / ".out.run", tmp_path / ".copy.run")
    with pytest.raises(UsageError, match="other values of out"):
        run(bundle, tmp_path, out=tmp_path / "copy")
    real = fit_module.training_certificate

    def meanwhile(*given):
        """Somebody brings the same run to its end from a backup, at the worst moment."""
        made = real(*given)
        Reservation(ledger=Ledger(tmp_path / "ledger.db"), entry=given[1]).commit(
            certificate_sha256="0" * 64, bundle_hash=bundle.hash
        )
        return made

    monkeypatch.setattr(fit_module, "training_certificate", meanwhile)
    with pytest.raises(BudgetRefusedError, match="a second commit"):
        run(bundle, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_run_killed_after_its_adapter_is_there_is_finished_by_the_next(
    bundle, tmp_path, monkeypatch
):
    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.RunFolder, "remove", die)
        with pytest.raises(Killed):
            run(bundle, tmp_path)
    written = (tmp_path / "out" / "certificate.json").read_bytes()

    def never():
        raise AssertionError("read")
        yield

    made = run(bundle, tmp_path, records=never())
    assert made.certificate.to_bytes() == written
    assert kinds(tmp_path) == ["cap", "reserve", "spend", "commit"]
    assert not (tmp_path / ".out.run").exists()
    with pytest.raises(UsageError, match="exists already"):
        run(bundle, tmp_path, records=never())


def test_a_folder_that_came_to_be_while_a_run_was_dead_is_not_taken_for_its_own(bundle, tmp_path):
    def die(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=die)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        run(bundle, tmp_path)
    run(bundle, tmp_path, out=tmp_path / "theirs", dataset="others", ledger=Ledger(
        tmp_path / "theirs.db"))  # fmt: skip
    (tmp_path / "out").rmdir()
    (tmp_path / "theirs").rename(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap", "reserve", "spend"]


def test_a_run_killed_just_after_its_reservation_does_not_reserve_again(
    bundle, tmp_path, monkeypatch
):
    class DyingError(Exception):
        pass

    def die(*args, **kwargs):
        raise DyingError

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Units, "read", die)
        with pytest.raises(DyingError):
            run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap", "reserve"]
    run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap", "reserve", "spend", "commit"]


def test_a_run_does_not_go_on_with_other_settings_nor_twice_nor_over_files(bundle, tmp_path):
    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    with pytest.raises(UsageError, match="other values of config"):
        run(bundle, tmp_path, config=settings(lr=0.5))
    with pytest.raises(BudgetRefusedError, match="does not know it"):
        run(bundle, tmp_path, ledger=Ledger(tmp_path / "other.db"))
    run(bundle, tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        run(bundle, tmp_path)
    with pytest.raises(BudgetRefusedError):  # the cap is what the first run spent
        run(bundle, tmp_path, out=tmp_path / "again")


def test_nothing_is_read_before_the_reservation_nor_without_one(bundle, tmp_path):
    def looking():
        assert kinds(tmp_path) == ["cap", "reserve"]
        yield from some_records()

    run(bundle, tmp_path, records=looking())

    def never():
        raise AssertionError("read")
        yield

    with pytest.raises(BudgetRefusedError):
        run(bundle, tmp_path, records=never(), out=tmp_path / "again")


def test_an_empty_dataset_is_trained_on_like_any_other(bundle, tmp_path):
    run(bundle, tmp_path, records=iter(()))
    verify(tmp_path / "out")


def test_records_that_are_not_finite_count_as_zero(bundle, tmp_path):
    bad = [Record(image=np.full((1, 28, 28), np.nan, dtype=np.float32)) for _ in range(6)]
    made = run(bundle, tmp_path, records=[*some_records(6), *bad])
    assert all(p.isfinite().all() for pair in made.weights.values() for p in pair)


def test_users_are_the_unit_where_they_are_named(bundle, tmp_path):
    budget = PrivacyBudget(epsilon=0.5, delta=1e-4, unit="user")
    with pytest.raises(Exception, match="name its user"):
        run(bundle, tmp_path, budget=budget)
    made = run(bundle, tmp_path, budget=budget, records=some_records(12, users=3))
    assert made.certificate.unit == "user"
    units = units_module.Units.read(some_records(12, users=3), form=SCANS, unit="user")
    assert len(units._members) == 3
    assert repr(units) == "Units(private)"


def test_a_fit_from_a_release_composes_in_the_ledger_and_in_its_certificate(bundle, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    both = PrivacyBudget(epsilon=0.95, delta=1e-4)
    ledger.set_cap("some scans", both)
    first = release(
        some_records(), bundle=bundle, budget=BUDGET, ledger=ledger,
        out=tmp_path / "release", dataset="some scans", allow_weak_delta=True,
    )  # fmt: skip
    made = run(bundle, tmp_path, start=first, config=settings(method="prism"))
    c = made.certificate
    assert c.start_event == first.certificate.event
    assert BUDGET.epsilon < c.total_epsilon < 2 * BUDGET.epsilon  # far below the plain sum
    account = ledger.account("some scans")
    assert account.spent_epsilon == pytest.approx(c.total_epsilon, abs=1e-5)
    assert account.spent_epsilon <= both.epsilon
    claims = {claim.name: claim for claim in verify(tmp_path / "out", ledger=ledger.path)}
    assert float(claims["epsilon with the start"].recomputed) <= c.total_epsilon + 1e-6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"config": {"expected_batch": 13}}, "at most the dataset's public size, 12"),
        ({"config": {"steps": 0}}, "steps >= 1"),
        ({"config": {"method": "magic"}}, "a method: dpsgd, ffa, projected, prism, anadp"),
        ({"config": {"target_modules": ("nope",)}}, "LoRA sites: down_blocks"),
        ({"config": {"method": "prism"}}, "rank"),
        ({"budget": PrivacyBudget(epsilon=1e-4, delta=1e-4)}, "noise multiplier of at most 1000"),
        ({"budget": PrivacyBudget(epsilon=1.0, delta=0.2)}, "delta below 1 / size"),
        (
            {"budget": PrivacyBudget(epsilon=1.0, delta=1e-4, adjacency="replace-one")},
            "add-remove adjacency",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(changes, match, bundle, tmp_path):
    with pytest.raises(UsageError, match=match):
        if "config" in changes:
            changes = {"config": settings(**changes["config"])}
        run(bundle, tmp_path, **changes)
    assert not (tmp_path / "ledger.db").exists()


def test_weights_that_did_not_move_are_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hyperdp.private.learners.dpsgd.DpSgd.update", lambda self, weights, *_: weights
    )
    with pytest.raises(VerificationError, match="weights as they were at the start"):
        run(bundle, tmp_path, config=settings(average=0.0))
    assert not (tmp_path / "out").exists()


def test_what_is_kept_of_a_run_is_for_its_owner_alone(bundle, tmp_path):
    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    folder = tmp_path / ".out.run"
    assert folder.stat().st_mode & 0o077 == 0
    kept = json.loads((folder / "run.json").read_bytes())
    assert set(kept) == {"run_id", "settings"}
