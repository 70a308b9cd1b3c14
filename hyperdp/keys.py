"""The operator's keys, in their config folder: one names datasets and seals the ledger, one signs.

Both are made on first use and readable by their owner alone. The folder is $HYPERDP_CONFIG_DIR,
else $XDG_CONFIG_HOME/hyperdp, else ~/.config/hyperdp.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hyperdp.errors import UsageError

PUBLIC = 0o644  # permissions of what is written to be passed on


def config_dir() -> Path:
    """The operator's config folder, made if it is missing."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    folder = Path(os.environ.get("HYPERDP_CONFIG_DIR") or Path(base) / "hyperdp")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            expected="a config folder that can be made",
            found=f"{folder} ({error.strerror})",
            todo="Set HYPERDP_CONFIG_DIR to a folder you own.",
        ) from error
    return folder


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII, no NaN, a final newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def seal(message: bytes) -> str:
    """HMAC-SHA256 of a message under the operator's key, as 64 hex digits."""
    return hmac.new(_key("ledger.key"), message, hashlib.sha256).hexdigest()


def dataset_fingerprint(identity: str) -> str:
    """The name of a dataset in the ledger: it tells nothing of its content, nor of `identity`.

    Args:
        identity: what the operator calls the dataset, or its path. Never its content: whether two
            ledger entries are of the same content would itself reveal a record. Spellings of one
            name are one dataset: blanks around it are dropped, Unicode is composed (NFC), and an
            absolute path is resolved. What else has a path separator in it is refused: resolved, it
            would be another dataset with another budget in each working directory.

    Returns:
        64 hex digits.

    Raises:
        UsageError: the name is empty, or a relative path.
    """
    name = identity.strip()
    if not name or "\0" in name:
        raise UsageError(
            expected="a name for the dataset, or its path",
            found=f"dataset={identity!r}",
            todo="Give every dataset a name of its own, and always the same one.",
        )
    if os.sep in name:
        if not Path(name).is_absolute():
            raise UsageError(
                expected="an absolute path, or a name without a path separator",
                found=f"dataset={identity!r}",
                todo=f"Give the whole path, or a name such as {'-'.join(Path(name).parts)!r}.",
            )
        name = os.path.realpath(name)  # before it is composed: a link's own spelling finds it
    name = unicodedata.normalize("NFC", name)
    return seal(b"hyperdp dataset\0" + name.encode("utf-8", "surrogateescape"))


def sign(message: bytes) -> tuple[str, str]:
    """Ed25519 signature of a message.

    Returns:
        (public key, signature) in hex.
    """
    key = Ed25519PrivateKey.from_private_bytes(_key("signing.key"))
    return key.public_key().public_bytes_raw().hex(), key.sign(message).hex()


def public_key() -> str:
    """The key that this account's signatures are checked with, ed25519 in hex."""
    return sign(b"")[0]


def signature_holds(message: bytes, *, public_key: str, signature: str) -> bool:
    """Whether an ed25519 signature is right, and written in lower-case hex as `sign` writes it."""
    try:
        key, mark = bytes.fromhex(public_key), bytes.fromhex(signature)
        if key.hex() != public_key or mark.hex() != signature:
            return False
        Ed25519PublicKey.from_public_bytes(key).verify(mark, message)
    except (ValueError, InvalidSignature):
        return False
    return True


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step that a power cut cannot halve.

    Args:
        path: its folder must exist.
        data: the whole content.
        mode: its permissions; `PUBLIC` for what is written to be passed on.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Make a file durably unless there is one; of processes that race, the first one's stands."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_durably(draft, data)
    try:
        os.link(draft, path)  # fails where another process was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    sync_folder(path.parent)


def ledger_of(dataset: str, ledger_id: str) -> str:
    """The ledger that a dataset's budget is kept in: the one that first asks.

    Args:
        dataset: keyed fingerprint.
        ledger_id: who asks.

    Returns:
        Name of the first ledger that asked, on disk in the config folder when this returns.
    """
    folder = config_dir() / "datasets"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_once(folder / dataset, ledger_id.encode())
    return (folder / dataset).read_text(encoding="ascii")


def any_ledger() -> bool:
    """Whether any dataset's budget is kept in a ledger of this account; makes no key."""
    return (config_dir() / "datasets").is_dir()


def known_ledger(dataset: str) -> str | None:
    """The ledger that `ledger_of` names, without asking for one; None where none has asked.

    Args:
        dataset: keyed fingerprint.
    """
    path = config_dir() / "datasets" / dataset
    return path.read_text(encoding="ascii") if path.is_file() else None


def remember_name(dataset: str, name: str) -> None:
    """Note, for the operator alone, what they call a dataset.

    Args:
        dataset: keyed fingerprint.
        name: the operator's name for it, or its path; the first one stands.
    """
    folder = config_dir() / "names"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_once(folder / dataset, name.encode("utf-8", "surrogateescape"))


def known_name(dataset: str) -> str | None:
    """What the operator of this config folder calls a dataset; None where it was not noted.

    Args:
        dataset: keyed fingerprint.
    """
    path = config_dir() / "names" / dataset
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else None


@contextmanager
def alone(name: str, *, wait: bool = True) -> Iterator[bool]:
    """Be the only one in this account, of those who ask by the same name, while the context lasts.

    Args:
        name: a file's.
        wait: for the other one to be done.

    Yields:
        Whether nobody else is there; always, after a wait.
    """
    folder = config_dir() / "locks"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / name).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def note_step(run: str, step: int) -> None:
    """Note, durably, that a run has kept its state after a step.

    Args:
        run: its random id, hex.
        step: how many were taken.
    """
    folder = config_dir() / "runs"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_durably(folder / run, str(step).encode())


def noted_step(run: str) -> int:
    """The last step that was noted of a run; -1 where none was."""
    path = config_dir() / "runs" / run
    return int(path.read_bytes()) if path.is_file() else -1


def forget_run(run: str) -> None:
    """Take away what was noted of a run that is over."""
    (config_dir() / "runs" / run).unlink(missing_ok=True)
    (config_dir() / "locks" / run).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _key(name: str) -> bytes:
    """32 secret bytes kept in the config folder; processes that race to make them agree on one."""
    path = config_dir() / name
    try:
        write_once(path, secrets.token_bytes(32))  # made 0600
        key, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise UsageError(
            expected=f"a key that can be made or read at {path}",
            found=error.strerror or str(error),
            todo="Check permissions and disk space of that folder, or set HYPERDP_CONFIG_DIR.",
        ) from error
    if len(key) != 32 or mode & 0o077:
        raise UsageError(
            expected=f"a key of 32 bytes in {path}, readable by its owner alone",
            found=f"{len(key)} bytes, mode {mode:o}",
            todo="Restore the file from a backup, or correct its mode with chmod 600.",
        )
    return key
