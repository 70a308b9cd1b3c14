"""Rivals on one private set, each by the real code path; and full fine-tuning, the reference."""

from __future__ import annotations

import copy
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.eval.study import Progress, to_records
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights
from hyperdp.private.evolution import evolve
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.finetune import FinetuneConfig, finetune_all
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.fit import fit
from hyperdp.private.records import AnyRecord
from hyperdp.text_bundle import TextBundle


def fit_once(
    bundle: Bundle,
    images: Tensor,
    config: FitConfig,
    budget: PrivacyBudget,
    *,
    progress: Progress | None = None,
) -> Weights:
    """One step-trained adapter by the real code path, with a ledger of its own.

    Args:
        bundle: base model and hypernetwork.
        images: float32 [n, C, H, W], the private records.
        config: method and settings; `size` is n, which a benchmark takes for public.
        budget: what is spent.
        progress: called with (steps done, steps).

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r].
    """
    return fit_records(bundle, to_records(images), config, budget, progress=progress)


def fit_records(
    bundle: Bundle | TextBundle,
    records: Sequence[AnyRecord],
    config: FitConfig,
    budget: PrivacyBudget,
    *,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Weights:
    """`fit_once` on records of either kind.

    Args:
        bundle: base model and hypernetwork.
        records: images or documents, the private ones.
        config: method and settings, `size` among them.
        budget: what is spent.
        pace: see `Pace`.
        progress: called with (steps done, steps).

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r].
    """

    def tell(done: int, steps: int, _: float) -> None:
        if progress is not None:
            progress(done, steps)

    with tempfile.TemporaryDirectory() as scratch:
        return fit(
            records,
            bundle=bundle,
            config=config,
            budget=budget,
            ledger=Ledger(Path(scratch) / "ledger.db"),
            out=Path(scratch) / "adapter",
            dataset=f"study {secrets.token_hex(16)}",  # a dataset has one ledger, and this is new
            pace=pace,
            progress=tell,
        ).weights


def evolve_once(
    bundle: Bundle,
    images: Tensor,
    config: EvolutionConfig,
    budget: PrivacyBudget,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """One run of Private Evolution by the real code path, with a ledger of its own.

    Args:
        bundle: encoder and base model.
        images: float32 [n, C, H, W], the private records.
        config: see `EvolutionConfig`.
        budget: what is spent.
        progress: called with (iterations done, iterations).

    Returns:
        float32 [count, C, H, W] in [-1, 1].
    """
    with tempfile.TemporaryDirectory() as scratch:
        return evolve(
            to_records(images),
            bundle=bundle,
            config=config,
            budget=budget,
            ledger=Ledger(Path(scratch) / "ledger.db"),
            out=Path(scratch) / "images",
            dataset=f"study {secrets.token_hex(16)}",
            progress=progress,
        ).images


def fully_tuned(
    bundle: Bundle,
    images: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Bundle:
    """The bundle with a base model all of whose weights were fine-tuned: a reference, not private.

    Args:
        bundle: where the base model comes from; it stays as it is.
        images: float32 [n, C, H, W], the private records.
        config: see `finetune_all`.
        seed: of batches, times and noise.
        progress: called with (steps done, steps).
    """
    family, tuned = bundle.load_base(), copy.copy(bundle)
    family.prepare_training()
    tuned.__dict__["base"] = finetune_all(family, images, config, seed=seed, progress=progress)
    return tuned
