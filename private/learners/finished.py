"""The end of a fit: the adapter must have moved and survive saving; and its certificate."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hyperdp import accounting
from hyperdp.adapter_files import ADAPTER_FILES, PIPELINE_FILE
from hyperdp.chain import Entry
from hyperdp.errors import VerificationError
from hyperdp.family import Family
from hyperdp.lora import Weights, adapters, attach_peft, load_peft, save_peft
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.learners.training import Terms
from hyperdp.private.released import Release
from hyperdp.text_family import CausalText
from hyperdp.training_certificate import TrainingCertificate

_LOUD = 0.1  # of the base's output: an effect that rounding cannot hide


def check_moved(start: Weights, end: Weights) -> None:
    """Refuse an adapter that is not finite, or that training left as it was.

    Raises:
        VerificationError: it is one of these.
    """
    finite = all(bool(part.isfinite().all()) for pair in end.values() for part in pair)
    moved = any(
        not torch.equal(x, y) for name in end for x, y in zip(start[name], end[name], strict=True)
    )
    if not (finite and moved):
        raise VerificationError(
            expected="weights that moved and are finite",
            found="weights as they were at the start" if finite else "weights that are not finite",
            todo="Lower the learning rate, or tell us; the budget is spent.",
        )


def saved_adapter(
    family: Family | CausalText, weights: Weights, *, base_name: str
) -> dict[str, bytes]:
    """The files of the PEFT directory, checked by the `peft` library itself.

    Where the base has a stock pipeline, the file that its `load_lora_weights` reads is among them.

    Args:
        family: the base model.
        weights: one adapter.
        base_name: what `base_model_name_or_path` says.

    Returns:
        File name → content.

    Raises:
        VerificationError: loaded again, the adapter is another one or does something else.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = family.lora_part if not isinstance(family, CausalText) else ""
        save_peft(weights, folder, base_name=base_name, pipeline_part=part)
        again = load_peft(folder)
        same = again.keys() == weights.keys() and all(
            torch.equal(x.float().cpu(), y)
            for key in weights
            for x, y in zip(weights[key], again[key], strict=True)
        )
        base = family.response(family.model)
        with adapters(family.model, weights):
            effect = float((family.response(family.model) - base).norm())
        # A short run's effect may drown in rounding: it is compared at a size where it cannot.
        scale = max(1.0, _LOUD * float(base.norm()) / max(effect, 1e-30))
        loud = {name: (a, b * scale) for name, (a, b) in weights.items()}
        save_peft(loud, folder / "loud", base_name=base_name)
        with adapters(family.model, loud):
            ours = family.response(family.model)
        theirs = family.response(attach_peft(copy.deepcopy(family.model), folder / "loud"))
        error, whole = float((ours - theirs).norm()), float((ours - base).norm())
        if not (same and effect > 0 and error <= 1e-3 * whole):
            raise VerificationError(
                expected="an adapter that is the same after saving and loading, and has an effect",
                found="another one" if not same else "another effect than before",
                todo="Tell us the versions of torch, peft and diffusers; the budget is spent.",
            )
        files = (*ADAPTER_FILES, PIPELINE_FILE) if part else ADAPTER_FILES
        return {file: (folder / file).read_bytes() for file in files}


def training_certificate(
    terms: Terms, entry: Entry, start: Release | None, weights: Weights, files: dict[str, bytes]
) -> TrainingCertificate:
    """State and sign what an adapter was trained with.

    Args:
        terms: see `Terms`.
        entry: the reservation of its steps.
        start: the release that it started from, or None.
        weights: the adapter.
        files: the files of its PEFT directory.
    """
    config, budget = terms.config, terms.budget
    own = accounting.event_from_json(entry.body["event"])
    # A start from another dataset's release costs this one nothing.
    before = start.certificate if start and start.certificate.dataset == entry.dataset else None
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
        noise_multiplier=terms.noise_multiplier,
        sampling_probability=config.probability,
        steps=config.steps,
        clip_norm=float(config.clip_norm),
        size=config.size,
        expected_batch=config.expected_batch,
        config=plain(config),
        sites=sorted(weights),
        rank=next(iter(weights.values()))[1].shape[2],
        bundle_name=terms.bundle.name,
        bundle_hash=terms.bundle.hash,
        start_certificate=digest(start),
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


def plain(config: FitConfig) -> dict[str, Any]:
    """The settings in plain JSON types."""
    values = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def digest(start: Release | None) -> str:
    """SHA-256 of a release's certificate; "" for none."""
    return "" if start is None else hashlib.sha256(start.certificate.to_bytes()).hexdigest()
