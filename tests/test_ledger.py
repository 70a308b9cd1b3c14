import json
import multiprocessing
import sqlite3
import subprocess
import sys

import pytest
from dp_accounting import dp_event

from hyperdp import accounting, chain, keys
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import (
    BudgetRefusedError,
    BundleError,
    HyperdpError,
    UsageError,
    VerificationError,
)
from hyperdp.ledger import Ledger
from tests.private_world import own_keys  # noqa: F401

ONE = PrivacyBudget(epsilon=1.0, delta=1e-5)
HALF = PrivacyBudget(epsilon=0.5, delta=1e-5)
HASH = "ab" * 32


def gaussian(budget):
    return dp_event.GaussianDpEvent(noise_multiplier(budget.epsilon, budget.delta))


def reserve(ledger, budget=ONE, dataset="digits", **more):
    values = {"budget": budget, "event": gaussian(budget), "bundle_hash": HASH, **more}
    return ledger.reserve(dataset, **values)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db")


# --- caps ----------------------------------------------------------------------------------------


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
    with pytest.raises(BudgetRefusedError, match=f"epsilon={left:.3g} is left"):
        reserve(ledger, ONE)
    reserve(ledger, PrivacyBudget(epsilon=left, delta=1e-5))
    assert ledger.account("digits").spent_epsilon == pytest.approx(1.0, abs=2e-3)


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
    assert ledger.history() == []


@pytest.mark.parametrize("tau", [-3.8, 0.0, float("nan"), float("inf")])
def test_an_event_that_no_mechanism_can_be_is_refused(ledger, tau):
    with pytest.raises((UsageError, ValueError)):
        reserve(ledger, ONE, event=dp_event.GaussianDpEvent(tau))
    assert ledger.history() == []


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


# --- reserve → spend → commit --------------------------------------------------------------------


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


# --- the log -------------------------------------------------------------------------------------


def test_fingerprint_is_keyed_and_shows_nothing(ledger, tmp_path, monkeypatch):
    reserve(ledger, dataset="patients of ward 7")
    assert b"ward" not in ledger.path.read_bytes()
    mine = keys.dataset_fingerprint("x")
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "other"))
    assert keys.dataset_fingerprint("x") != mine


def test_no_two_reservations_have_the_same_seal(ledger):
    """Even where ledger and config folder were both put back: they differ in a random number."""
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5))
    first, second = reserve(ledger).entry.body, reserve(ledger).entry.body
    assert len(first["nonce"]) == 32
    assert {k for k in first if first[k] != second[k]} == {"nonce"}


def test_spellings_of_one_name_are_one_dataset(ledger, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    path = f"{tmp_path}/scans"
    spellings = [
        ("caf\u00e9", "cafe\u0301", " caf\u00e9\n"),
        (path, f"{path}/", f"{tmp_path}//scans/../scans", f"{tmp_path}/link", f"{path} "),
        ("scans",),
    ]
    found = [{keys.dataset_fingerprint(one) for one in group} for group in spellings]
    assert [len(group) for group in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3
    reserve(ledger, dataset=path)
    with pytest.raises(BudgetRefusedError):
        reserve(ledger, dataset=f"{path}/")


@pytest.mark.parametrize("name", ["", " \n", "a\0b"])
def test_a_dataset_has_a_name(ledger, name):
    with pytest.raises(UsageError, match="a name for the dataset"):
        reserve(ledger, dataset=name)
    with pytest.raises(UsageError, match="a name for the dataset"):
        ledger.set_cap(name, ONE)
    assert ledger.history() == []


def test_a_ledger_is_refused_under_another_key(ledger, tmp_path, monkeypatch):
    """Another account, or another host: the same dataset would get a second name and budget."""
    reserve(ledger)
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "other"))
    with pytest.raises(VerificationError, match="key"):
        reserve(ledger)


