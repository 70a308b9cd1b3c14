import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys

import pytest

from hyperdp import chain, keys, sealed_log
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError, HyperdpError, UsageError, VerificationError
from tests.ledgers import HALF, ONE, reserve
from tests.private_world import own_keys  # noqa: F401


def test_entries_can_be_neither_changed_nor_deleted_through_sqlite(ledger):
    reserve(ledger)
    with sqlite3.connect(ledger.path) as db:
        for statement in ("UPDATE entries SET text = ''", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(statement)


def tamper(ledger, *statements):
    """Edit the file as a program without the key would, and leave no other trace."""
    with sqlite3.connect(ledger.path) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        for name, sql in triggers.fetchall():
            db.execute(f"DROP TRIGGER {name}")
            statements = (*statements, sql)
        for statement in statements:
            with contextlib.suppress(sqlite3.OperationalError):  # no such table, by then
                db.execute(statement)
    db.close()


def reanchor(ledger):
    """Give the anchor the file's digest, so that seals and schema must tell by themselves."""
    (anchor,) = keys.config_dir().glob("anchor-*.json")
    state = json.loads(anchor.read_bytes())
    state["sha256"] = hashlib.sha256(ledger.path.read_bytes()).hexdigest()
    anchor.write_bytes(keys.canonical_json(state))


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
        "CREATE TRIGGER swallow BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
    ],
)
@pytest.mark.parametrize("digest_known", [True, False])
def test_an_edited_history_is_detected(ledger, statement, digest_known):
    """By seals and schema alone as well."""
    reserve(ledger).spend()
    tamper(ledger, statement)
    if not digest_known:
        reanchor(ledger)
    for use in (ledger.history, lambda: ledger.set_cap("digits", ONE)):
        with pytest.raises(VerificationError):
            use()


def test_tampering_itself_is_not_what_is_detected(ledger):
    """Else the test above would prove nothing."""
    reserve(ledger).spend()
    tamper(ledger)
    with pytest.raises(VerificationError, match="bytes"):
        ledger.history()
    reanchor(ledger)
    assert len(ledger.history()) == 3


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
        with ledger.open() as chain_:
            assert chain_.entries == []
    assert ledger.history() == []
    ledger.set_cap("digits", ONE)
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


def in_another_process(code, path):
    """Run code with `db` connected to a file, and keep the connection until the block ends."""
    lines = ["import sqlite3, sys", "db = sqlite3.connect(sys.argv[1])", code]
    lines += ["print('ready', flush=True)", "sys.stdin.read()"]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


READING = "db.execute('BEGIN'); db.execute('SELECT * FROM entries').fetchall()"


def test_a_program_that_has_the_ledger_open_keeps_hyperdp_out_before_anything_is_spent(
    ledger, monkeypatch
):
    """Else what is written would lie beside the file, where its digest does not vouch for it."""
    monkeypatch.setattr(sealed_log, "_PATIENCE", 0.1)
    reservation = reserve(ledger)
    before = ledger.path.read_bytes()
    with in_another_process(READING, ledger.path) as other:
        for use in (reservation.spend, lambda: reserve(ledger, dataset="letters")):
            with pytest.raises(UsageError, match="close other programs"):
                use()
        assert len(ledger.history()) == 2  # a look is free
        other.kill()
    assert ledger.path.read_bytes() == before
    reservation.spend()
    with ledger.path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(VerificationError, match="bytes"):
        ledger.history()


def test_a_log_that_cannot_be_moved_into_the_file_is_refused(ledger):
    class Busy:
        def __init__(self, real):
            self.real = real

        def execute(self, statement, *values):
            if "wal_checkpoint" in statement:
                return self.real.execute("SELECT 1, 5, 0")
            return self.real.execute(statement, *values)

    reserve(ledger)
    (anchor,) = keys.config_dir().glob("anchor-*.json")
    before = anchor.read_bytes()
    with pytest.raises(UsageError, match="Close that program"), ledger.open() as open_chain:
        open_chain._connection = Busy(open_chain._connection)
        open_chain.append("cap", "ab" * 32, dict(vars(ONE)))
    assert anchor.read_bytes() == before
    assert len(ledger.history()) == 3  # it counts, as after a crash


def test_a_byte_changed_while_the_ledger_is_written_is_detected(ledger):
    """In the free part of the page of `meta`, which SQLite has read already."""
    with pytest.raises(VerificationError, match="changed outside"), ledger.open() as open_chain:
        with ledger.path.open("r+b") as file:
            file.seek(4096 + 200)
            assert file.read(1) == b"\0"
            file.seek(4096 + 200)
            file.write(b"x")
        open_chain.append("cap", "ab" * 32, dict(vars(ONE)))


def test_a_change_left_in_the_log_beside_the_file_is_detected(ledger):
    """The file itself is as it was; SQLite would read the change all the same."""
    reserve(ledger)
    edit = "db.execute('PRAGMA user_version = 7'); db.commit()"
    with in_another_process(edit, ledger.path) as other:
        other.kill()
    assert ledger.path.with_name("ledger.db-wal").stat().st_size > 0
    for use in (ledger.history, lambda: reserve(ledger, dataset="letters")):
        with pytest.raises(VerificationError, match="bytes"):
            use()


def test_a_look_writes_nothing(ledger):
    reserve(ledger)
    with pytest.raises(UsageError, match="readonly"), ledger.look() as seen:
        seen.append("cap", "ab" * 32, dict(vars(ONE)))
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
