"""What each dataset has spent, and the refusal to spend more than its cap.

A spending is reserved, durably, before the first record is read; it is marked spent before noise is
drawn, and committed when the release is on disk. All three count the same: nothing is ever given
back, so a crash can waste budget and never reuse it.
"""

from __future__ import annotations

import math
import secrets
import shlex
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from hyperdp import accounting, keys, sources
from hyperdp.accounting import Account
from hyperdp.budget import PrivacyBudget
from hyperdp.chain import Entry, OpenChain, last_seen
from hyperdp.errors import BudgetRefusedError, BundleError
from hyperdp.sealed_log import SealedLog

_begun: set[str] = set()  # seals of this process's reservations that nothing has come of yet


def begun() -> int:
    """How many budgets this process has reserved for what is not yet on disk."""
    return len(_begun)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A budget that is spent whatever happens next, and the right to one release.

    Attributes:
        ledger: where it stands.
        entry: its entry there.
    """

    ledger: Ledger
    entry: Entry

    def spend(self) -> None:
        """Note, durably, that noise is about to be drawn; to be called once.

        Raises:
            BudgetRefusedError: it was called before, or the ledger does not know the entry.
        """
        self._note("spend", {}, after="")

    def commit(self, *, certificate_sha256: str, bundle_hash: str) -> None:
        """Note that the release is on disk.

        Raises:
            BundleError: the release was made with another bundle than was reserved for.
            BudgetRefusedError: nothing was spent, or it was called before.
        """
        if bundle_hash != self.entry.body["bundle_hash"]:
            raise BundleError(
                expected=f"the bundle of the ledger entry, {self.entry.body['bundle_hash'][:12]}…",
                found=f"{bundle_hash[:12]}…",
                todo="Make a new release with the other bundle; it spends its own budget.",
            )
        self._note("commit", {"certificate_sha256": certificate_sha256}, after="spend")
        _begun.discard(self.entry.seal)

    def _note(self, kind: str, body: dict[str, str], *, after: str) -> None:
        # A ledger deleted or replaced since must not be made anew: this entry would be lost.
        with self.ledger.open(make=False) as chain:
            chain.follow(self.entry, kind, body, after=after)


class Ledger(SealedLog):
    """The budget ledger in one SQLite file, shared by the processes of one host."""

    def set_cap(self, dataset: str, cap: PrivacyBudget) -> None:
        """Set the most that a dataset may spend; the latest cap stands.

        Args:
            dataset: the operator's name for it, or its absolute path.
            cap: ε and δ, and the adjacency and unit of everything spent on this dataset.

        Raises:
            UsageError: something was spent under another adjacency or unit.
            BudgetRefusedError: the dataset is another ledger's.
        """
        name = keys.dataset_fingerprint(dataset)
        keys.remember_name(name, dataset)
        with self.open() as chain:
            chain.check_home(name)
            account = _account(chain, name)
            if account is not None and account.events:
                account.check_kind(cap)
            chain.append("cap", name, dict(vars(cap)))

    def account(self, dataset: str) -> Account | None:
        """What is known of a dataset, or None where the ledger has no entry of it.

        Raises:
            BudgetRefusedError: the dataset is another ledger's.
        """
        with self.look() as chain:
            name = keys.dataset_fingerprint(dataset)
            chain.check_home(name)
            return _account(chain, name)

    def reserve(
        self,
        dataset: str,
        *,
        budget: PrivacyBudget,
        event: accounting.Event,
        bundle_hash: str,
        delta_discretisation: float = 0.0,
        purpose: str = "release",
    ) -> Reservation:
        """Spend a budget before anything is read; when this returns it is on disk.

        A dataset without a cap gets the budget of its first reservation as its cap, so that a
        second one needs a deliberate `set_cap`.

        Args:
            dataset: the operator's name for it, or its absolute path.
            budget: what the event is declared to cost; its adjacency and unit are the dataset's.
            event: the mechanism, its noise multiplier relative to the sensitivity Δ.
            bundle_hash: SHA-256 of the bundle, or of the configuration where there is none.
            delta_discretisation: the δ that the lattice costs beyond `event`.
            purpose: a word for the history.

        Returns:
            The right to one release.

        Raises:
            BudgetRefusedError: the cap would be exceeded, the dataset is another ledger's, or its
                path lies in another dataset's or holds one.
            UsageError: adjacency or unit differ from the dataset's, or the event costs more than
                the budget declares.
        """
        accounting.check_declared(event, budget, delta_discretisation)
        name = keys.dataset_fingerprint(dataset)
        body = {
            **vars(budget),
            "event": accounting.event_to_json(event),
            "delta_discretisation": float(delta_discretisation),
            "bundle_hash": bundle_hash,
            "purpose": purpose,
        }
        # Two paths that overlap, in two ledgers perhaps, one after the other.
        with keys.alone("reserve"), self.open() as chain:
            _refuse_overlap(dataset, name)
            keys.remember_name(name, dataset)
            account = _account(chain, name)
            if account is None:
                account = Account(cap=budget)
                chain.append("cap", name, dict(vars(budget)))
            account.check_kind(budget)
            after = account.after(event, delta_discretisation)
            if not after.spent_epsilon <= account.cap.epsilon:
                raise BudgetRefusedError(
                    expected=f"at most epsilon={account.cap.epsilon:g} spent on this dataset",
                    found=f"epsilon={_up(account.spent_epsilon)} spent, "
                    f"{_up(after.spent_epsilon)} with this release",
                    todo=f"At most epsilon={_down(account.remaining_epsilon)} is left at "
                    f"delta={account.cap.delta:g}. Spend less, or raise the cap deliberately: "
                    f"`{self._raise_cap(dataset, account, _up(after.spent_epsilon))}`.",
                )
            chain.claim(name)
            body |= {"ledger_id": chain.id, "nonce": secrets.token_hex(16)}
            entry = chain.append("reserve", name, body)
        _begun.add(entry.seal)
        return Reservation(ledger=self, entry=entry)

    def _raise_cap(self, dataset: str, account: Account, epsilon: str) -> str:
        """The command that sets a cap."""
        cap = account.cap
        if not math.isfinite(float(epsilon)):  # it is δ that is used up
            return "hyperdp ledger set-cap"
        words = ["hyperdp", "ledger", "set-cap", dataset, "--epsilon", epsilon]
        words += ["--delta", f"{cap.delta:g}", "--ledger", str(self.path)]
        if cap.adjacency != "add-remove":
            words += ["--adjacency", cap.adjacency]
        if cap.unit != "record":
            words += ["--unit", cap.unit]
        return shlex.join(words)


def _refuse_overlap(dataset: str, name: str) -> None:
    """Refuse a path at, in, or over, one whose records another dataset paid for.

    Raises:
        BudgetRefusedError: it is such a path.
    """
    path = Path(dataset.strip())
    if not path.is_absolute():
        return
    path = path.resolve()
    for other, of in sources.spent_sources():
        if of != name and sources.overlap(path, other):
            where = "at" if other == path else "in" if other in path.parents else "over"
            known = shlex.quote(keys.known_name(of) or str(other))
            raise BudgetRefusedError(
                expected="a dataset that shares no record with another one's budget",
                found=f"a path {where} {other}, which has spent the budget of {known}",
                todo=f"Charge it to that dataset (--dataset {known}); or, where they share no "
                "unit, give this one a name of its own (--dataset NAME).",
            )


def ledger_file(dataset: str) -> Path | None:
    """Where the ledger lies that keeps a dataset's budget; None where none does yet.

    Args:
        dataset: the operator's name for it, or its absolute path.
    """
    if not keys.any_ledger():  # an account that has released nothing needs no key to be told so
        return None
    first = keys.known_ledger(keys.dataset_fingerprint(dataset))
    return None if first is None else last_seen(first)


def _up(epsilon: float) -> str:
    """Four figures, never less than the value: what is spent must not look like less."""
    return _four_figures(epsilon, ROUND_CEILING)


def _down(epsilon: float) -> str:
    """Four figures, never more than the value: what is left must not look like more."""
    return _four_figures(epsilon, ROUND_FLOOR)


def _four_figures(value: float, rounding: str) -> str:
    if not math.isfinite(value):
        return f"{value:g}"
    exact = Decimal(value)
    step = Decimal(1).scaleb(exact.adjusted() - 3) if exact else Decimal(1)
    return f"{float(exact.quantize(step, rounding=rounding)):g}"


def _account(chain: OpenChain, dataset: str) -> Account | None:
    mine = [entry for entry in chain.entries if entry.dataset == dataset]
    caps = [entry.body for entry in mine if entry.kind == "cap"]
    spent = [entry.body for entry in mine if entry.kind == "reserve"]
    if not caps:
        return None
    return Account(
        cap=PrivacyBudget(**caps[-1]),
        events=tuple(accounting.event_from_json(body["event"]) for body in spent),
        delta_discretisation=sum(body["delta_discretisation"] for body in spent),
    )
