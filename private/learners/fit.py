"""Train an adapter by many noisy steps: reserve → read → spend → steps → publish → commit.

A step releases the noisy mean contribution of one Poisson sample; everything else is
post-processing. A run that is killed goes on from its last kept state, under the same reservation:
steps after that state were never shown to anybody, and are taken anew with fresh samples and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.certificate import CERTIFICATE_FILE
from hyperdp.compute import exact
from hyperdp.errors import BudgetRefusedError, UsageError
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights, load_peft
from hyperdp.own_statement import certificate_digest, check_own
from hyperdp.private.forms import Form
from hyperdp.private.learners.calibrate import calibrate
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.finished import (
    check_moved,
    digest,
    plain,
    saved_adapter,
    training_certificate,
)
from hyperdp.private.learners.reserving import Standing, check_start, find, find_or_reserve
from hyperdp.private.learners.run_folder import RunFolder, run_folder
from hyperdp.private.learners.training import Progress, Terms, Training, check_delta
from hyperdp.private.learners.units import Units
from hyperdp.private.records import AnyRecord
from hyperdp.private.released import Release, new_folder
from hyperdp.statement import format_of
from hyperdp.text_bundle import TextBundle
from hyperdp.training_certificate import TrainingCertificate
from hyperdp.training_verification import check_training

__all__ = ["Fit", "Progress", "fit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A trained adapter and its certificate; may be published.

    Attributes:
        certificate: what was promised, and how.
        weights: A [1, r, in, …] and B [1, out, r], float32.
    """

    certificate: TrainingCertificate
    weights: Weights


