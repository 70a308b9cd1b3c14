"""How much of a budget steps should get after a release, found on public tasks alone.

Every candidate is run by the real code path, with a ledger of its own, on records of public tasks
that stand in for private ones; what is judged is the base model's held-out loss. A measurement is
written down as soon as it is done, so a run that was killed loses one at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError
from hyperdp.eval import study, text_study
from hyperdp.eval.hybrids import HybridConfig, hybrid_records
from hyperdp.eval.notebook import Notebook
from hyperdp.hybrid_table import HybridCell
from hyperdp.lora import Weights, pick
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import Pace
from hyperdp.private.records import AnyRecord
from hyperdp.text_bundle import TextBundle

Progress = Callable[[int, int], None]
ONE_SHOT = "one-shot"
LEAST_GAIN = 0.02  # share of the base's loss that LoRA must win for a task to say anything


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """Settings of the steps, as `FitConfig` has them; one candidate."""

    steps: int
    expected_batch: int
    clip_norm: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that is measured on a task.

    Attributes:
        method: `base`, `lora` (non-private, on the largest size), `one-shot`, `prism` or `dpsgd`.
        size, epsilon: of the last three.
        fraction, setting: of the last two.
    """

    method: str
    size: int = 0
    epsilon: float = 0.0
    fraction: float = 0.0
    setting: StepSetting | None = None


@dataclass(frozen=True, kw_only=True)
class HybridSearch:
    """What is tried.

    Attributes:
        sizes: numbers of units, public.
        epsilons: budgets. delta: of all of them.
        fractions: f above 0; one release alone is always measured beside them.
        settings: method → candidates. A batch larger than a size is cut to it.
        finetune: of non-private LoRA on the largest size, the mark that gains are measured against.
        queries: held-out records of each task.
    """

    sizes: tuple[int, ...]
    epsilons: tuple[float, ...]
    delta: float
    fractions: tuple[float, ...]
    settings: dict[str, tuple[StepSetting, ...]]
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    queries: int = 256

    def __post_init__(self) -> None:
        legal = {
            "sizes >= 1": bool(self.sizes) and min(self.sizes) >= 1,
            "at least one epsilon": bool(self.epsilons),
            "fractions with 0 < f < 1": bool(self.fractions)
            and all(0 < f < 1 for f in self.fractions),
            "settings of prism or dpsgd": bool(self.settings)
            and set(self.settings) <= {"prism", "dpsgd"}
            and all(self.settings.values()),
            "queries >= 1": self.queries >= 1,
        }
        if broken := [rule for rule, kept in legal.items() if not kept]:
            raise UsageError(expected=", ".join(broken), found=str(self), todo="Mend the recipe.")

    @property
    def records(self) -> int:
        """Records of a task: those that stand in for private ones, and the held-out ones."""
        return max(self.sizes) + self.queries

    def trials(self) -> Iterator[Trial]:
        """Everything that is measured on a task, what the rest is compared with first."""
        yield Trial(method="base")
        yield Trial(method="lora")
        for n, epsilon in product(self.sizes, self.epsilons):
            yield Trial(method=ONE_SHOT, size=n, epsilon=epsilon)
            for method, settings in self.settings.items():
                for fraction, setting in product(self.fractions, settings):
                    yield Trial(
                        method=method, size=n, epsilon=epsilon, fraction=fraction, setting=setting
                    )


def read_search(values: dict[str, Any]) -> HybridSearch:
    """A search from what a recipe's TOML holds.

    Raises:
        UsageError: keys or values that do not fit.
    """
    try:
        lists = {k: tuple(values[k]) for k in ("sizes", "epsilons", "fractions")}
        settings = {
            method: tuple(StepSetting(**setting) for setting in found)
            for method, found in values["settings"].items()
        }
        finetune = FinetuneConfig(**values.get("finetune", {}))
        rest = {**values, **lists, "settings": settings, "finetune": finetune}
        return HybridSearch(**rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            expected="sizes, epsilons, delta, fractions and settings of a search",
            found=repr(error),
            todo="Correct the recipe.",
        ) from error


