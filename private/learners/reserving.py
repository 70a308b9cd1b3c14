"""Reservations of a run that may be killed and started again: made once, found again after.

A run names itself in the purpose of its entries, by a random id that its folder keeps. So the same
run finds what it reserved, and no other run can take it for its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperdp import accounting, keys
from hyperdp.accounting import Event
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError, VerificationError
from hyperdp.ledger import Ledger, Reservation
from hyperdp.own_statement import certificate_digest, check_own
from hyperdp.private.released import Release


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A reservation of this run and how far it has come.

    Attributes:
        reservation: the right to one event.
        spent: noise may have been drawn under it.
        committed: SHA-256 of the certificate of what it paid for, once that is known to be on
            disk; "" before.
    """

    reservation: Reservation
    spent: bool = False
    committed: str = ""


def find(ledger: Ledger, dataset: str, purpose: str) -> Standing | None:
    """What a run reserved before it was killed, or None.

    Args:
        ledger: where to look; it need not exist.
        dataset: the operator's name for the dataset, or its absolute path.
        purpose: with the id of the run in it.
    """
    history = ledger.history(dataset) if ledger.path.exists() else []
    for entry in history:
        if entry.kind == "reserve" and entry.body.get("purpose") == purpose:
            noted = {e.kind: e.body for e in history if e.body.get("reservation") == entry.seal}
            return Standing(
                reservation=Reservation(ledger=ledger, entry=entry),
                spent="spend" in noted,
                committed=str(noted.get("commit", {}).get("certificate_sha256", "")),
            )
    return None


def check_start(start: Release | None, ledger: Ledger, dataset: str) -> None:
    """Refuse a release to start from whose cost nobody vouches for.

    The fit's certificate repeats what the release says that it cost, under this account's own
    signature. Whoever else signs may say anything, of which dataset it is too.

    Args:
        start: its signature has been checked, whosesoever it is.
        ledger: of the fit.
        dataset: of the fit.

    Raises:
        VerificationError: another account signed it; or it is of this dataset, and the ledger has
            committed none such.
    """
    if start is None:
        return
    c = start.certificate
    if c.public_key != keys.public_key():
        raise VerificationError(
            expected="a release of this account to start from",
            found=f"one signed by {c.public_key}",
            todo="Start from a release made here, or from public weights (--start).",
        )
    if c.dataset != keys.dataset_fingerprint(dataset):
        return
    history = ledger.history(dataset) if ledger.path.exists() else []
    committed = {
        e.body["reservation"]: e.body["certificate_sha256"] for e in history if e.kind == "commit"
    }
    entries = [e for e in history if e.seal == c.ledger_seal]
    if not entries or committed.get(c.ledger_seal) != certificate_digest(c):
        raise VerificationError(
            expected=f"a release of this dataset that {ledger.path} has committed",
            found=f"one that it does not know, entry {c.ledger_seq} of {c.ledger_id[:12]}…",
            todo="Give the ledger that the release was made with (--ledger).",
        )
    check_own(c, entries[0])


def find_or_reserve(
    ledger: Ledger,
    dataset: str,
    *,
    budget: PrivacyBudget,
    event: Event,
    bundle_hash: str,
    purpose: str,
    delta_discretisation: float = 0.0,
) -> Standing:
    """The run's one reservation for an event, made now or found again.

    Args:
        ledger: where it stands.
        dataset: the operator's name for the dataset, or its absolute path.
        budget: what the event is declared to cost.
        event: the mechanism.
        bundle_hash: SHA-256 of the bundle.
        purpose: with the id of the run in it.
        delta_discretisation: the δ that the lattice costs beyond `event`.

    Raises:
        BudgetRefusedError: the ledger refuses, or what is found is another event.
        UsageError: see `Ledger.reserve`.
    """
    if (found := find(ledger, dataset, purpose)) is not None:
        check_same(
            found.reservation,
            dataset,
            budget=budget,
            event=event,
            bundle_hash=bundle_hash,
            delta_discretisation=delta_discretisation,
        )
        return found
    made = ledger.reserve(
        dataset,
        budget=budget,
        event=event,
        bundle_hash=bundle_hash,
        delta_discretisation=delta_discretisation,
        purpose=purpose,
    )
    return Standing(reservation=made)


def check_same(
    reservation: Reservation,
    dataset: str,
    *,
    budget: PrivacyBudget,
    event: Event,
    bundle_hash: str,
    delta_discretisation: float,
) -> None:
    """Refuse a reservation that was made for something else, such as for less.

    Raises:
        BudgetRefusedError: a value differs.
    """
    entry = reservation.entry
    wanted = {
        **vars(budget),
        "event": accounting.event_to_json(event),
        "bundle_hash": bundle_hash,
        "delta_discretisation": float(delta_discretisation),
        "dataset": keys.dataset_fingerprint(dataset),
    }
    found = {**entry.body, "dataset": entry.dataset}
    if other := sorted(name for name, value in wanted.items() if found.get(name) != value):
        raise BudgetRefusedError(
            expected="the reservation of the very event that is about to happen",
            found=f"one with other values of {', '.join(other)}, entry {entry.seq}",
            todo="Give the command that the run was begun with.",
        )


def cap_if_none(ledger: Ledger, dataset: str, cap: PrivacyBudget) -> None:
    """Set a dataset's first cap, and leave any that stands: in one step that nobody can come into.

    Args:
        ledger: made where there is none.
        dataset: the operator's name for the dataset, or its absolute path.
        cap: what a run of several events may spend in all.
    """
    name = keys.dataset_fingerprint(dataset)
    with ledger.open() as chain:
        if not any(e.kind == "cap" and e.dataset == name for e in chain.entries):
            chain.append("cap", name, dict(vars(cap)))


class StandingLedger(Ledger):
    """A ledger that gives out one reservation, made beforehand, for the event it was made for.

    Args:
        standing: not spent.
    """

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing.reservation.ledger.path)
        self._reservation = standing.reservation

    def reserve(
        self,
        dataset: str,
        *,
        budget: PrivacyBudget,
        event: Event,
        bundle_hash: str,
        delta_discretisation: float = 0.0,
        purpose: str = "release",
    ) -> Reservation:
        """The reservation; see `Ledger.reserve`.

        The ledger lets it be spent once, so giving it out again draws no second noise.

        Raises:
            BudgetRefusedError: the event is another one than was reserved.
        """
        check_same(
            self._reservation,
            dataset,
            budget=budget,
            event=event,
            bundle_hash=bundle_hash,
            delta_discretisation=delta_discretisation,
        )
        return self._reservation
