"""Train an adapter by many noisy steps: reserve → read → spend → steps → publish → commit.

A step releases the noisy mean contribution of one Poisson sample; everything else is
post-processing. A run that is killed goes on from its last kept state, under the same reservation:
steps after that state were never shown to anybody, and are taken anew with fresh samples and noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hyperdp import accounting, keys
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.certificate import CERTIFICATE_FILE
from hyperdp.errors import BudgetRefusedError, UsageError
from hyperdp.ledger import Ledger, Reservation
from hyperdp.lora import Weights
from hyperdp.private.learners.calibrate import calibrate, training_event
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.finished import check_moved, saved_adapter
from hyperdp.private.learners.methods import make_rule
from hyperdp.private.learners.run_folder import RunFolder, flatten, part, run_folder
from hyperdp.private.learners.starting import check_separate, start_weights
from hyperdp.private.learners.step import PrivateStep
from hyperdp.private.learners.units import Units
from hyperdp.private.records import Record
from hyperdp.private.released import Release, new_folder
from hyperdp.training_certificate import TrainingCertificate

Progress = Callable[[int, int, float], None]
"""Called with steps done, steps, and the ε spent so far: all of it public."""

_TOLD = 20  # times that ε so far is computed in a run


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
    records: Iterable[Record],
    *,
    bundle: Bundle,
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
        start: a release whose adapter is where the fit begins (the hybrid).
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
        VerificationError: the adapter did not move, or does not survive saving.
    """
    pace = pace or Pace()
    _check_delta(config, budget, allow=allow_weak_delta)
    sigma = calibrate(budget, probability=config.probability, steps=config.steps)
    event = training_event(sigma, config.probability, config.steps)
    rule = make_rule(config, bundle)
    family = bundle.load_base()
    family.prepare_training()
    family.model.requires_grad_(False)
    begin = rule.start(start_weights(config, bundle, start))
    check_separate(family, begin, microbatch=pace.microbatch)
    fingerprint = keys.dataset_fingerprint(dataset)
    settings = {
        "config": _plain(config),
        "budget": dict(vars(budget)),
        "bundle_hash": bundle.hash,
        "dataset": fingerprint,
        "start": _digest(start),
        "noise_multiplier": sigma,
    }
    step = PrivateStep(family=family, rule=rule, config=config, noise_multiplier=sigma, pace=pace)
    with run_folder(Path(out), settings) as folder:
        reservation, spent = _reserve(ledger, dataset, budget, event, bundle, config, folder)
        units = Units.read(records, shape=bundle.config.image_shape, unit=budget.unit)
        if not spent:
            reservation.spend()
        begin, end = _train(step, units, begin, folder, event_of=training_event, budget=budget,
                            progress=progress)  # fmt: skip
        check_moved(begin, end)
        files = saved_adapter(family, end, base_name=bundle.name)
        certificate = _certificate(
            config, budget, sigma, bundle, reservation, start, fingerprint, end, files
        )
        with new_folder(Path(out)) as target:
            target.publish({**files, CERTIFICATE_FILE: certificate.to_bytes()})
        reservation.commit(
            certificate_sha256=hashlib.sha256(certificate.to_bytes()).hexdigest(),
            bundle_hash=bundle.hash,
        )
        folder.remove()
    return Fit(certificate=certificate, weights=end)


