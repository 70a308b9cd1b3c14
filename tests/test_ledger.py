import contextlib
import math
import multiprocessing
import re
import shlex
import shutil
import threading

import pytest
from dp_accounting import dp_event

from hyperdp import accounting, keys
from hyperdp import ledger as ledger_module
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.cli._app import run
from hyperdp.errors import BudgetRefusedError, BundleError, UsageError, VerificationError
from hyperdp.ledger import Ledger, ledger_file
from tests.ledgers import HALF, HASH, ONE, gaussian, reserve
from tests.private_world import own_keys  # noqa: F401


def test_first_reservation_sets_the_cap_and_the_second_is_refused(ledger):
    reserve(ledger)
    with pytest.raises(BudgetRefusedError) as refused:
        reserve(ledger, HALF)
    assert refused.value.exit_code == 3
    assert "epsilon=0 is left" in str(refused.value)
    assert [e.kind for e in ledger.history()] == ["cap", "reserve"]


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.001, 1e-3), (0.02, 1e-8), (0.001, 1e-6), (1e-4, 1e-7)]
)
def test_a_first_reservation_is_not_refused_by_its_own_cap(ledger, epsilon, delta):
    reserve(ledger, PrivacyBudget(epsilon=epsilon, delta=delta))


def test_refusal_says_what_is_left_and_that_much_is_then_granted(ledger):
    ledger.set_cap("digits", ONE)
    reserve(ledger, HALF)
    left = ledger.account("digits").remaining_epsilon
    assert 0.5 < left < 1.0  # Gaussians compose better than by adding up
    with pytest.raises(BudgetRefusedError) as refused:
        reserve(ledger, ONE)
    said = float(re.search(r"At most epsilon=(\S+) is left", str(refused.value))[1])
    assert left - 1e-3 <= said <= left  # rounded down: what is offered is there
    reserve(ledger, PrivacyBudget(epsilon=said, delta=1e-5))
    assert ledger.account("digits").spent_epsilon == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("change", [{}, {"adjacency": "replace-one"}, {"unit": "user"}])
def test_the_command_that_a_refusal_names_makes_room_for_what_was_asked(ledger, change, capsys):
    budget = PrivacyBudget(epsilon=1.0, delta=1e-5, **change)
    reserve(ledger, budget, dataset="old scans")
    with pytest.raises(BudgetRefusedError) as refused:
        reserve(ledger, budget, dataset="old scans")
    [command] = re.findall("`(.*)`", str(refused.value))
    assert command.startswith("hyperdp ledger set-cap 'old scans'")
    assert run(shlex.split(command)[1:]) == 0
    reserve(ledger, budget, dataset="old scans")
    assert ledger.account("old scans").cap.epsilon < 1.5


@pytest.mark.parametrize("value", [1.4650001, 0.99984, 1.0, 3e-5, 0.0, math.inf])
def test_figures_in_a_refusal_err_on_the_safe_side(value):
    up, down = float(ledger_module._up(value)), float(ledger_module._down(value))
    assert (down <= value <= up and up - down <= 1e-3 * value) or value == math.inf == up


def test_asking_where_a_budget_is_kept_makes_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "other account"))
    assert ledger_file("digits") is None
    assert list((tmp_path / "other account").rglob("*")) == []


def test_another_ledger_neither_shows_nor_raises_a_cap(ledger, tmp_path):
    reserve(ledger)
    other = Ledger(tmp_path / "other.db")
    for ask in (lambda: other.set_cap("digits", ONE), lambda: other.account("digits")):
        other.set_cap("letters", ONE)  # so that it is there to be looked at
        with pytest.raises(BudgetRefusedError, match="last seen at"):
            ask()
    assert other.history("digits") == [] and ledger_file("digits") == ledger.path
    assert ledger_file("letters") is None  # a cap is not yet a claim


def test_composition_over_releases_and_dp_sgd_is_that_of_pld(ledger):
    ledger.set_cap("digits", PrivacyBudget(epsilon=20.0, delta=1e-5))
    sgd = dp_event.SelfComposedDpEvent(
        dp_event.PoissonSampledDpEvent(0.02, dp_event.GaussianDpEvent(1.1)), 300
    )
    for _ in range(3):
        reserve(ledger, HALF)
    reserve(ledger, PrivacyBudget(epsilon=3.0, delta=1e-5), event=sgd, purpose="dp-sgd")
    by_hand = accounting.pld_epsilon([*[gaussian(HALF)] * 3, sgd], 1e-5)
    assert ledger.account("digits").spent_epsilon == pytest.approx(by_hand, rel=1e-9)


def test_datasets_have_budgets_of_their_own(ledger):
    reserve(ledger, dataset="one")
    reserve(ledger, dataset="two")
    assert ledger.account("three") is None
    assert len(ledger.history("one")) == 2
    assert len(ledger.history()) == 4


