"""A certificate held to the ledger entry that paid for it, and to the account that signed it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from hyperdp import keys
from hyperdp.chain import Entry
from hyperdp.errors import VerificationError
from hyperdp.statement import Statement, failed

_OF_ENTRY = (
    "dataset", "epsilon", "delta", "adjacency", "unit", "event", "bundle_hash",
    "delta_discretisation", "ledger_id",
)  # fmt: skip


def check_reservation(c: Statement, entry: Mapping[str, Any]) -> None:
    """Hold what a certificate says of its budget to the entry that it names.

    Args:
        c: a certificate of any kind that names a reservation.
        entry: the fields of `hyperdp.chain.Entry`, from a ledger or from its export.

    Raises:
        VerificationError: a value differs.
    """
    body = entry.get("body")
    found = {**body, **entry} if isinstance(body, dict) else entry
    said = vars(c)
    wanted = {"seal": said["ledger_seal"], "kind": "reserve", "seq": said["ledger_seq"]}
    for name, value in {**wanted, **{name: said[name] for name in _OF_ENTRY}}.items():
        if found.get(name) != value:
            raise failed(f"the ledger entry to have {name}={value}", str(found.get(name)))


def check_own(c: Statement, entry: Entry, *, committed: str = "") -> None:
    """Refuse a certificate that a run of this account did not write for its reservation.

    What lies in a run's folder when it is started again may have been put there by anybody who can
    write there. The seal of an entry is no secret, as every certificate shows it: a signature is.

    Args:
        c: as found; its signature has been checked, whosesoever it is.
        entry: the run's reservation.
        committed: SHA-256 of the certificate that the ledger has committed, "" for none.

    Raises:
        VerificationError: another account signed it, a value differs from the reservation's, or
            another certificate was committed.
    """
    if c.public_key != keys.public_key():
        raise VerificationError(
            expected="a certificate signed by this account, whose run goes on",
            found=f"one signed by {c.public_key}",
            todo="Put back what the run wrote, or begin a new run in another folder.",
        )
    check_reservation(c, vars(entry))
    if committed and committed != certificate_digest(c):
        raise failed("the certificate that the ledger has committed", "another one")


def certificate_digest(c: Statement) -> str:
    """SHA-256 of a certificate as it stands on disk, by which ledgers and fits name it."""
    return hashlib.sha256(c.to_bytes()).hexdigest()
