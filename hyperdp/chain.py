"""A chain of sealed entries in SQLite, which notices what was changed or cut off.

Each entry is sealed (HMAC under the operator's key) together with the seal before it. The last seal
and the SHA-256 of the file stand in the operator's config folder, the *anchor*, which is written
before `append` returns. So without the config folder nobody can alter, reorder, insert or remove an
entry, put back an older copy of the file, or change any byte of it, unnoticed; a log with entries
and no anchor is refused, and so is a new file for a dataset that an older one knows. Restoring file
and config folder together cannot be noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from hyperdp import keys
from hyperdp.errors import BudgetRefusedError, UsageError, VerificationError

_SCHEMA = (
    "CREATE TABLE meta (id TEXT NOT NULL, seal TEXT NOT NULL) STRICT",
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, text TEXT NOT NULL, seal TEXT NOT NULL) STRICT",
    """CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END""",
    """CREATE TRIGGER entries_hold BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END""",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        seq: 1, 2, 3, …
        time: ISO 8601 in UTC, never before the entry before it; of what follows a reservation,
            the reservation's own, since how long the work took depends on private data.
        kind: what happened.
        dataset: keyed fingerprint.
        body: plain JSON values.
        seal: 64 hex digits over this entry and all before it.
    """

    seq: int
    time: str
    kind: str
    dataset: str
    body: dict[str, Any]
    seal: str

    def text(self) -> bytes:
        """What is sealed, beside the seal before it."""
        fields = {name: getattr(self, name) for name in ("seq", "time", "kind", "dataset", "body")}
        return keys.canonical_json(fields)