def test_another_ledger_grants_no_fresh_budget(ledger, tmp_path):
    """Neither a second file, nor a new one in the place of one that was deleted."""
    reserve(ledger)
    other = Ledger(tmp_path / "other.db")
    with pytest.raises(BudgetRefusedError, match="--dataset"):
        reserve(other)
    reserve(other, dataset="letters")
    ledger.path.unlink()
    with pytest.raises(BudgetRefusedError, match="another one"):
        reserve(ledger)
    assert "reserve" not in [e.kind for e in ledger.history()]


def test_a_ledger_may_be_moved(ledger, tmp_path):
    ledger.set_cap("digits", PrivacyBudget(epsilon=3.0, delta=1e-5))
    reserve(ledger)
    reserve(Ledger(ledger.path.rename(tmp_path / "moved.db")))


def test_raising_and_lowering_the_cap(ledger):
    reserve(ledger)
    ledger.set_cap("digits", PrivacyBudget(epsilon=3.0, delta=1e-5))
    reserve(ledger)
    ledger.set_cap("digits", PrivacyBudget(epsilon=0.1, delta=1e-5))
    with pytest.raises(BudgetRefusedError):
        reserve(ledger, PrivacyBudget(epsilon=0.01, delta=1e-5))


@pytest.mark.parametrize("change", [{"adjacency": "replace-one"}, {"unit": "user"}])
def test_adjacency_and_unit_are_one_for_a_dataset(ledger, change):
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5))
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5, **change))  # nothing spent yet
    other = PrivacyBudget(epsilon=1.0, delta=1e-5, **change)
    reserve(ledger, other)
    with pytest.raises(UsageError, match="do not add up"):
        reserve(ledger, ONE)
    with pytest.raises(UsageError, match="do not add up"):
        ledger.set_cap("digits", ONE)


def test_an_event_that_costs_more_than_it_declares_is_refused(ledger):
    with pytest.raises(UsageError, match="Declare"):
        reserve(ledger, HALF, event=gaussian(ONE))
    assert not ledger.path.exists()


@pytest.mark.parametrize("tau", [-3.8, 0.0, float("nan"), float("inf")])
def test_an_event_that_no_mechanism_can_be_is_refused(ledger, tau):
    with pytest.raises((UsageError, ValueError)):
        reserve(ledger, ONE, event=dp_event.GaussianDpEvent(tau))
    assert not ledger.path.exists()


@pytest.mark.parametrize("cost", [-1e-5, 1e-5, float("nan")])
def test_a_discretisation_cost_outside_delta_is_refused(ledger, cost):
    with pytest.raises(UsageError, match="delta_discretisation"):
        reserve(ledger, ONE, delta_discretisation=cost)


def test_discretisation_counts_against_delta(ledger):
    with pytest.raises(UsageError, match="Declare"):
        reserve(ledger, ONE, delta_discretisation=5e-6)
    tau = noise_multiplier(1.0, 5e-6)
    reserve(ledger, ONE, event=dp_event.GaussianDpEvent(tau), delta_discretisation=5e-6)
    assert ledger.account("digits").spent_epsilon == pytest.approx(1.0)


def test_a_reservation_is_spent_and_committed_once(ledger):
    reservation = reserve(ledger)
    reservation.spend()
    with pytest.raises(BudgetRefusedError, match="second"):
        reservation.spend()
    reservation.commit(certificate_sha256="cd" * 32, bundle_hash=HASH)
    with pytest.raises(BudgetRefusedError, match="second"):
        reservation.commit(certificate_sha256="cd" * 32, bundle_hash=HASH)
    assert [e.kind for e in ledger.history()] == ["cap", "reserve", "spend", "commit"]


def test_nothing_is_committed_that_was_not_spent(ledger):
    with pytest.raises(BudgetRefusedError, match="a commit before any spend"):
        reserve(ledger).commit(certificate_sha256="cd" * 32, bundle_hash=HASH)
    assert [e.kind for e in ledger.history()] == ["cap", "reserve"]


def test_a_ledger_replaced_while_records_are_read_draws_no_noise(ledger):
    """Else the entry would be lost, and the new ledger would grant the budget again."""
    reservation = reserve(ledger)
    ledger.path.unlink()
    with pytest.raises(UsageError, match="nothing was released"):
        reservation.spend()
    assert not ledger.path.exists()
    ledger.path.touch()
    with pytest.raises(VerificationError, match="no ledger"):
        reservation.spend()
    assert ledger.path.read_bytes() == b""
    reserve(ledger, dataset="letters")
    with pytest.raises(BudgetRefusedError, match="replaced"):
        reservation.spend()
    assert [e.kind for e in ledger.history()] == ["cap", "reserve"]


def test_an_uncommitted_reservation_counts(ledger):
    reserve(ledger)
    assert Ledger(ledger.path).account("digits").spent_epsilon == pytest.approx(1.0)