def search_hybrid(
    bundle: Bundle | TextBundle,
    tasks: Mapping[str, Callable[[], Tensor]],
    search: HybridSearch,
    notes: Path,
    *,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> list[HybridCell]:
    """Measures every candidate that is not noted yet, and picks the best of each cell.

    Args:
        bundle: whose table it is.
        tasks: name → what gives its public records, float32 [search.records, C, H, W] or tokens
            int64 [search.records, L], the same every time.
        search: see `HybridSearch`.
        notes: JSONL that grows by a line a measurement; begun anew for another bundle or search.
        pace: see `Pace`.
        progress: called with (measurements done, measurements in all).

    Returns:
        A cell for each method, size and ε.

    Raises:
        UsageError: no task that LoRA gains anything on.
    """
    book = Notebook(notes, {"bundle": bundle.hash, "search": dataclasses.asdict(search)})
    measured: list[dict[Trial, float]] = []
    trials = list(search.trials())
    done = 0
    for seed, (name, draw) in enumerate(tasks.items()):
        drawn = draw()
        pool, queries = drawn[: max(search.sizes)], drawn[max(search.sizes) :]
        losses = {}
        for trial in trials:

            def measure(trial: Trial = trial, pool: Tensor = pool, seed: int = seed) -> float:
                weights = _weights(trial, bundle, pool, search, seed=seed, pace=pace)
                return _loss(bundle, weights, queries)  # noqa: B023  # called at once

            losses[trial] = book.loss({"task": name, **dataclasses.asdict(trial)}, measure)
            done += 1
            if progress is not None:
                progress(done, len(tasks) * len(trials))
        measured.append(losses)
    return choose(measured, search)


def choose(measured: Sequence[Mapping[Trial, float]], search: HybridSearch) -> list[HybridCell]:
    """The best candidate of each cell; f = 0 where none is better than one release alone.

    Args:
        measured: of each task, the held-out loss of every trial.
        search: see `HybridSearch`.

    Raises:
        UsageError: no task that LoRA gains anything on.
    """
    base, lora = Trial(method="base"), Trial(method="lora")
    kept = [m for m in measured if m[base] - m[lora] > LEAST_GAIN * abs(m[base])]
    if not kept:
        raise UsageError(
            expected="a public task that non-private LoRA gains something on",
            found=f"none of {len(measured)}",
            todo="Train LoRA longer (finetune in the recipe), or take more tasks.",
        )

    def gain(trial: Trial) -> float:
        return fmean((m[base] - m[trial]) / (m[base] - m[lora]) for m in kept)

    cells = []
    for method, n, epsilon in product(search.settings, search.sizes, search.epsilons):
        one_shot = gain(Trial(method=ONE_SHOT, size=n, epsilon=epsilon))
        own = [t for t in search.trials() if (t.method, t.size, t.epsilon) == (method, n, epsilon)]
        best = max(own, key=gain)
        assert best.setting is not None  # noqa: S101
        values = dataclasses.asdict(best.setting)
        values["expected_batch"] = min(best.setting.expected_batch, n)
        better = gain(best) > one_shot
        cells.append(
            HybridCell(
                method=method,
                size=n,
                epsilon=epsilon,
                fraction=best.fraction if better else 0.0,
                gain=gain(best) if better else one_shot,
                one_shot=one_shot,
                tasks=len(kept),
                **values,
            )
        )
    return cells


def _loss(bundle: Bundle | TextBundle, weights: Weights, queries: Tensor) -> float:
    """Held-out loss of an adapter: of images the base's own, of documents nats a token."""
    if isinstance(bundle, TextBundle):
        return text_study.nats(bundle, weights, queries)
    return study.held_out_loss(bundle, weights, queries)


def _weights(
    trial: Trial,
    bundle: Bundle | TextBundle,
    pool: Tensor,
    search: HybridSearch,
    *,
    seed: int,
    pace: Pace | None,
) -> Weights:
    """The adapter of one trial; {} for the base."""
    if trial.method == "base":
        return {}
    if trial.method == "lora":
        if isinstance(bundle, TextBundle):
            return text_study.lora_weights(bundle, pool, search.finetune, seed=seed)
        return study.lora_weights(bundle, pool, search.finetune, seed=seed)
    own = pool[: trial.size]
    budget = PrivacyBudget(epsilon=trial.epsilon, delta=search.delta)
    if trial.setting is not None:
        return _refined(bundle, own, budget, trial.method, trial.fraction, trial.setting, pace)
    if isinstance(bundle, TextBundle):
        return text_study.released_weights(
            bundle, text_study.release_documents(bundle, own, budget)
        )
    return pick(study.released_weights(bundle, study.release_once(bundle, own, budget)), 0)


def _refined(
    bundle: Bundle | TextBundle,
    own: Tensor,
    budget: PrivacyBudget,
    method: str,
    fraction: float,
    setting: StepSetting,
    pace: Pace | None,
) -> Weights:
    """The adapter of one hybrid by the real code path, with a ledger of its own."""
    config = HybridConfig(
        method=method,
        size=len(own),
        expected_batch=min(setting.expected_batch, len(own)),
        steps=setting.steps,
        clip_norm=setting.clip_norm,
        lr=setting.lr,
        fraction=fraction,
    )
    texts = isinstance(bundle, TextBundle)
    records: Sequence[AnyRecord] = (
        text_study.to_text_records(own) if texts else study.to_records(own)
    )
    return hybrid_records(bundle, records, config, budget, pace=pace)