def test_entries_can_be_neither_changed_nor_deleted_through_sqlite(ledger):
    reserve(ledger)
    with sqlite3.connect(ledger.path) as db:
        for statement in ("UPDATE entries SET text = ''", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(statement)


def tamper(ledger, *statements):
    with sqlite3.connect(ledger.path) as db:
        db.execute("DROP TRIGGER entries_stay")
        db.execute("DROP TRIGGER entries_hold")
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET text = replace(text, '\"epsilon\":1.0', '\"epsilon\":9.0') WHERE seq=1",
        "UPDATE entries SET text = replace(text, 'cap', 'cup') WHERE seq=1",
        # Whatever the seal holds, its first digit becomes another one.
        "UPDATE entries SET seal = iif(substr(seal, 1, 1) = 'a', 'b', 'a') || substr(seal, 2) "
        "WHERE seq=2",
        "DELETE FROM entries WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 3",
        "DELETE FROM entries",
        "UPDATE entries SET seq = seq + 10",
        "INSERT INTO entries SELECT seq + 3, text, seal FROM entries WHERE seq = 3",
        "INSERT INTO entries VALUES (4, '{}', '')",
        "UPDATE meta SET id = 'another'",
        "DELETE FROM meta",
        "DROP TABLE entries",
        "CREATE TABLE stowaway (x)",
    ],
)
@pytest.mark.parametrize("digest_known", [True, False])
def test_an_edited_history_is_detected(ledger, statement, digest_known):
    """By the seals alone as well; but a table beside the log changes no entry."""
    reserve(ledger).spend()
    tamper(ledger, statement)
    if not digest_known:
        (anchor,) = keys.config_dir().glob("anchor-*.json")
        anchor.write_bytes(keys.canonical_json({**json.loads(anchor.read_bytes()), "sha256": ""}))
        if "stowaway" in statement:
            assert len(ledger.history()) == 3
            return
    with pytest.raises((VerificationError, UsageError)):
        ledger.history()


def test_an_older_copy_put_back_is_detected(ledger):
    reserve(ledger)
    older = ledger.path.read_bytes()
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5))
    newer = ledger.path.read_bytes()
    ledger.path.write_bytes(older)
    with pytest.raises(VerificationError, match="fewer than the 3 entries"):
        reserve(ledger)
    ledger.path.write_bytes(newer)
    reserve(ledger)


def test_a_ledger_with_entries_is_refused_without_its_anchor(ledger):
    """Else deleting one file would let an older copy pass."""
    reserve(ledger)
    (anchor,) = keys.config_dir().glob("anchor-*.json")
    state = anchor.read_bytes()
    anchor.unlink()
    for use in (ledger.history, ledger.export, lambda: ledger.set_cap("digits", ONE)):
        with pytest.raises(VerificationError, match="Restore the config folder"):
            use()
    assert not anchor.exists()
    anchor.write_bytes(state)
    assert len(ledger.history()) == 2