def _train(
    step: PrivateStep,
    units: Units,
    begin: Weights,
    folder: RunFolder,
    *,
    event_of: Callable[[float, float, int], accounting.Event],
    budget: PrivacyBudget,
    progress: Progress | None,
) -> tuple[Weights, Weights]:
    """All steps that are left: the adapter they began with, and the average of those after."""
    config, rule = step.config, step.rule
    done, weights, average = 0, begin, begin
    if (kept := folder.load()) is not None:
        done, tensors = kept
        begin, weights, average = (part(tensors, key) for key in ("begin", "weights", "average"))
        rule.load_state_dict(
            {k.removeprefix("rule/"): v for k, v in tensors.items() if k.startswith("rule/")}
        )
    else:
        folder.save(0, flatten(begin=begin, weights=begin, average=begin, rule=rule.state_dict()))
    warmup = max(1, config.steps // 20)
    every = max(1, config.steps // _TOLD)
    epsilon = 0.0
    while done < config.steps:
        lr = config.lr * min(1.0, (done + 1) / warmup)
        weights = rule.update(weights, step(units, weights), step.noise_std, lr)
        done += 1
        keep = min(config.average, done / (10 + done))
        average = {
            name: (torch.lerp(a, average[name][0], keep), torch.lerp(b, average[name][1], keep))
            for name, (a, b) in weights.items()
        }
        if done % step.pace.checkpoint_every == 0 or done == config.steps:
            state = rule.state_dict()
            folder.save(done, flatten(begin=begin, weights=weights, average=average, rule=state))
        if progress is not None:
            if done % every == 0 or done == config.steps:
                so_far = event_of(step.noise_multiplier, config.probability, done)
                epsilon = accounting.pld_epsilon([so_far], budget.delta, interval=1e-3)
                epsilon = min(epsilon, budget.epsilon)
            progress(done, config.steps, epsilon)
    return begin, average


def _reserve(
    ledger: Ledger,
    dataset: str,
    budget: PrivacyBudget,
    event: accounting.Event,
    bundle: Bundle,
    config: FitConfig,
    folder: RunFolder,
) -> tuple[Reservation, bool]:
    """The run's one reservation, found again where it was made before, and whether it is spent."""
    purpose = f"fit {config.method} {folder.run_id}"
    history = ledger.history(dataset) if ledger.path.exists() else []
    mine = [e for e in history if e.kind == "reserve" and e.body.get("purpose") == purpose]
    if not mine:
        if folder.load() is not None:
            raise BudgetRefusedError(
                expected=f"the ledger that the run in {folder.path} was reserved in",
                found=f"{ledger.path}, which does not know it",
                todo="Give that ledger with --ledger.",
            )
        made = ledger.reserve(
            dataset, budget=budget, event=event, bundle_hash=bundle.hash, purpose=purpose
        )
        return made, False
    noted = [e.kind for e in history if e.body.get("reservation") == mine[0].seal]
    if "commit" in noted:
        raise BudgetRefusedError(
            expected="a run that is not finished",
            found=f"one that was committed, entry {mine[0].seq} of {ledger.path}",
            todo=f"Its adapter was written. To train anew remove {folder.path}: a new run spends "
            "its own budget.",
        )
    return Reservation(ledger=ledger, entry=mine[0]), "spend" in noted


def _certificate(
    config: FitConfig,
    budget: PrivacyBudget,
    sigma: float,
    bundle: Bundle,
    reservation: Reservation,
    start: Release | None,
    fingerprint: str,
    weights: Weights,
    files: dict[str, bytes],
) -> TrainingCertificate:
    entry = reservation.entry
    own = accounting.event_from_json(entry.body["event"])
    # A start from another dataset's release costs this one nothing.
    before = start.certificate if start and start.certificate.dataset == fingerprint else None
    total_delta = max(budget.delta, before.delta if before else 0.0)
    total = budget.epsilon
    if before is not None:
        events = [accounting.event_from_json(before.event), own]
        total = accounting.epsilon(events, total_delta - before.delta_discretisation)
    return TrainingCertificate(
        created=entry.time,
        code_version=version("hyperdp"),
        method=config.method,
        adjacency=budget.adjacency,
        unit=budget.unit,
        epsilon=float(budget.epsilon),
        delta=float(budget.delta),
        noise_multiplier=sigma,
        sampling_probability=config.probability,
        steps=config.steps,
        clip_norm=float(config.clip_norm),
        size=config.size,
        expected_batch=config.expected_batch,
        config=_plain(config),
        sites=sorted(weights),
        rank=next(iter(weights.values()))[1].shape[2],
        bundle_name=bundle.name,
        bundle_hash=bundle.hash,
        start_certificate=_digest(start),
        start_event=before.event if before else {},
        start_delta_discretisation=before.delta_discretisation if before else 0.0,
        total_epsilon=float(total),
        total_delta=float(total_delta),
        event=entry.body["event"],
        ledger_id=entry.body["ledger_id"],
        ledger_seq=entry.seq,
        ledger_seal=entry.seal,
        dataset=entry.dataset,
        adapter_sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    ).signed()


def _check_delta(config: FitConfig, budget: PrivacyBudget, *, allow: bool) -> None:
    if budget.delta * config.size >= 1 and not allow:
        raise UsageError(
            expected=f"delta below 1 / size = {1 / config.size:.3g}",
            found=f"delta={budget.delta:g}: publishing one unit outright would satisfy it",
            todo="Lower delta, or accept it with --allow-weak-delta. Nothing has been spent.",
        )


def _plain(config: FitConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _digest(start: Release | None) -> str:
    return "" if start is None else hashlib.sha256(start.certificate.to_bytes()).hexdigest()
