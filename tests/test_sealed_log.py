import contextlib
import json
import sqlite3

import pytest

from hyperdp import keys
from hyperdp.errors import UsageError, VerificationError
from hyperdp.ledger import Ledger
from tests.ledgers import reserve
from tests.private_world import own_keys  # noqa: F401


def foreign_database(path):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (text)")


STRANGERS = {
    "text": lambda path: path.write_text("not a ledger, but more than a header's worth " * 20),
    "empty": lambda path: path.touch(),
    "another database": foreign_database,
    "an empty database": lambda path: sqlite3.connect(path).execute("VACUUM").close(),
    "the first bytes of a database": lambda path: path.write_bytes(b"SQLite format 3\0"),
}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("use", ["history", "export", "account"])
def test_looking_at_a_file_that_is_no_ledger_leaves_it_alone(tmp_path, make, use):
    path = tmp_path / "notes"
    make(path)
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())
    arguments = ["digits"] if use == "account" else []
    with pytest.raises(VerificationError):
        getattr(Ledger(path), use)(*arguments)
    after = path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())
    assert after == before


@pytest.mark.parametrize("use", ["history", "export"])
def test_looking_for_a_ledger_makes_none(ledger, tmp_path, use):
    with pytest.raises(UsageError, match="No such file"):
        getattr(ledger, use)()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_not_written_in(tmp_path):
    path = tmp_path / "notes"
    for name in ("text", "another database"):
        STRANGERS[name](path)
        before = path.read_bytes()
        with pytest.raises(VerificationError):
            reserve(Ledger(path))
        assert path.read_bytes() == before
        path.unlink()


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
