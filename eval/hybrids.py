"""The hybrid as a method of the benches: one budget for a release and for steps after it."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.eval.study import Progress, to_records
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.hybrid import fit_hybrid
from hyperdp.private.records import AnyRecord
from hyperdp.text_bundle import TextBundle


@dataclass(frozen=True, kw_only=True)
class HybridConfig(FitConfig):
    """Settings of the steps, and what they get.

    Attributes:
        fraction: f, the share of the budget that the steps get; see `split_budget`.
    """

    fraction: float

    @property
    def steps_alone(self) -> FitConfig:
        """The settings of the steps, as a learner takes them."""
        return FitConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FitConfig)})


def hybrid_once(
    bundle: Bundle,
    images: Tensor,
    config: HybridConfig,
    budget: PrivacyBudget,
    *,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Weights:
    """The adapter of one hybrid by the real code path, with a ledger of its own.

    Args:
        bundle: base model, encoder and hypernetwork.
        images: float32 [n, C, H, W], the private records.
        config: see `HybridConfig`; `size` is n, which a benchmark takes for public.
        budget: of both parts together.
        pace: see `Pace`.
        progress: called with (steps done, steps).

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r].
    """
    records = to_records(images)
    return hybrid_records(bundle, records, config, budget, pace=pace, progress=progress)


def hybrid_records(
    bundle: Bundle | TextBundle,
    records: Sequence[AnyRecord],
    config: HybridConfig,
    budget: PrivacyBudget,
    *,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Weights:
    """`hybrid_once` on records of either kind.

    Args:
        bundle: base model, encoder and hypernetwork.
        records: images or documents, the private ones.
        config: see `HybridConfig`.
        budget: of both parts together.
        pace: see `Pace`.
        progress: called with (steps done, steps).

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r].
    """

    def tell(done: int, steps: int, _: float) -> None:
        if progress is not None:
            progress(done, steps)

    with tempfile.TemporaryDirectory() as scratch:
        made = fit_hybrid(
            lambda: records,
            bundle=bundle,
            config=config.steps_alone,
            fraction=config.fraction,
            budget=budget,
            ledger=Ledger(Path(scratch) / "ledger.db"),
            out=Path(scratch) / "out",
            dataset=f"study {secrets.token_hex(16)}",  # a dataset has one ledger, and this is new
            allow_weak_delta=True,
            pace=pace,
            progress=tell,
        )
    return made.fit.weights
