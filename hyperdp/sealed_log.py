"""The file of a sealed chain: who may write in it, and how it is read without touching it.

All access is serialised by an advisory lock on the file, which the kernel drops with the process.
A writer moreover holds SQLite's exclusive lock: a program that has the file open at the same time
keeps hyperdp out before anything is spent, and is kept out in turn. A reader looks at a copy.
"""

from __future__ import annotations

import fcntl
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path

from hyperdp import keys
from hyperdp.chain import Entry, OpenChain, create, damaged, digest_of
from hyperdp.errors import UsageError
from hyperdp.local_disk import refuse_network

HEADER = b"SQLite format 3\0"
_PATIENCE = 5.0  # seconds that another program may keep the file; hyperdp's own wait for the lock


def has_header(path: Path) -> bool:
    """Whether a file begins as an SQLite file does, or is empty still."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) in (HEADER, b"")


class SealedLog:
    """The log in a file; each use of it locks, checks and closes it.

    Attributes:
        path: the SQLite file, on a disk of this host; made by the first use of `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()

    @contextmanager
    def open(self, *, make: bool = True) -> Iterator[OpenChain]:
        """Lock the log, check all of it, and lend it to be written in.

        Args:
            make: make a new log where there is none; otherwise nothing is written there.

        Raises:
            VerificationError: it was changed, cut short, or belongs to another key.
            UsageError: it cannot be opened or written, or another program has it open.
        """
        with self._locked("a+" if make else "r") as lock:
            digest = digest_of(lock)  # before SQLite can touch the file
            with closing(_connect(self.path)) as connection:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA synchronous=FULL")
                fresh = _is_empty(connection)
                if fresh and not make:
                    raise damaged(self.path, "no ledger")
                if fresh:
                    create(connection)
                    keys.sync_folder(self.path.parent)
                chain = OpenChain(self.path, connection, lock)
                # A copy has the same anchor and another lock: two would both be the last.
                with chain.anchor_locked():
                    chain.check_anchor(digest)
                    if not chain.entries:
                        chain.write_anchor()
                    connection.execute("BEGIN IMMEDIATE")
                    yield chain
                    connection.execute("ROLLBACK")

    @contextmanager
    def look(self) -> Iterator[OpenChain]:
        """Lock the log, check all of it, and lend it to be read; the file stays as it is.

        SQLite needs to write beside whatever it reads, so it is given a copy.

        Raises:
            VerificationError: it was changed, cut short, belongs to another key, or is no ledger.
            UsageError: it cannot be read, or there is none.
        """
        with self._locked("r") as lock, tempfile.TemporaryDirectory() as folder:
            digest = digest_of(lock)
            copy, log = Path(folder) / "copy", self.path.with_name(f"{self.path.name}-wal")
            lock.seek(0)
            copy.write_bytes(lock.read())
            if log.exists():  # what a crash left to be moved into the file
                copy.with_name("copy-wal").write_bytes(log.read_bytes())
            with closing(_connect(copy)) as connection:
                if _is_empty(connection):
                    raise damaged(self.path, "no ledger")
                connection.execute("PRAGMA query_only=ON")
                chain = OpenChain(self.path, connection, lock)
                chain.check_anchor(digest)
                yield chain

    def history(self, dataset: str | None = None) -> list[Entry]:
        """All entries, or those of one dataset (its name or absolute path), oldest first."""
        with self.look() as chain:
            name = None if dataset is None else keys.dataset_fingerprint(dataset)
            return [e for e in chain.entries if name in {None, e.dataset}]

    def export(self) -> bytes:
        """The whole log as signed canonical JSON, for a third party to check against."""
        with self.look() as chain:
            entries = [dict(vars(entry)) for entry in chain.entries]
            body = {"format": "hyperdp-ledger/1", "ledger_id": chain.id, "entries": entries}
        public_key, signature = keys.sign(keys.canonical_json(body))
        return keys.canonical_json({**body, "public_key": public_key, "signature": signature})

    @contextmanager
    def _locked(self, mode: str) -> Iterator[FileIO]:
        """Open and lock the file; whatever goes wrong with it says what to do."""
        try:
            refuse_network(self.path.parent)
            # Closing a handle of the file drops SQLite's own locks: this one outlives them.
            with FileIO(str(self.path), mode) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield lock
        except (sqlite3.OperationalError, OSError) as error:
            raise UsageError(
                expected=f"a ledger that can be read and written at {self.path}",
                found=str(error),
                todo="Check that folder, disk space and permissions, and close other programs that "
                "have the ledger open; nothing was released.",
            ) from error
        except (sqlite3.DatabaseError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise damaged(self.path, "content that is not a ledger's") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT 1 FROM sqlite_master").fetchall()
