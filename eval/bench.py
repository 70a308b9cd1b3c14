"""The benchmark: method × private set × n × ε × seed, resumable cell by cell."""

from __future__ import annotations

import dataclasses
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.digit_classifier import DigitClassifier, train_classifier
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.metrics.fid import fid, kid
from hyperdp.eval.private_sets import PrivateSet, load_private_set
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.study import (
    CONTROLS,
    SamplingConfig,
    control_weights,
    draw_images,
    lora_weights,
    release_once,
    released_weights,
)
from hyperdp.lora import Weights, pick
from hyperdp.private.finetune import FinetuneConfig

RECIPES = Path(__file__).parent / "recipes"
METHODS = ("floor", "base", "lora", *CONTROLS, "hyper")
NEEDS_RELEASE = ("hyper",)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A benchmark recipe.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder.
        private_sets: see `hyperdp.eval.private_sets`.
        n: numbers of private records. epsilon: budgets. delta: of every budget.
        seeds: of draws of records, starting noise and training; the noise of a release has none.
        methods: out of `METHODS`; `floor` is the private records themselves.
        labelled: one adapter for each class, measured by how many of its images a classifier of the
            reference set reads as that class.
        sampling, finetune: the same for every cell.
    """

    bench: str
    bundle: str
    private_sets: list[str]
    n: list[int]
    epsilon: list[float]
    delta: float
    seeds: list[int]
    methods: list[str]
    labelled: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the table; n and ε are None where the method does not depend on them."""

    private_set: str
    method: str
    n: int | None
    epsilon: float | None
    seed: int


def cells(config: BenchConfig) -> Iterator[Cell]:
    """Every cell of a recipe, the references of a set before what is compared with them.

    Raises:
        UsageError: an unknown method.
    """
    if unknown := sorted(set(config.methods) - set(METHODS)):
        raise UsageError(
            expected=f"methods out of {', '.join(METHODS)}",
            found=", ".join(unknown),
            todo="Correct the recipe.",
        )
    for name in config.private_sets:
        for method in METHODS:
            if method in config.methods and method not in NEEDS_RELEASE:
                yield Cell(
                    private_set=name, method=method, n=None, epsilon=None, seed=config.seeds[0]
                )
        for method in METHODS:
            if method in config.methods and method in NEEDS_RELEASE:
                for n in config.n:
                    for epsilon in config.epsilon:
                        for seed in config.seeds:
                            yield Cell(
                                private_set=name, method=method, n=n, epsilon=epsilon, seed=seed
                            )


class World:
    """One private set with the bundle and what is computed once for it."""

    def __init__(self, config: BenchConfig, name: str, bundle: Bundle) -> None:
        self.config, self.bundle = config, bundle
        self.data: PrivateSet = load_private_set(name)
        self.extractor = EfficientNetLite0()

    @cached_property
    def reference(self) -> Features:
        """Features of the reference half."""
        return extract(self.extractor, self.data.reference)

    def weights(self, cell: Cell, progress: Callable[[int, int], None]) -> Weights:
        """The adapter of a cell; {} for the base model."""
        if cell.method == "base":
            return {}
        if cell.method in CONTROLS:
            return control_weights(self.bundle, cell.method)
        if cell.method == "lora":
            images, _ = self.data.records(max(self.config.n), seed=cell.seed)
            return lora_weights(
                self.bundle, images, self.config.finetune, seed=cell.seed, progress=progress
            )
        assert cell.n is not None and cell.epsilon is not None  # noqa: S101
        images, _ = self.data.records(cell.n, seed=cell.seed)
        budget = PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)
        return pick(released_weights(self.bundle, release_once(self.bundle, images, budget)), 0)

    def images(self, cell: Cell, progress: Callable[[int, int], None]) -> Tensor:
        """What is measured: generated images, or for the floor real ones."""
        if cell.method == "floor":
            return self.data.pool[: self.config.sampling.count]
        weights = self.weights(cell, progress)
        return draw_images(
            self.bundle, weights, self.config.sampling, seed=cell.seed, progress=progress
        )

    def measure(self, cell: Cell, progress: Callable[[int, int], None]) -> dict[str, float]:
        """The figures of one cell: `fid` and `kid`, or for a labelled bench `accuracy`."""
        features = extract(self.extractor, self.images(cell, progress))
        return {
            "fid": fid(features, self.reference).value,
            "kid": kid(features, self.reference).value,
        }


