"""One method on one private set of documents: releases, adapters, perplexity."""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.eval.study import CONTROL_NOISE_STD, Progress
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights, adapters, describe_sites, pick
from hyperdp.private.embed import BATCH_SIZE, embed_batch
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import FinetuneConfig, finetune_lora
from hyperdp.private.readers import open_text_dataset
from hyperdp.private.records import TextRecord
from hyperdp.private.release import Release, release
from hyperdp.text_bundle import TextBundle

BATCH = 32


def to_tokens(bundle: TextBundle, documents: Sequence[str]) -> Tensor:
    """Documents as the bundle's tokens, int64 [N, L]."""
    return torch.from_numpy(bundle.base.tokenizer.encode_all(list(documents)))


def to_text_records(
    tokens: Tensor, labels: Sequence[int] | None = None, classes: Sequence[str] | None = None
) -> list[TextRecord]:
    """Documents as the records that a reader would yield.

    Args:
        tokens: int64 [n, L].
        labels: n indices into `classes`.
        classes: names.
    """
    if labels is None or classes is None:
        return [TextRecord(tokens=row) for row in tokens.numpy()]
    return [
        TextRecord(tokens=row, label=classes[label])
        for row, label in zip(tokens.numpy(), labels, strict=True)
    ]


def read_public(bundle: TextBundle, path: str) -> Tensor:
    """Public documents that `hyperdp pretrain public --texts` wrote, int64 [N, L]."""
    texts = open_text_dataset(path, encode=bundle.base.tokenizer.encode)
    return torch.stack([torch.from_numpy(record.tokens) for record in texts.records()])


def embed_documents(bundle: TextBundle, tokens: Tensor) -> NDArray[np.float64]:
    """φ of documents, before clipping and without any noise: for figures, not for a release.

    Args:
        bundle: its encoder.
        tokens: int64 [N, L].

    Returns:
        [N, k].
    """
    parts = [embed_batch(bundle.encoder, p.numpy()) for p in torch.split(tokens, BATCH_SIZE)]
    return np.concatenate(parts).astype(np.float64)


@torch.no_grad()
def document_losses(bundle: TextBundle, weights: Weights, tokens: Tensor) -> Tensor:
    """Each document's own loss under an adapter.

    Args:
        bundle: its base model.
        weights: one adapter, or {}.
        tokens: int64 [N, L].

    Returns:
        float32 [N], nats a token.
    """
    with adapters(bundle.base.model, weights):
        return torch.cat([bundle.base.loss(part) for part in torch.split(tokens, BATCH)])


def nats(bundle: TextBundle, weights: Weights, tokens: Tensor) -> float:
    """Mean loss a token over all tokens of some documents: the logarithm of the perplexity.

    Args:
        bundle: its base model.
        weights: one adapter, or {}.
        tokens: int64 [N, L].
    """
    lengths = (tokens[:, 1:] >= 0).sum(1)  # [N]
    losses = document_losses(bundle, weights, tokens)
    return float((losses * lengths).sum() / lengths.sum())


def recovered(values: Mapping[str, float], method: str) -> float:
    """The recovered gain in log perplexity: 0 for the base, 1 for non-private LoRA.

    Args:
        values: method → nats; `base` and `lora` among them.
        method: which.
    """
    return (values["base"] - values[method]) / (values["base"] - values["lora"])


def perplexity(value: float) -> float:
    """Exp of nats a token."""
    return math.exp(value)


def control_weights(
    bundle: TextBundle, name: str, *, noise_std: float = CONTROL_NOISE_STD
) -> Weights:
    """The adapter of a control, which has seen no private document.

    Args:
        bundle: holds both means.
        name: `public_mean` or `other_task`.
        noise_std: the noise level that ρ is told.
    """
    mean = {"public_mean": bundle.public_mean, "other_task": bundle.other_task_mean}[name]
    return pick(adapter_weights(bundle, mean[None], torch.full((1,), noise_std)), 0)


def release_documents(
    bundle: TextBundle,
    tokens: Tensor,
    budget: PrivacyBudget,
    *,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Release:
    """One release by the real code path, with a ledger of its own.

    Args:
        bundle: its encoder.
        tokens: int64 [n, L], the private documents.
        budget: what is spent.
        labels: n indices into `classes`, for a labelled release.
        classes: public names of all classes, for a labelled release.
        folder: keeps `release/` and `ledger.db`; a temporary folder when None.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) if folder is None else folder
        return release(
            to_text_records(tokens, labels, classes),
            bundle=bundle,
            budget=budget,
            ledger=Ledger(place / "ledger.db"),
            out=place / "release",
            dataset=f"study {secrets.token_hex(16)}",  # a dataset has one ledger, and this is new
            classes=classes,
        )


def released_weights(bundle: TextBundle, made: Release) -> Weights:
    """The adapter of an unlabelled release."""
    return pick(adapter_weights(bundle, made.mean(), made.mean_noise_std()), 0)


def lora_weights(
    bundle: TextBundle,
    tokens: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """Non-private LoRA on the documents, at the bundle's sites: the reference, not private.

    Args:
        bundle: its base model.
        tokens: int64 [n, L].
        config: see `FinetuneConfig`.
        seed: of start and batches.
        progress: called with (steps done, steps).
    """
    family = bundle.load_base()
    sites = describe_sites(family.model, bundle.config.sites)
    return finetune_lora(family, sites, tokens, config, seed=seed, progress=progress)


def best_lora_weights(
    bundle: TextBundle,
    tokens: Tensor,
    trials: Sequence[FinetuneConfig],
    *,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """Non-private LoRA with the settings that suit these documents best: not private, as it is.

    One setting cannot serve all: what is too short for thousands of mails learns some hundred songs
    by heart. Each is tried on nine tenths of the documents, and the one with the lowest loss on the
    rest is trained on all.

    Args:
        bundle: its base model.
        tokens: int64 [n, L].
        trials: settings, at least one; the only one is not tried first.
        seed: of the division, starts and batches.
        progress: called with (steps done, steps) of each training.
    """
    if len(trials) == 1:
        return lora_weights(bundle, tokens, trials[0], seed=seed, progress=progress)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    kept, rest = tokens[order[: len(tokens) // 10]], tokens[order[len(tokens) // 10 :]]
    losses = [
        nats(bundle, lora_weights(bundle, rest, trial, seed=seed, progress=progress), kept)
        for trial in trials
    ]
    best = trials[min(range(len(trials)), key=losses.__getitem__)]
    return lora_weights(bundle, tokens, best, seed=seed, progress=progress)
