"""The hybrid: a part of one budget buys a release, the rest buys steps from its adapter.

Both events are settled and reserved before anything is read, so no setting of the steps can depend
on what the release says. A run that is killed goes on under the same two reservations. Noise of the
release is drawn once: where a kill came between that and the release's being on disk, it is lost,
and its budget stays spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.errors import BudgetRefusedError, UsageError
from hyperdp.ledger import Ledger
from hyperdp.mechanism import MechanismSpec
from hyperdp.own_statement import certificate_digest, check_own
from hyperdp.private.embed import check_independence
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.finished import plain
from hyperdp.private.learners.fit import Fit, reserve_steps, run_steps
from hyperdp.private.learners.reserving import (
    Standing,
    StandingLedger,
    cap_if_none,
    find,
    find_or_reserve,
)
from hyperdp.private.learners.run_folder import RunFolder, run_folder
from hyperdp.private.learners.split import Split, split_budget
from hyperdp.private.learners.training import Progress, Terms, Training, check_delta
from hyperdp.private.records import AnyRecord
from hyperdp.private.release import Release, release
from hyperdp.text_bundle import TextBundle

RELEASE_FOLDER, ADAPTER_FOLDER = "release", "adapter"


@dataclass(frozen=True, kw_only=True, eq=False)
class Hybrid:
    """A release and the adapter trained on from it; may be published.

    Attributes:
        release: the first part.
        fit: the second part; its certificate states what both cost together.
    """

    release: Release
    fit: Fit


def fit_hybrid(
    read: Callable[[], Iterable[AnyRecord]],
    *,
    bundle: Bundle | TextBundle,
    config: FitConfig,
    fraction: float,
    budget: PrivacyBudget,
    ledger: Ledger,
    out: str | Path,
    dataset: str,
    inverted: bool = False,
    allow_weak_delta: bool = False,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Hybrid:
    """Release, emit and refine under one budget.

    The same call goes on with a run that was killed. The whole budget is spent once it is reserved.
    A dataset without a cap gets this budget as its cap.

    Args:
        read: gives the private records anew at each call; called twice at most, each time after
            both reservations.
        bundle: φ, ρ and the base model.
        config: of the steps; public, and must not be chosen in view of releases of this dataset.
        fraction: f, the share of the budget that the steps get; see `split_budget`.
        budget: ε and δ of both together, and the unit; add-remove adjacency.
        ledger: where it is spent.
        out: folder; `release` and `adapter` are made in it.
        dataset: the operator's name for the dataset, or its absolute path; always the same one.
        inverted: whether the reader made dark light in every record; noted in the certificate.
        allow_weak_delta: accept δ >= 1 / size, and δ >= 1 / n̂.
        pace: see `Pace`.
        progress: see `Progress`; ε counts the release in.

    Returns:
        What lies in `out`.

    Raises:
        BudgetRefusedError: both do not fit under the cap; or the release was lost to a kill.
        VerificationError: a release lies in `out` that this run did not write.
        UsageError: bad settings; a fraction or σ that the budget does not reach; a weak δ.
        DataError: the records cannot be read.
        BundleError: an embedding or a gradient depends on other records.
        VerificationError: the adapter did not move, or does not survive saving.
    """
    check_delta(config.size, budget, allow=allow_weak_delta)
    spec = MechanismSpec(
        embedding_dim=bundle.config.embed_dim,
        clip_norm=float(bundle.config.clip_norm),
        num_classes=1,
        adjacency=budget.adjacency,
    )
    split = split_budget(
        budget, fraction, spec=spec, probability=config.probability, steps=config.steps
    )
    terms = _terms(split, bundle, config, dataset, Path(out), pace or Pace())
    # What would stop either part is told before anything is spent; steps are tried from the public
    # mean, as there is no release yet.
    check_independence(bundle)
    Training(replace(terms, config=replace(config, start="public-mean")), None)
    settings = {
        "config": plain(config),
        "budget": dict(vars(budget)),
        "fraction": fraction,
        "bundle_hash": bundle.hash,
        "dataset": keys.dataset_fingerprint(dataset),
        "inverted": inverted,
        "allow_weak_delta": allow_weak_delta,
        "noise_multiplier": terms.noise_multiplier,
        "out": str(terms.out.expanduser().resolve()),  # a copy of the folder is no run
    }
    with run_folder(terms.out, settings) as folder:
        first, second = _reserve_both(split, terms, ledger, folder)
        made = _release(
            read,
            split,
            terms,
            first,
            inverted=inverted,
            allow_weak_delta=allow_weak_delta,
        )
        fitted = run_steps(read, Training(terms, made), second, folder, made, progress)
    return Hybrid(release=made, fit=fitted)


def _terms(
    split: Split,
    bundle: Bundle | TextBundle,
    config: FitConfig,
    dataset: str,
    out: Path,
    pace: Pace,
) -> Terms:
    return Terms(
        bundle=bundle,
        config=config,
        budget=split.steps,
        noise_multiplier=split.noise_multiplier,
        dataset=dataset,
        out=out / ADAPTER_FOLDER,
        pace=pace,
        total=split.total,
        beside=(split.release_event,),
        lattice=split.release_lattice,
    )


def _reserve_both(
    split: Split, terms: Terms, ledger: Ledger, folder: RunFolder
) -> tuple[Standing, Standing]:
    """The reservations of release and steps, made now or found again; both, or none but by a kill.

    Raises:
        BudgetRefusedError: both do not fit under the cap, or the ledger does not know the run.
    """
    purpose = f"hybrid release {folder.run_id}"
    if find(ledger, terms.dataset, purpose) is None:
        place = _release_folder(terms)
        if place.exists():
            raise UsageError(
                expected=f"a new folder that can be written at {place}",
                found="it exists already, and is not of a run that the ledger knows",
                todo="Choose another folder, or give the ledger that the run was begun with.",
            )
        cap_if_none(ledger, terms.dataset, split.total)
        account = ledger.account(terms.dataset)
        assert account is not None  # noqa: S101  # it has a cap
        after = account.after(split.release_event, split.release_lattice)
        after = after.after(split.steps_event, 0.0)
        if not after.spent_epsilon <= account.cap.epsilon:
            raise BudgetRefusedError(
                expected=f"at most epsilon={account.cap.epsilon:g} spent on this dataset",
                found=f"epsilon={account.spent_epsilon:.4g} spent, {after.spent_epsilon:.4g} with "
                "this release and its steps",
                todo="Nothing was reserved. Spend less, or raise the cap deliberately with "
                "`hyperdp ledger set-cap`.",
            )
    first = find_or_reserve(
        ledger,
        terms.dataset,
        budget=split.release,
        event=split.release_event,
        bundle_hash=terms.bundle.hash,
        delta_discretisation=split.release_lattice,
        purpose=purpose,
    )
    return first, reserve_steps(terms, ledger, folder)


def _release(
    read: Callable[[], Iterable[AnyRecord]],
    split: Split,
    terms: Terms,
    standing: Standing,
    *,
    inverted: bool,
    allow_weak_delta: bool,
) -> Release:
    """The release of this run: made now, or as it lies on disk."""
    place = _release_folder(terms)
    reservation = standing.reservation
    if place.exists():
        made = Release.load(place)
        check_own(made.certificate, reservation.entry, committed=standing.committed)
        if not standing.committed:
            reservation.commit(
                certificate_sha256=certificate_digest(made.certificate),
                bundle_hash=terms.bundle.hash,
            )
        return made
    if standing.spent:
        raise BudgetRefusedError(
            expected=f"the release of this run in {place}",
            found="none, though its noise was drawn: it was lost to a kill or dropped",
            todo="Noise is never drawn twice for one reservation; what the run reserved stays "
            "spent. Begin a new run in another folder, with a cap that you raise deliberately.",
        )
    return release(
        read(),
        bundle=terms.bundle,
        budget=split.release,
        ledger=StandingLedger(standing),
        out=place,
        dataset=terms.dataset,
        allow_weak_delta=allow_weak_delta,
        inverted=inverted,
    )


def _release_folder(terms: Terms) -> Path:
    return terms.out.parent / RELEASE_FOLDER