class LabelledWorld(World):
    """The labelled bench: how many images of each class's adapter are read as that class."""

    @cached_property
    def classifier(self) -> DigitClassifier:
        """Trained on the reference half, which shares no record with the pool."""
        assert self.data.reference_labels is not None  # noqa: S101
        return train_classifier(self.data.reference, self.data.reference_labels)

    def measure(self, cell: Cell, progress: Callable[[int, int], None]) -> dict[str, float]:
        """`accuracy` over all classes, and `accuracy_CLASS` for each."""
        labels = self.data.pool_labels
        assert labels is not None  # noqa: S101
        names = [str(c) for c in range(int(labels.max()) + 1)]
        adapters = self._class_weights(cell, names, progress)
        figures = {}
        for index, name in enumerate(names):
            images = draw_images(
                self.bundle,
                adapters[index],
                self.config.sampling,
                seed=cell.seed * 1000 + index,
                progress=progress,
            )
            figures[f"accuracy_{name}"] = self.classifier.share_read_as(images, index)
        return {"accuracy": sum(figures.values()) / len(figures), **figures}

    def _class_weights(
        self, cell: Cell, names: list[str], progress: Callable[[int, int], None]
    ) -> list[Weights]:
        if cell.method == "base":
            return [{} for _ in names]
        if cell.method in CONTROLS:
            return [control_weights(self.bundle, cell.method) for _ in names]
        images, labels = self.data.records(cell.n or max(self.config.n), seed=cell.seed)
        assert labels is not None  # noqa: S101
        if cell.method == "lora":
            finetune = self.config.finetune
            return [
                lora_weights(
                    self.bundle, images[labels == c], finetune, seed=cell.seed, progress=progress
                )
                for c in range(len(names))
            ]
        assert cell.epsilon is not None  # noqa: S101
        budget = PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)
        made = release_once(self.bundle, images, budget, labels=labels, classes=names)
        weights = released_weights(self.bundle, made)
        return [pick(weights, c) for c in range(len(names))]


def run_bench(
    config: BenchConfig,
    out: Path,
    *,
    on_cell: Callable[[Cell, int, int], Callable[[int, int], None]] | None = None,
) -> list[Row]:
    """Makes every cell that the results file does not hold yet.

    Args:
        config: the recipe.
        out: JSONL; a run that was killed goes on after its last whole cell.
        on_cell: called with (cell, number, cells in all); returns the cell's own progress callback.

    Returns:
        All rows of the bench, old and new, with the recovered gain of each cell.
    """
    bundle = load_bundle(config.bundle)
    base = f"{bundle.name}-{bundle.hash[:8]}"
    rows = [row for row in read_rows(out) if row.bench == config.bench and row.base == base]
    done = {(r.private_set, r.method, r.n, r.epsilon, r.seed) for r in rows}
    world: World | None = None
    todo = list(cells(config))
    for number, cell in enumerate(todo):
        key = (cell.private_set, cell.method, cell.n, cell.epsilon, cell.seed)
        if key in done:
            continue
        if world is None or world.data.name != cell.private_set:
            kind = LabelledWorld if config.labelled else World
            world = kind(config, cell.private_set, bundle)
        progress = on_cell(cell, number, len(todo)) if on_cell is not None else _silent
        began = time.monotonic()
        figures = world.measure(cell, progress)
        figures |= _gain(figures, cell, rows)
        new = [
            Row(
                bench=config.bench,
                base=base,
                private_set=cell.private_set,
                method=cell.method,
                n=cell.n,
                epsilon=cell.epsilon,
                delta=None if cell.epsilon is None else config.delta,
                seed=cell.seed,
                metric=metric,
                value=value,
                seconds=round(time.monotonic() - began, 1),
                peak_rss_mb=peak_rss_mb(),
                **provenance(),
            )
            for metric, value in figures.items()
        ]
        append_rows(out, new)
        rows += new
    return rows


def _gain(figures: dict[str, float], cell: Cell, rows: list[Row]) -> dict[str, float]:
    """The recovered gain, once base and non-private LoRA of the set are measured."""
    if "fid" not in figures or cell.method in {"floor", "base", "lora"}:
        return {}
    known = {
        r.method: r.value
        for r in rows
        if r.private_set == cell.private_set and r.metric == "fid" and r.method in {"base", "lora"}
    }
    if len(known) < 2 or known["base"] <= known["lora"]:
        return {}
    return {"recovered_gain": (known["base"] - figures["fid"]) / (known["base"] - known["lora"])}


def _silent(done: int, total: int) -> None:
    """No progress."""


def read_bench_recipe(name_or_path: str, only: list[str] | None = None) -> BenchConfig:
    """Reads a bench recipe.

    Args:
        name_or_path: a TOML file, or the name of a shipped recipe.
        only: keep these private sets.

    Raises:
        UsageError: no such recipe, bad TOML, or keys that do not fit.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        raise UsageError(
            expected="a recipe: a TOML file or a shipped name",
            found=repr(name_or_path),
            todo=f"Shipped recipes: {', '.join(sorted(p.stem for p in RECIPES.glob('*.toml')))}.",
        )
    try:
        values = tomllib.loads(path.read_text())
        config = BenchConfig(
            **{
                **values,
                "sampling": SamplingConfig(**values.get("sampling", {})),
                "finetune": FinetuneConfig(**values.get("finetune", {})),
            }
        )
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UsageError(
            expected=f"a bench recipe in {path}", found=str(error), todo="Correct the file."
        ) from error
    if only:
        config = dataclasses.replace(config, private_sets=only)
    return config
