"""A release and steps under one budget: ledger, certificates, kills, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import Certificate
from hyperdp.errors import BudgetRefusedError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.private.emit import adapter_weights
from hyperdp.private.learners import hybrid as hybrid_module
from hyperdp.private.learners.hybrid import fit_hybrid
from hyperdp.private.learners.reserving import Standing, StandingLedger, cap_if_none
from hyperdp.private.release import release
from hyperdp.verification import verify
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.test_learner_fit import PACE, Killed, kinds, settings, some_records
from tests.worlds import tiny_bundle

BUDGET = PrivacyBudget(epsilon=0.5, delta=1e-4)
NAME = "some scans"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def run(bundle, folder, **changes):
    given = {
        "config": settings(method="prism"), "budget": BUDGET, "fraction": 0.4,
        "ledger": Ledger(folder / "ledger.db"), "out": folder / "out", "dataset": NAME,
        "pace": PACE, "allow_weak_delta": True, **changes,
    }  # fmt: skip
    read = given.pop("read", some_records)
    return fit_hybrid(read, bundle=bundle, **given)


def test_one_budget_pays_for_both_and_both_certificates_verify(bundle, tmp_path):
    told = []
    made = run(bundle, tmp_path, progress=lambda done, steps, eps: told.append(eps))
    assert kinds(tmp_path) == [
        "cap", "reserve", "reserve", "spend", "commit", "spend", "commit",
    ]  # fmt: skip
    ledger = Ledger(tmp_path / "ledger.db")
    account = ledger.account(NAME)
    assert account.cap == BUDGET
    assert 0.99 * BUDGET.epsilon < account.spent_epsilon <= BUDGET.epsilon
    for part in ("release", "adapter"):
        claims = {c.name for c in verify(tmp_path / "out" / part, ledger=ledger.path)}
        assert "ledger entry" in claims
    assert "epsilon with the start (Fourier)" in claims
    c = made.fit.certificate
    assert c.total_epsilon == pytest.approx(account.spent_epsilon, abs=1e-9)
    assert c.start_event == made.release.certificate.event
    assert made.release.certificate.epsilon + c.epsilon > BUDGET.epsilon > c.total_epsilon - 1e-9
    # ε that was told counts the release in, from the first step on.
    assert made.release.certificate.epsilon <= told[0] < told[-1] <= BUDGET.epsilon
    # What an operator might sign all the same: a total without the release, or with a cheaper one.
    path = tmp_path / "out" / "adapter" / "certificate.json"
    cheaper = c.start_event | {"noise_multiplier": 2 * c.start_event["noise_multiplier"]}
    for lie, word in (
        ({"total_epsilon": c.epsilon}, "epsilon with the start"),
        ({"start_event": cheaper}, "the start that the ledger knows"),
        (
            {"start_event": {}, "start_delta_discretisation": 0.0, "total_epsilon": c.epsilon},
            "the start that the ledger knows",
        ),
    ):
        path.write_bytes(replace(c, **lie).signed().to_bytes())
        with pytest.raises(VerificationError, match=word):
            verify(path.parent, ledger=ledger.path)
    path.write_bytes(c.to_bytes())
    with pytest.raises(BudgetRefusedError):
        run(bundle, tmp_path, out=tmp_path / "again")
    assert not (tmp_path / "again" / "release").exists()
    assert kinds(tmp_path).count("reserve") == 2  # the refused run left nothing reserved


def test_the_steps_begin_at_what_the_release_emits(bundle, tmp_path, monkeypatch):
    begun = []
    real = hybrid_module.Training

    class Watched(real):
        def __init__(self, terms, start):
            super().__init__(terms, start)
            begun.append((start, self.begin))

    monkeypatch.setattr(hybrid_module, "Training", Watched)
    made = run(bundle, tmp_path, config=settings(method="dpsgd"))
    (trial, _), (start, begin) = begun
    assert trial is None and start is not None
    emitted = adapter_weights(bundle, made.release.mean(), made.release.mean_noise_std())
    for name, (a, b) in emitted.items():
        assert torch.equal(begin[name][0], a) and torch.equal(begin[name][1], b)


def test_a_hybrid_killed_in_its_steps_goes_on_and_reserves_nothing_anew(bundle, tmp_path):
    def kill(done, *_):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    before = (tmp_path / "out" / "release" / "certificate.json").read_bytes()
    with pytest.raises(UsageError, match="other values of fraction"):
        run(bundle, tmp_path, fraction=0.5)
    with pytest.raises(UsageError, match="not of a run that the ledger knows"):
        run(bundle, tmp_path, ledger=Ledger(tmp_path / "other.db"))
    seen = []
    run(bundle, tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen == [3]
    assert (tmp_path / "out" / "release" / "certificate.json").read_bytes() == before
    assert kinds(tmp_path).count("reserve") == 2
    assert kinds(tmp_path).count("spend") == kinds(tmp_path).count("commit") == 2


def test_noise_of_a_release_is_never_drawn_twice(bundle, tmp_path, monkeypatch):
    draws = []
    real = hybrid_module.release.__globals__["add_noise"]

    def lose(total, budget):
        draws.append(1)
        real(total, budget)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(hybrid_module.release.__globals__, "add_noise", lose)
        with pytest.raises(Killed):
            run(bundle, tmp_path)
        with pytest.raises(BudgetRefusedError, match="its noise was drawn"):
            run(bundle, tmp_path)
    assert len(draws) == 1
    assert Ledger(tmp_path / "ledger.db").account(NAME).spent_epsilon > 0.99 * BUDGET.epsilon


def test_a_release_killed_while_it_reads_is_made_under_the_same_reservation(bundle, tmp_path):
    def die():
        raise Killed
        yield

    with pytest.raises(Killed):
        run(bundle, tmp_path, read=die)
    assert kinds(tmp_path) == ["cap", "reserve", "reserve"]
    run(bundle, tmp_path)
    assert kinds(tmp_path).count("reserve") == 2


def test_another_release_is_not_taken_for_the_runs_own(bundle, tmp_path):
    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    other = tmp_path / "other"
    release(
        some_records(), bundle=bundle, budget=BUDGET, ledger=Ledger(tmp_path / "other.db"),
        out=other, dataset="other scans", allow_weak_delta=True,
    )  # fmt: skip
    mine = tmp_path / "out" / "release"
    mine.rename(tmp_path / "kept")
    other.rename(mine)
    with pytest.raises(VerificationError, match="ledger entry to have seal"):
        run(bundle, tmp_path)


@pytest.mark.parametrize("theirs", [True, False])
def test_a_release_that_says_it_cost_less_than_it_did_is_not_gone_on_from(
    theirs, bundle, tmp_path, monkeypatch
):
    """Its certificate is public, seal and all: whoever can write there signs it anew."""

    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        run(bundle, tmp_path, progress=kill)
    place = tmp_path / "out" / "release" / "certificate.json"
    honest = Certificate.from_bytes(place.read_bytes())
    cheaper = replace(honest, event={"type": "gaussian", "noise_multiplier": 1e4})
    with monkeypatch.context() as patch:
        if theirs:
            patch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "theirs"))
        place.write_bytes(cheaper.signed().to_bytes())
    with pytest.raises(VerificationError, match="this account" if theirs else "to have event"):
        run(bundle, tmp_path)
    assert not (tmp_path / "out" / "adapter").exists()
    # Signed by this account for this very entry, and still not what was committed.
    place.write_bytes(replace(honest, code_version="0").signed().to_bytes())
    with pytest.raises(VerificationError, match="has committed"):
        run(bundle, tmp_path)
    place.write_bytes(honest.to_bytes())
    total = run(bundle, tmp_path).fit.certificate.total_epsilon
    assert total == pytest.approx(BUDGET.epsilon, rel=0.01)


def test_both_fit_under_a_cap_that_stands_or_nothing_is_reserved(bundle, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.set_cap(NAME, PrivacyBudget(epsilon=0.45, delta=1e-4))
    with pytest.raises(BudgetRefusedError, match="Nothing was reserved"):
        run(bundle, tmp_path)
    assert kinds(tmp_path) == ["cap"]
    cap_if_none(ledger, NAME, BUDGET)
    assert kinds(tmp_path) == ["cap"]  # a cap that stands is never raised
    cap_if_none(ledger, "other scans", BUDGET)
    assert ledger.account("other scans").cap == BUDGET


def test_a_reservation_serves_the_event_it_was_made_for_alone(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    dear = accounting.event_from_json({"type": "gaussian", "noise_multiplier": 20.0})
    cheap = accounting.event_from_json({"type": "gaussian", "noise_multiplier": 40.0})
    made = ledger.reserve(NAME, budget=BUDGET, event=cheap, bundle_hash="b")
    standing = StandingLedger(Standing(reservation=made))
    same = {"budget": BUDGET, "event": cheap, "bundle_hash": "b"}
    assert standing.reserve(NAME, **same) == made
    for change in ({"event": dear}, {"bundle_hash": "c"}, {"delta_discretisation": 1e-9},
                   {"budget": PrivacyBudget(epsilon=0.6, delta=1e-4)}):  # fmt: skip
        with pytest.raises(BudgetRefusedError, match="other values"):
            standing.reserve(NAME, **{**same, **change})
    with pytest.raises(BudgetRefusedError, match="dataset"):
        standing.reserve("other scans", **same)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fraction": 0.0}, "0 < f < 1"),
        ({"budget": PrivacyBudget(epsilon=0.5, delta=1e-4, adjacency="replace-one")}, "add-remove"),
        ({"config": {"method": "magic"}}, "a method"),
        ({"config": {"target_modules": ("nope",)}}, "LoRA sites"),
        ({"budget": PrivacyBudget(epsilon=0.5, delta=0.2), "allow_weak_delta": False}, "1 / size"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(changes, match, bundle, tmp_path):
    with pytest.raises(UsageError, match=match):
        if "config" in changes:
            changes = {"config": settings(**changes["config"])}
        run(bundle, tmp_path, **changes)
    assert not (tmp_path / "ledger.db").exists()