class OpenChain:
    """The log while this process holds its lock.

    Args:
        path: the log's file, for errors.
        connection: to that file, or to a copy of it that is only read.
        lock: the file itself, open and locked.

    Attributes:
        id: random name of the log.
        entries: all of them, checked.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileIO) -> None:
        self._path, self._connection, self._lock = path, connection, lock
        # Of a table or trigger more, none can be told to be harmless.
        found = connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
        if [sql for (sql,) in found] != list(_SCHEMA):
            raise damaged(path, "other tables or triggers than a ledger's")
        rows = connection.execute("SELECT id, seal FROM meta").fetchall()
        if len(rows) != 1 or keys.seal(_name_text(rows[0][0])) != rows[0][1]:
            raise VerificationError(
                expected=f"the ledger {path} to be sealed with the key in {keys.config_dir()}",
                found="another key's seal, or a damaged ledger",
                todo="Use the config folder of the account that made this ledger "
                "(HYPERDP_CONFIG_DIR), or restore the ledger from a backup.",
            )
        self.id, self._genesis = str(rows[0][0]), str(rows[0][1])
        self.entries: list[Entry] = []
        for row in connection.execute("SELECT seq, text, seal FROM entries ORDER BY seq"):
            self.entries.append(self._checked(*row))

    @property
    def _head(self) -> str:
        return self.entries[-1].seal if self.entries else self._genesis

    @property
    def _anchor(self) -> Path:
        return _anchor_of(self.id)

    def _seal(self, text: bytes) -> str:
        return keys.seal(b"hyperdp entry\0" + self._head.encode() + b"\0" + text)

    def _checked(self, seq: int, text: str, seal: str) -> Entry:
        if seq != len(self.entries) + 1 or self._seal(text.encode()) != seal:
            raise damaged(self._path, f"entry {len(self.entries) + 1} does not match its seal")
        return Entry(**json.loads(text), seal=seal)

    @contextmanager
    def anchor_locked(self) -> Iterator[None]:
        """Keep whoever writes in a copy of this log from moving the anchor meanwhile."""
        with self._anchor.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def check_anchor(self, digest: str) -> None:
        """Refuse a log that is older than its anchor, or whose file's bytes are others.

        Args:
            digest: SHA-256 of the file before SQLite could touch it.

        Raises:
            VerificationError: it is, or entries have no anchor.
        """
        if not self._anchor.exists():
            if self.entries:
                raise VerificationError(
                    expected=f"{self._anchor}, where the last entry of {self._path} is noted",
                    found="no such file: entries may have been cut off unnoticed",
                    todo="Restore the config folder from a backup taken since the ledger's last "
                    "entry; nothing was released.",
                )
            return  # a crash while the log was made
        anchor = json.loads(self._anchor.read_bytes())
        seals = [self._genesis, *(entry.seal for entry in self.entries)]
        if anchor["seq"] >= len(seals) or seals[anchor["seq"]] != anchor["seal"]:
            raise damaged(self._path, f"fewer than the {anchor['seq']} entries that were written")
        # Ahead of the anchor is a crash between the two writes: the entry counts. Otherwise what
        # SQLite reads must be the file, and nothing that lies in a log or journal beside it.
        if anchor["seq"] == len(self.entries) and {digest, self._image()} != {anchor["sha256"]}:
            raise damaged(self._path, "bytes that were changed outside hyperdp")

    def claim(self, dataset: str) -> None:
        """Make this log the dataset's one and only, durably.

        Raises:
            BudgetRefusedError: another log is.
        """
        self._refuse_unless(keys.ledger_of(dataset, self.id))

    def check_home(self, dataset: str) -> None:
        """Refuse to speak of a dataset whose budget is another log's.

        Raises:
            BudgetRefusedError: another log has claimed it.
        """
        self._refuse_unless(keys.known_ledger(dataset) or self.id)

    def _refuse_unless(self, first: str) -> None:
        if first != self.id:
            seen = last_seen(first)
            raise BudgetRefusedError(
                expected="the ledger that this dataset's first release was reserved in"
                + (f", last seen at {seen}" if seen else ""),
                found=f"another one, {self._path}: it would grant the whole budget again",
                todo="Use the first ledger; if it is lost, restore it from a backup. Data that "
                "shares no unit with that dataset needs another name (--dataset).",
            )

    def follow(self, first: Entry, kind: str, body: dict[str, Any], *, after: str) -> None:
        """Add what became of an entry, once, at that entry's own time.

        Args:
            first: the entry, which must stand in this log.
            kind: what became of it.
            body: plain JSON values.
            after: the kind that must have been noted of it before; "" for none.

        Raises:
            BudgetRefusedError: it does not stand here, `kind` was noted before, or `after` was not.
        """
        noted = [e.kind for e in self.entries if e.body.get("reservation") == first.seal]
        if first not in self.entries:
            found = "a ledger that was replaced meanwhile, and does not know it"
        elif kind in noted:
            found = f"a second {kind}"
        elif after and after not in noted:
            found = f"a {kind} before any {after}"
        else:
            body = {**body, "reservation": first.seal}
            self.append(kind, first.dataset, body, time=first.time)
            return
        raise BudgetRefusedError(
            expected=f"one {kind} for each reservation of the ledger {self._path}",
            found=found,
            todo="Reserve again: every release spends its own budget.",
        )

    def append(self, kind: str, dataset: str, body: dict[str, Any], *, time: str = "") -> Entry:
        """Add one entry; when this returns it is on disk and anchored.

        Args:
            kind: what happened.
            dataset: keyed fingerprint.
            body: plain JSON values.
            time: ISO 8601 in UTC; now, where it is empty.
        """
        time = time or datetime.now(UTC).isoformat(timespec="seconds")
        last = self.entries[-1].time if self.entries else time  # the clock may have been set back
        seq = len(self.entries) + 1
        entry = Entry(seq=seq, time=max(time, last), kind=kind, dataset=dataset, body=body, seal="")
        text = entry.text()
        entry = Entry(**json.loads(text), seal=self._seal(text))
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?)", (seq, text.decode(), entry.seal)
        )
        self._connection.execute("COMMIT")
        self.entries.append(entry)
        self.write_anchor()
        self._connection.execute("BEGIN IMMEDIATE")
        return entry

    def write_anchor(self) -> None:
        """Move the write-ahead log into the file, then note the file's state as the anchor.

        Raises:
            UsageError: another program reads the file and keeps the log from being moved.
            VerificationError: the file holds other bytes than SQLite wrote.
        """
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise UsageError(
                expected=f"the ledger {self._path} for hyperdp alone",
                found="another program that has it open",
                todo="Close that program; what was reserved stays spent, nothing was released.",
            )
        digest = digest_of(self._lock)
        if digest != self._image():
            raise damaged(self._path, "bytes that were changed outside hyperdp")
        state = {"seq": len(self.entries), "seal": self._head, "sha256": digest}
        state |= {"path": str(self._path)}  # for people: where to look for the log
        keys.write_durably(self._anchor, keys.canonical_json(state))

    def _image(self) -> str:
        """SHA-256 of the database as SQLite reads it, write-ahead log and all."""
        return hashlib.sha256(self._connection.serialize()).hexdigest()


def create(connection: sqlite3.Connection) -> None:
    """Make an empty log in an empty database."""
    connection.execute("PRAGMA journal_mode=WAL")
    name = secrets.token_hex(16)
    connection.executescript("BEGIN;" + ";".join(_SCHEMA) + ";")
    connection.execute("INSERT INTO meta VALUES (?, ?)", (name, keys.seal(_name_text(name))))
    connection.execute("COMMIT")


def digest_of(file: FileIO) -> str:
    """SHA-256 of an open file, hex."""
    file.seek(0)
    return hashlib.sha256(file.read()).hexdigest()


def damaged(path: Path, found: str) -> VerificationError:
    """The error of a ledger that is not as it was left."""
    return VerificationError(
        expected=f"the ledger {path} as hyperdp last left it",
        found=found,
        todo="Restore it from a backup taken since its last entry; nothing was released.",
    )


def _anchor_of(log: str) -> Path:
    return keys.config_dir() / f"anchor-{log}.json"


def last_seen(log: str) -> Path | None:
    """Where a log was when it was last written, for people; None where that was not noted."""
    anchor = _anchor_of(log)
    path = json.loads(anchor.read_bytes()).get("path") if anchor.is_file() else None
    return Path(path) if path else None


def _name_text(name: str) -> bytes:
    return b"hyperdp ledger\0" + name.encode()