def fit(
    records: Iterable[AnyRecord],
    *,
    bundle: Bundle | TextBundle,
    config: FitConfig,
    budget: PrivacyBudget,
    ledger: Ledger,
    out: str | Path,
    dataset: str,
    start: Release | None = None,
    allow_weak_delta: bool = False,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train one adapter under a budget, and write it as a PEFT directory with its certificate.

    The same call goes on with a run that was killed. The budget is spent once it is reserved.

    Args:
        records: private; read once, after the reservation. Labels are not used.
        bundle: public base model and hypernetwork.
        config: public; must not be chosen in view of releases of this dataset.
        budget: ε, δ and unit; add-remove adjacency.
        ledger: where it is spent.
        out: the PEFT directory to be made; it must not exist.
        dataset: the operator's name for the dataset, or its absolute path; always the same one.
        start: a release of this account whose adapter is where the fit begins;
            `hyperdp.private.learners.hybrid` makes it out of one budget.
        allow_weak_delta: accept δ >= 1 / size.
        pace: see `Pace`.
        progress: see `Progress`.

    Returns:
        The adapter that lies in `out`.

    Raises:
        BudgetRefusedError: the ledger refuses, or the run has been finished already.
        UsageError: bad settings; no noise reaches the budget; a weak δ.
        DataError: the records cannot be read.
        BundleError: the release is another bundle's, or the base model mixes records.
        VerificationError: the adapter did not move, or does not survive saving; the start is
            another account's, or of this dataset and not in its ledger; what lies in `out` is of
            somebody else.
    """
    check_delta(config.size, budget, allow=allow_weak_delta)
    check_start(start, ledger, dataset)
    terms = Terms(
        bundle=bundle,
        config=config,
        budget=budget,
        noise_multiplier=calibrate(budget, probability=config.probability, steps=config.steps),
        dataset=dataset,
        out=Path(out),
        pace=pace or Pace(),
        total=budget,
    )
    training = Training(terms, start)
    settings = {
        "config": plain(config),
        "budget": dict(vars(budget)),
        "bundle_hash": bundle.hash,
        "dataset": keys.dataset_fingerprint(dataset),
        "start": digest(start),
        "noise_multiplier": terms.noise_multiplier,
        "out": str(terms.out.expanduser().resolve()),  # a copy of the folder is no run
    }
    with run_folder(terms.out, settings) as folder:
        standing = reserve_steps(terms, ledger, folder)
        return run_steps(lambda: records, training, standing, folder, start, progress)


def reserve_steps(terms: Terms, ledger: Ledger, folder: RunFolder) -> Standing:
    """The reservation of the steps, made now or found again.

    Raises:
        BudgetRefusedError: the ledger refuses, does not know the run, or it was finished.
    """
    purpose = f"fit {terms.config.method} {folder.run_id}"
    if folder.begun and find(ledger, terms.dataset, purpose) is None:
        raise BudgetRefusedError(
            expected=f"the ledger that the run in {folder.path} was reserved in",
            found=f"{ledger.path}, which does not know it",
            todo="Give that ledger with --ledger.",
        )
    standing = find_or_reserve(
        ledger,
        terms.dataset,
        budget=terms.budget,
        event=terms.event,
        bundle_hash=terms.bundle.hash,
        purpose=purpose,
    )
    if standing.committed and not terms.out.exists():
        raise BudgetRefusedError(
            expected="a run that is not finished",
            found=f"one that was committed, entry {standing.reservation.entry.seq} of "
            f"{ledger.path}",
            todo=f"Its adapter was written. To train anew remove {folder.path}: a new run spends "
            "its own budget.",
        )
    return standing


def run_steps(
    read: Callable[[], Iterable[AnyRecord]],
    training: Training,
    standing: Standing,
    folder: RunFolder,
    start: Release | None,
    progress: Progress | None,
) -> Fit:
    """Everything after the reservation, or what is left of it.

    Args:
        read: gives the private records; called once, or not at all where the adapter is there.
        training: ready for its steps.
        standing: the reservation of the steps.
        folder: of the run; taken away at the end.
        start: the release that the steps start from, or None.
        progress: see `Progress`.

    Raises:
        HyperdpError: see `fit`.
    """
    terms, reservation = training.terms, standing.reservation
    out = terms.out.expanduser().resolve()
    if found := out.exists():  # killed between writing the adapter and the end
        fitted = _published(out, standing)
    else:
        if standing.spent and not folder.begun:
            raise BudgetRefusedError(
                expected=f"the state of the run in {folder.path}",
                found="none, though steps may have been taken",
                todo="Steps are never taken twice for one reservation, and what it reserved stays "
                "spent. Put the state back, or begin a new run in another folder.",
            )
        form = Form.of(terms.bundle.config)
        units = Units.read(read(), form=form, unit=terms.budget.unit)
        training.keep_start(folder)  # first, or a kill after the note would look like a lost state
        if not standing.spent:
            reservation.spend()
        with exact():
            begin, end = training.run(units, folder, progress)
            check_moved(begin, end)
            weights = training.for_base(begin, end)
            files = saved_adapter(training.family, weights, base_name=terms.bundle.name)
        certificate = training_certificate(terms, reservation.entry, start, weights, files)
        fitted = Fit(certificate=certificate, weights=weights)
        with new_folder(out) as target:  # taken away again where the ledger refuses the commit
            target.paid = True
            target.publish({**files, CERTIFICATE_FILE: certificate.to_bytes()})
            _commit(standing, fitted)
    if found and not standing.committed:
        _commit(standing, fitted)
    folder.remove()
    return fitted


def _commit(standing: Standing, fitted: Fit) -> None:
    standing.reservation.commit(
        certificate_sha256=certificate_digest(fitted.certificate),
        bundle_hash=fitted.certificate.bundle_hash,
    )


def _published(out: Path, standing: Standing) -> Fit:
    """The adapter in `out`, where this account's run wrote it for its reservation."""
    path, entry = out / CERTIFICATE_FILE, standing.reservation.entry
    statement = path.read_bytes() if path.is_file() else b""
    if format_of(statement) == TrainingCertificate.FORMAT:
        certificate, _ = check_training(out, statement)
        if certificate.ledger_seal == entry.seal:
            check_own(certificate, entry, committed=standing.committed)
            return Fit(certificate=certificate, weights=load_peft(out))
    raise UsageError(
        expected=f"a new folder that can be written at {out}",
        found="it exists already",
        todo="Choose another folder; an adapter is never overwritten.",
    )
