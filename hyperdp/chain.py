"""An append-only log in one SQLite file, which notices what was changed or cut off.

Each entry is sealed (HMAC under the operator's key) together with the seal before it. The last seal
and the SHA-256 of the file stand in the operator's config folder, the *anchor*, which is written
before `append` returns. So without the config folder nobody can alter, reorder, insert or remove an
entry, put back an older copy of the file, or change any byte of it, unnoticed; a log with entries
and no anchor is refused, and so is a new file for a dataset that an older one knows. Restoring file
and config folder together cannot be noticed.

All access is serialised by an advisory lock on the file, which the kernel drops with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from hyperdp import keys
from hyperdp.errors import BudgetRefusedError, UsageError, VerificationError

_SCHEMA = """
CREATE TABLE meta (id TEXT NOT NULL, seal TEXT NOT NULL) STRICT;
CREATE TABLE entries (seq INTEGER PRIMARY KEY, text TEXT NOT NULL, seal TEXT NOT NULL) STRICT;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER entries_hold BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
"""
# SQLite's write-ahead log needs memory that all its processes share: one kernel, one host.
_NETWORK_FILESYSTEMS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs"),
    *("fuse.davfs", "fuse.ceph", "9p", "virtiofs", "vboxsf", "ocfs2", "gfs2", "orangefs"),
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

    Attributes:
        id: random name of the log.
        entries: all of them, checked.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileIO) -> None:
        self._path, self._connection, self._lock = path, connection, lock
        rows = connection.execute("SELECT id, seal FROM meta").fetchall()
        if len(rows) != 1 or keys.seal(b"hyperdp ledger\0" + rows[0][0].encode()) != rows[0][1]:
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
        return keys.config_dir() / f"anchor-{self.id}.json"

    def _seal(self, text: bytes) -> str:
        return keys.seal(b"hyperdp entry\0" + self._head.encode() + b"\0" + text)

    def _checked(self, seq: int, text: str, seal: str) -> Entry:
        if seq != len(self.entries) + 1 or self._seal(text.encode()) != seal:
            raise _damaged(self._path, f"entry {len(self.entries) + 1} does not match its seal")
        return Entry(**json.loads(text), seal=seal)

    def check_anchor(self, digest: str) -> None:
        """Refuse a log that is older than its anchor, or whose file's bytes are others."""
        if not self._anchor.exists():
            if self.entries:
                raise VerificationError(
                    expected=f"{self._anchor}, where the last entry of {self._path} is noted",
                    found="no such file: entries may have been cut off unnoticed",
                    todo="Restore the config folder from a backup taken since the ledger's last "
                    "entry; nothing was released.",
                )
            self.write_anchor()  # a crash while the log was made
            return
        anchor = json.loads(self._anchor.read_bytes())
        seals = [self._genesis, *(entry.seal for entry in self.entries)]
        if anchor["seq"] >= len(seals) or seals[anchor["seq"]] != anchor["seal"]:
            raise _damaged(self._path, f"fewer than the {anchor['seq']} entries that were written")
        # Ahead of the anchor is a crash between the two writes: the entry counts.
        if anchor["seq"] == len(self.entries) and anchor["sha256"] not in {digest, ""}:
            raise _damaged(self._path, "bytes that were changed outside hyperdp")

    def claim(self, dataset: str) -> None:
        """Make this log the dataset's one and only, durably.

        Raises:
            BudgetRefusedError: another log is.
        """
        if keys.ledger_of(dataset, self.id) != self.id:
            raise BudgetRefusedError(
                expected="the ledger that this dataset's first release was reserved in",
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
        """Move the write-ahead log into the file, then note the file's state as the anchor."""
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        state = {
            "seq": len(self.entries),
            "seal": self._head,
            "sha256": "" if busy else _digest(self._lock),
        }
        keys.write_durably(self._anchor, keys.canonical_json(state))


class SealedLog:
    """The log in a file; each use of it locks, checks and closes it.

    Attributes:
        path: the SQLite file, on a disk of this host; made on first use.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()

    @contextmanager
    def open(self, *, make: bool = True) -> Iterator[OpenChain]:
        """Lock the log, check all of it, and lend it.

        Args:
            make: make a new log where there is none; otherwise nothing is written there.

        Raises:
            VerificationError: it was changed, cut short, or belongs to another key.
            UsageError: it cannot be opened or written.
        """
        try:
            path = self.path
            _refuse_network(path.parent)
            # Closing a handle of the file drops SQLite's own locks: this one outlives them.
            with path.open("a+b" if make else "rb", buffering=0) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                digest = _digest(lock)  # before SQLite can touch the file
                with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
                    connection.execute("PRAGMA synchronous=FULL")
                    fresh = not connection.execute("SELECT 1 FROM sqlite_master").fetchall()
                    if fresh and not make:
                        raise _damaged(path, "no ledger")
                    if fresh:
                        _create(connection)
                        keys.sync_folder(path.parent)
                    chain = OpenChain(path, connection, lock)
                    chain.write_anchor() if fresh else chain.check_anchor(digest)
                    connection.execute("BEGIN IMMEDIATE")
                    yield chain
                    connection.execute("ROLLBACK")
        except (sqlite3.OperationalError, OSError) as error:
            raise UsageError(
                expected=f"a ledger that can be read and written at {path}",
                found=str(error),
                todo="Check that folder, disk space and permissions; nothing was released.",
            ) from error
        except (sqlite3.DatabaseError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise _damaged(path, "content that is not a ledger's") from error

    def history(self, dataset: str | None = None, *, make: bool = True) -> list[Entry]:
        """All entries, or those of one dataset (its name or absolute path), oldest first.

        Args:
            dataset: whose entries, or None for all.
            make: make a new log where there is none; otherwise nothing is written there.
        """
        with self.open(make=make) as chain:
            name = None if dataset is None else keys.dataset_fingerprint(dataset)
            return [e for e in chain.entries if name in {None, e.dataset}]

    def export(self) -> bytes:
        """The whole log as signed canonical JSON, for a third party to check against."""
        with self.open() as chain:
            entries = [dict(vars(entry)) for entry in chain.entries]
            body = {"format": "hyperdp-ledger/1", "ledger_id": chain.id, "entries": entries}
        public_key, signature = keys.sign(keys.canonical_json(body))
        return keys.canonical_json({**body, "public_key": public_key, "signature": signature})


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    name = secrets.token_hex(16)
    connection.executescript("BEGIN;" + _SCHEMA)
    mark = keys.seal(b"hyperdp ledger\0" + name.encode())
    connection.execute("INSERT INTO meta VALUES (?, ?)", (name, mark))
    connection.execute("COMMIT")


def _digest(lock: FileIO) -> str:
    lock.seek(0)
    return hashlib.sha256(lock.read()).hexdigest()


def _damaged(path: Path, found: str) -> VerificationError:
    return VerificationError(
        expected=f"the ledger {path} as hyperdp last left it",
        found=found,
        todo="Restore it from a backup taken since its last entry; nothing was released.",
    )


def _filesystem(folder: Path) -> str:
    """The type of the filesystem that holds a folder, as the kernel names it; "" if unknown."""
    mounts = Path("/proc/mounts")
    best, kind = -1, ""
    for line in mounts.read_bytes().splitlines() if mounts.exists() else []:
        _, escaped, this, *_ = line.split(b" ")
        octal = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), escaped)
        point = os.fsdecode(octal)
        if folder.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), this.decode("ascii", "replace")
    return kind


def _refuse_network(folder: Path) -> None:
    if (kind := _filesystem(folder.resolve())) in _NETWORK_FILESYSTEMS:
        raise UsageError(
            expected="a ledger on a disk of this host, where its locks hold",
            found=f"{folder} on a network filesystem ({kind})",
            todo="Keep the ledger on one host and make all releases of a dataset there.",
        )