def test_a_release_of_another_bundle_is_refused_but_a_new_one_may_use_it(ledger):
    ledger.set_cap("digits", PrivacyBudget(epsilon=3.0, delta=1e-5))
    with pytest.raises(BundleError, match="bundle of the ledger entry"):
        reserve(ledger).commit(certificate_sha256="cd" * 32, bundle_hash="ef" * 32)
    reserve(ledger, bundle_hash="ef" * 32)


def test_no_two_reservations_have_the_same_seal(ledger):
    """Even where ledger and config folder were both put back: they differ in a random number."""
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5))
    first, second = reserve(ledger).entry.body, reserve(ledger).entry.body
    assert len(first["nonce"]) == 32
    assert {k for k in first if first[k] != second[k]} == {"nonce"}


def test_spellings_of_one_name_are_one_dataset(ledger, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    (tmp_path / "cafe\u0301").symlink_to(tmp_path / "scans")
    path = f"{tmp_path}/scans"
    spellings = [
        ("caf\u00e9", "cafe\u0301", " caf\u00e9\n"),
        (
            path,
            f"{path}/",
            f"{tmp_path}//scans/../scans",
            f"{tmp_path}/link",
            f"{path} ",
            f"{tmp_path}/cafe\u0301",
        ),
        ("scans",),
    ]
    found = [{keys.dataset_fingerprint(one) for one in group} for group in spellings]
    assert [len(group) for group in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3
    reserve(ledger, dataset=path)
    with pytest.raises(BudgetRefusedError):
        reserve(ledger, dataset=f"{path}/")


@pytest.mark.parametrize("name", ["clinic/scans", "./scans", "../scans", " scans/ "])
def test_no_name_is_another_dataset_in_another_folder(ledger, name):
    """Resolved against the working folder, it would have a budget in each."""
    with pytest.raises(UsageError, match="absolute path, or a name without"):
        reserve(ledger, dataset=name)
    assert not ledger.path.exists()


@pytest.mark.parametrize("name", ["", " \n", "a\0b"])
def test_a_dataset_has_a_name(ledger, name):
    with pytest.raises(UsageError, match="a name for the dataset"):
        reserve(ledger, dataset=name)
    with pytest.raises(UsageError, match="a name for the dataset"):
        ledger.set_cap(name, ONE)
    assert not ledger.path.exists()


def test_a_ledger_is_refused_under_another_key(ledger, tmp_path, monkeypatch):
    """Another account, or another host: the same dataset would get a second name and budget."""
    reserve(ledger)
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "other"))
    with pytest.raises(VerificationError, match="key"):
        reserve(ledger)


def _try(path, results):
    try:
        reserve(Ledger(path))
        results.put("granted")
    except BudgetRefusedError:
        results.put("refused")


def test_a_path_that_shares_records_with_a_spent_one_has_no_budget_of_its_own(ledger, tmp_path):
    whole, part = tmp_path / "data", tmp_path / "data" / "a"
    part.mkdir(parents=True)
    ledger.set_cap(str(whole), ONE)  # a cap alone has bought nothing yet
    reserve(ledger, HALF, dataset=str(part))
    before = len(ledger.history())
    for path, where in ((whole, "over"), (part / "x.npz", "in"), (part / ".." / "a" / "b", "in")):
        with pytest.raises(BudgetRefusedError, match=f"a path {where} .*data/a, which has spent"):
            reserve(ledger, HALF, dataset=str(path))
    assert len(ledger.history()) == before
    reserve(ledger, HALF, dataset=str(tmp_path / "data" / "ab"))  # beside it, not in it
    reserve(ledger, HALF, dataset="scans")


def test_two_copies_of_a_ledger_do_not_both_move_the_anchor(ledger, tmp_path):
    """The lock of a file is not its copy's; what stands in the config folder is of both."""
    ledger.set_cap("digits", ONE)
    other = Ledger(shutil.copy(ledger.path, tmp_path / "copy.db"))
    spent = []

    def release() -> None:
        with contextlib.suppress(VerificationError):
            spent.append(reserve(ledger))

    with other.open() as chain:
        racing = threading.Thread(target=release)
        racing.start()
        racing.join(0.3)
        assert racing.is_alive() and not spent
        chain.append("cap", keys.dataset_fingerprint("digits"), dict(vars(HALF)))
    racing.join(60)
    assert not racing.is_alive() and not spent  # its file is behind the anchor now
    assert other.account("digits").cap.epsilon == 0.5


def test_processes_that_race_for_one_budget_get_it_once(ledger):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    racers = [context.Process(target=_try, args=(ledger.path, results)) for _ in range(6)]
    for racer in racers:
        racer.start()
    outcomes = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert outcomes == ["granted"] + ["refused"] * 5