def test_a_crash_before_the_first_anchor_leaves_a_ledger_to_use(ledger, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(chain.OpenChain, "write_anchor", lambda self: None)
        assert ledger.history() == []
    assert ledger.history() == []
    assert len(list(keys.config_dir().glob("anchor-*.json"))) == 1


def test_a_crash_between_log_and_anchor_counts_as_spent(ledger, monkeypatch):
    ledger.set_cap("digits", ONE)
    with monkeypatch.context() as patch:
        patch.setattr(chain.OpenChain, "write_anchor", lambda self: None)
        reserve(ledger)
    assert ledger.account("digits").spent_epsilon == pytest.approx(1.0)
    with pytest.raises(BudgetRefusedError):
        reserve(ledger, HALF)


def test_every_byte_of_the_file_is_vouched_for(ledger):
    reserve(ledger)
    content = ledger.path.read_bytes()
    assert len(content) > 4096
    for position in range(0, len(content), 97):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        ledger.path.write_bytes(changed)
        with pytest.raises(HyperdpError):
            ledger.history()
    ledger.path.write_bytes(content)
    assert len(ledger.history()) == 2


def test_time_never_runs_backwards(ledger, monkeypatch):
    reserve(ledger)

    class Early(chain.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr(chain, "datetime", Early)
    ledger.set_cap("digits", PrivacyBudget(epsilon=9.0, delta=1e-5))
    times = [e.time for e in ledger.history()]
    assert times == sorted(times)
    assert times[-1] > "2020"


@pytest.mark.parametrize("kind", ["nfs4", "9p", "virtiofs", "fuse.s3fs", "fuse.ceph"])
def test_a_network_filesystem_is_refused(ledger, monkeypatch, kind):
    monkeypatch.setattr(chain, "_filesystem", lambda folder: kind)
    with pytest.raises(UsageError, match="network filesystem"):
        reserve(ledger)


def test_the_filesystem_of_a_folder_is_that_of_its_nearest_mount(tmp_path, monkeypatch):
    mounts = "a / ext4 rw 0 0\nb /mnt/with\\040blank nfs4 rw 0 0\nc /mnt tmpfs rw 0 0\n"
    mounts += "d /mnt/\u00e9t\u00e9\\134n 9p rw 0 0\n"
    raw = mounts.encode() + b"e /mnt/\xff virtiofs rw 0 0\n"
    monkeypatch.setattr(chain.Path, "read_bytes", lambda self: raw)
    assert chain._filesystem(chain.Path("/mnt/\u00e9t\u00e9\\n/x")) == "9p"
    assert chain._filesystem(chain.Path("/mnt/\udcff")) == "virtiofs"
    assert chain._filesystem(chain.Path("/mnt/with blank/x")) == "nfs4"
    assert chain._filesystem(chain.Path("/mnt/x")) == "tmpfs"
    assert chain._filesystem(chain.Path("/home")) == "ext4"


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a ledger, and more than a header's worth of bytes " * 20)
    before = path.read_bytes()
    with pytest.raises(VerificationError):
        Ledger(path).history()
    assert path.read_bytes() == before


def test_a_folder_that_is_missing_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing was released"):
        reserve(Ledger(tmp_path / "nowhere" / "ledger.db"))


def test_one_file_and_no_other_is_left(ledger, tmp_path):
    reserve(ledger).spend()
    assert {p.name for p in tmp_path.iterdir()} == {"ledger.db", "config"}
    with sqlite3.connect(ledger.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_export_is_signed_and_complete(ledger):
    reserve(ledger).spend()
    export = json.loads(ledger.export())
    assert [e["kind"] for e in export["entries"]] == ["cap", "reserve", "spend"]
    signature, public_key = export.pop("signature"), export.pop("public_key")
    message = keys.canonical_json(export)
    assert keys.signature_holds(message, public_key=public_key, signature=signature)
    assert not keys.signature_holds(message[:-1], public_key=public_key, signature=signature)
    assert not keys.signature_holds(message, public_key=public_key, signature=signature.upper())
    assert not keys.signature_holds(message, public_key="zz", signature=signature)


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_the_owners_alone_and_made_once():
    first = keys.sign(b"x")
    for name in ("signing.key", "ledger.key"):
        keys.seal(b"x")
        assert (keys.config_dir() / name).stat().st_mode & 0o777 == 0o600
    assert keys.sign(b"x") == first


def test_a_key_that_others_can_read_is_refused():
    keys.seal(b"x")
    (keys.config_dir() / "ledger.key").chmod(0o644)
    with pytest.raises(UsageError, match="owner alone"):
        keys.seal(b"x")


def test_a_cut_key_is_refused():
    keys.seal(b"x")
    path = keys.config_dir() / "ledger.key"
    path.write_bytes(path.read_bytes()[:31])
    with pytest.raises(UsageError, match="31 bytes"):
        keys.seal(b"x")


def test_config_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("HYPERDP_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert keys.config_dir() == tmp_path / "xdg" / "hyperdp"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.config_dir() == tmp_path / ".config" / "hyperdp"


def test_a_config_folder_that_cannot_be_made_is_a_usage_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "file" / "config"))
    with pytest.raises(UsageError, match="HYPERDP_CONFIG_DIR"):
        keys.config_dir()


def test_processes_that_race_for_the_first_key_agree(tmp_path):
    code = "from hyperdp import keys; print(keys.dataset_fingerprint('x'))"
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({racer.communicate()[0] for racer in racers}) == 1
    left = {p.name for p in keys.config_dir().iterdir()}
    assert left == {"ledger.key"}


# --- concurrency ---------------------------------------------------------------------------------


def _try(path, results):
    try:
        reserve(Ledger(path))
        results.put("granted")
    except BudgetRefusedError:
        results.put("refused")


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
