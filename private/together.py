"""One release by several processes on one or more machines, under accelerate's launcher.

    accelerate launch --num_processes 8 -m hyperdp release DATA --epsilon 1 --delta 1e-5 -o OUT

Every process reads the data and takes the records that are its own; which these are is decided by
the record (or its user) alone, so that each is taken once, in whatever order it is met. The main
process alone holds the ledger: it reserves, tells the others to begin, adds the integer sums up,
draws the noise and writes. Un-noised sums travel between the operator's machines: keep that network
as private as the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import distributed

from hyperdp.budget import PrivacyBudget, Unit
from hyperdp.errors import BundleError, HyperdpError
from hyperdp.mechanism import ClippedSum, MechanismSpec
from hyperdp.private.aggregate import aggregate, unreadable
from hyperdp.private.class_names import check_classes
from hyperdp.private.embed import UNFIT, arithmetic
from hyperdp.private.forms import Form
from hyperdp.private.readers.decoding import reading
from hyperdp.private.records import AnyRecord, TextRecord
from hyperdp.private.release import Release, release
from hyperdp.private.release_bundle import ReleaseBundle
from hyperdp.processes import processes

_STOP, _GO = 0, 1


def release_together(
    records: Iterable[AnyRecord],
    *,
    bundle: ReleaseBundle,
    budget: PrivacyBudget,
    classes: list[str] | None = None,
    state: PartialState | None = None,
    **rest: Any,
) -> Release | None:
    """`release`, called by every process with the same arguments.

    Args:
        records: private; all of them, in every process, in any order.
        bundle: public.
        budget: what the main process reserves, once.
        classes: as for `release`.
        state: the processes; those that the launcher started when None.
        rest: further arguments of `release`; only the main process looks at them.

    Returns:
        The release in the main process, None in the others.

    Raises:
        BundleError: the processes read or embed public samples differently; nothing was spent.
        HyperdpError: in the main process, what `release` raises.
    """
    team = _Team(state or processes(), bundle)
    if not team.state.is_main_process:
        team.follow(records, budget.unit, check_classes(classes), budget)
        return None
    try:
        return release(
            records, bundle=bundle, budget=budget, classes=classes, add_up=team.add_up, **rest
        )
    finally:
        team.dismiss()


class _Team:
    """The processes of one release; every method is called by all, or by the main one alone."""

    def __init__(self, state: PartialState, bundle: ReleaseBundle) -> None:
        self.state, self.bundle = state, bundle
        self._told = False
        # Whose a record is follows from how it is read, so that they must agree on this too.
        alike = arithmetic(bundle.encoder, Form.of(bundle.config)) + reading(bundle)
        own = np.frombuffer(alike, np.uint8)
        mine = torch.from_numpy(own.copy()).to(state.device)
        found = [torch.empty_like(mine) for _ in range(state.num_processes)]
        if state.num_processes > 1:
            distributed.all_gather(found, mine)
            same = all(torch.equal(mine, other) for other in found)
            if not same or alike.startswith(UNFIT):
                raise BundleError(
                    expected="the same reading and embeddings of public samples in every process",
                    found="readings or embeddings that differ, or that companions change",
                    todo="Use machines of one kind, with the same versions.",
                )

    def add_up(
        self,
        records: Iterable[AnyRecord],
        *,
        bundle: ReleaseBundle,
        spec: MechanismSpec,
        unit: Unit,
        classes: list[str],
        progress: bool = False,
    ) -> ClippedSum:
        """The main process's `aggregate`: its own records, and what the others have added up."""
        self._tell(_GO)
        failure, own = None, ClippedSum(spec)
        try:
            own = aggregate(
                self._own(records, unit),
                bundle=bundle, spec=spec, unit=unit, classes=classes, progress=progress,
            )  # fmt: skip
        except HyperdpError as error:
            failure = error
        vector, failed = self._reduce(own, failed=failure is not None)
        if failed:
            raise failure or unreadable()
        total = ClippedSum(spec)
        total.add_vector(vector)
        return total

    def follow(
        self, records: Iterable[AnyRecord], unit: Unit, classes: list[str], budget: PrivacyBudget
    ) -> None:
        """Another process: reads nothing before the main one has reserved, and tells it alone."""
        if not self._hear():
            return
        config = self.bundle.config
        spec = MechanismSpec(
            embedding_dim=config.embed_dim,
            clip_norm=float(config.clip_norm),
            num_classes=len(classes) or 1,
            adjacency=budget.adjacency,
        )
        own, failed = ClippedSum(spec), False
        try:
            own = aggregate(
                self._own(records, unit),
                bundle=self.bundle, spec=spec, unit=unit, classes=classes,
            )  # fmt: skip
        except HyperdpError:
            failed = True
        self._reduce(own, failed=failed)

    def dismiss(self) -> None:
        """Lets the others go where the main process never came to reading."""
        if not self._told:
            self._tell(_STOP)

    def _own(self, records: Iterable[AnyRecord], unit: Unit) -> Iterator[AnyRecord]:
        count, index = self.state.num_processes, self.state.process_index
        return (record for record in records if owner(record, unit, count) == index)

    def _tell(self, word: int) -> None:
        self._told = True
        if self.state.num_processes > 1:
            distributed.broadcast(torch.tensor([word], device=self.state.device), src=0)

    def _hear(self) -> bool:
        word = torch.zeros(1, dtype=torch.int64, device=self.state.device)
        distributed.broadcast(word, src=0)
        return int(word) == _GO

    def _reduce(self, own: ClippedSum, *, failed: bool) -> tuple[Any, int]:
        """The vectors of all processes added up, in the main one, and how many failed."""
        sums = torch.from_numpy(np.append(own.to_vector(), np.int64(failed))).to(self.state.device)
        if self.state.num_processes > 1:
            distributed.reduce(sums, dst=0)
        found = sums.cpu().numpy()
        return found[:-1], int(found[-1])


def owner(record: AnyRecord, unit: Unit, count: int) -> int:
    """Which of `count` processes takes a record: told by the record, or by its user, alone."""
    if unit == "user":
        if not isinstance(record.unit, str):
            return 0  # where it is refused
        content = [record.unit.encode("utf-8", "surrogatepass")]  # as JSON may hold
    else:
        values = record.tokens if isinstance(record, TextRecord) else record.image
        content = [np.ascontiguousarray(values).tobytes(), repr(record.label).encode()]
    digest = hashlib.blake2b(digest_size=8)
    for part in content:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big") % count
