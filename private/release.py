"""The one private event: reserve → read → aggregate → noise → write atomically → commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dp_accounting import GaussianDpEvent
from safetensors.numpy import save as tensors_to_bytes

from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import CERTIFICATE_FILE, RELEASE_FILE, Certificate
from hyperdp.ledger import Ledger
from hyperdp.mechanism import MechanismSpec, add_noise
from hyperdp.private.aggregate import Aggregator, aggregate
from hyperdp.private.class_names import check_classes
from hyperdp.private.embed import check_independence, weights_hash
from hyperdp.private.records import AnyRecord
from hyperdp.private.release_bundle import ReleaseBundle
from hyperdp.private.released import Release, SignalWarning, check_public_delta, new_folder

__all__ = ["Release", "SignalWarning", "release"]


def release(
    records: Iterable[AnyRecord],
    *,
    bundle: ReleaseBundle,
    budget: PrivacyBudget,
    ledger: Ledger,
    out: str | Path,
    dataset: str,
    classes: Sequence[str] | None = None,
    allow_weak_delta: bool = False,
    inverted: bool = False,
    progress: bool = False,
    add_up: Aggregator = aggregate,
) -> Release:
    """Measure a private dataset once, and write the release into a new folder.

    The budget is spent once it is reserved, whatever happens afterwards. On any error no release is
    left behind, and the error's text holds nothing un-noised; that there was one is itself not
    protected (docs/privacy.md, "What is not covered").

    Args:
        records: private; read once, after the reservation.
        bundle: public encoder, clip norm C and embedding dimension k.
        budget: ε, δ, adjacency and unit.
        ledger: where it is spent.
        out: folder to be made; it must not exist.
        dataset: the operator's name for the dataset, or its absolute path; always the same one.
        classes: public names of all classes, for one mean each; None for an unlabelled release.
        allow_weak_delta: keep a release whose δ is not below 1 / n̂.
        inverted: whether the reader made dark light in every record; noted in the certificate.
        progress: show a bar, on a terminal only.
        add_up: who embeds the records and adds them up: this process, or several.

    Returns:
        The release, as `Release.load(out)` reads it.

    Raises:
        BudgetRefusedError: the ledger refuses.
        UsageError: bad arguments, a ledger or folder that cannot be written, or δ >= 1 / n̂;
            δ > 0.1 before anything is spent.
        DataError: the records cannot be read or are not what `classes` and `budget.unit` say.
        BundleError: an embedding depends on other records, or the encoder's weights changed.
    """
    check_public_delta(budget.delta, allow=allow_weak_delta)
    names = check_classes(classes)
    spec = MechanismSpec(
        embedding_dim=bundle.config.embed_dim,
        clip_norm=float(bundle.config.clip_norm),
        num_classes=len(names) or 1,
        adjacency=budget.adjacency,
    )
    calibration = spec.calibrate(budget)
    check_independence(bundle)
    encoder_hash = weights_hash(bundle.encoder)
    numbers = 8 * spec.num_classes * (spec.embedding_dim + 1)
    room = numbers + 8 * len(json.dumps(names))  # a name in a certificate is no longer than that
    with new_folder(Path(out), room=room) as folder:
        reservation = ledger.reserve(
            dataset,
            budget=budget,
            event=GaussianDpEvent(calibration.noise_multiplier),
            bundle_hash=bundle.hash,
            delta_discretisation=calibration.delta_discretisation,
        )
        folder.paid = True
        total = add_up(
            records, bundle=bundle, spec=spec, unit=budget.unit, classes=names, progress=progress
        )
        reservation.spend()
        sums, counts = add_noise(total, budget)
        tensors = tensors_to_bytes({"sums": sums, "counts": counts})
        certificate = Certificate.of(
            budget=budget,
            spec=spec,
            calibration=calibration,
            classes=names,
            inverted=inverted,
            bundle_name=bundle.name,
            bundle_hash=bundle.hash,
            encoder_hash=encoder_hash,
            hypernetwork_hash=weights_hash(getattr(bundle, "hypernetwork", None)),
            entry=reservation.entry,
            release_sha256=hashlib.sha256(tensors).hexdigest(),
        )
        result = Release(certificate=certificate, sums=sums, counts=counts)
        result.judge(allow_weak_delta=allow_weak_delta)
        folder.publish({RELEASE_FILE: tensors, CERTIFICATE_FILE: certificate.to_bytes()})
        reservation.commit(
            certificate_sha256=hashlib.sha256(certificate.to_bytes()).hexdigest(),
            bundle_hash=bundle.hash,
        )
    return result
