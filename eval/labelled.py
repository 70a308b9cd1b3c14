"""The labelled benchmark: what a classifier is worth on real images, by what it was trained on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import DataError
from hyperdp.eval.cells import Cell, OnCell, Only, measure_cells, row_key
from hyperdp.eval.class_learners import class_config, class_fits
from hyperdp.eval.digit_classifier import train_classifier
from hyperdp.eval.earlier import base_name, caption, measured_base
from hyperdp.eval.labelled_dpsgd import PrivateClassifiers
from hyperdp.eval.labelled_recipe import (
    AND_PUBLIC,
    DPSGD_LORA,
    REWEIGHTED,
    SYNTHETIC,
    LabelledConfig,
    is_synthetic,
    labelled_cells,
)
from hyperdp.eval.metrics.by_class import accuracy_by_class
from hyperdp.eval.private_sets import PrivateSet
from hyperdp.eval.results import Row, read_rows
from hyperdp.eval.row_settings import fits, json_digest, labelled_settings
from hyperdp.eval.study import Progress, draw_images, release_once, released_weights
from hyperdp.eval.world import load_set
from hyperdp.lora import Weights, pick
from hyperdp.private.classifier.training import Speed
from hyperdp.private.reweight import ReweightConfig, adapt_on_public

CLASSIFIER_BATCH = 50  # of `train_classifier`


class LabelledSet:
    """One labelled private set, with what is computed once for it."""

    def __init__(self, config: LabelledConfig, name: str, speed: Speed) -> None:
        self.config, self.speed = config, speed
        self.data: PrivateSet = load_set(name)
        if self.data.pool_labels is None or self.data.reference_labels is None:
            raise DataError(
                expected="a private set with labels",
                found=f"{name}, which has none",
                todo="Leave it out of the labelled recipe.",
            )
        self._kept: dict[tuple[str, int | None, float | None, int], tuple[Tensor, Tensor]] = {}
        self.classes = [str(c) for c in range(int(self.data.pool_labels.max()) + 1)]

    @cached_property
    def bundle(self) -> Bundle:
        """Of the methods of adapters, where they are to compute."""
        return load_bundle(self.config.bundle).to(self.speed.device)

    @cached_property
    def public(self) -> tuple[Tensor, Tensor]:
        """The public labelled images, float32 [N, C, H, W], and their labels."""
        data = load_set(self.config.public)
        if data.pool_labels is None:
            raise DataError(
                expected="labelled public images, as `hyperdp pretrain digits` writes them",
                found=f"{self.config.public} without labels",
                todo="Run `hyperdp pretrain digits -o FILE`.",
            )
        return data.pool, data.pool_labels

    def accuracy(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Accuracy on the real images held out: of all, of the worst class, and of each class."""
        labels = self.data.reference_labels
        assert labels is not None  # noqa: S101
        found = predict(self.data.reference)
        told, truth = ([self.classes[int(c)] for c in part] for part in (found, labels))
        by_class = accuracy_by_class(told, truth)
        return {
            "accuracy": float((found == labels).float().mean()),
            "worst_class_accuracy": min(by_class.values()),
            **{f"accuracy_{name}": value for name, value in by_class.items()},
        }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, float]:
        """The figures of one cell."""
        if cell.method == "public_only":
            return self._classifier_of(*self.public, cell.seed)
        images, labels = self.data.records(cell.n or 0, seed=cell.seed)
        assert labels is not None  # noqa: S101
        if cell.method == "nonprivate":
            return self._classifier_of(images, labels, cell.seed)
        assert cell.epsilon is not None  # noqa: S101
        budget = PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)
        if is_synthetic(cell.method):
            drawn = self._drawn(cell, images, labels, budget, progress)
            if cell.method.endswith(AND_PUBLIC):
                drawn = beside(drawn, self.public)
            return self._classifier_of(*drawn, cell.seed)
        fitted = self._private_classifiers.fit(cell, images, labels, budget, progress)
        return self.accuracy(fitted.predict)

    def _drawn(
        self, cell: Cell, images: Tensor, labels: Tensor, budget: PrivacyBudget, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """What the adapters of a cell draw; kept where another method reads the same release."""
        method = cell.method.removesuffix(AND_PUBLIC)
        key = (method, cell.n, cell.epsilon, cell.seed)
        if key in self._kept:
            return self._kept[key]
        adapters = self._adapters(method, images, labels, budget, progress)
        drawn = self._draw(adapters, cell.seed, progress)
        if method in REWEIGHTED:
            self._kept[key] = drawn
        return drawn

    def _classifier_of(self, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        # The same number of steps whatever the number of images: nothing is stopped by looking.
        epochs = -(-self.config.classifier_steps // max(1, len(images) // CLASSIFIER_BATCH))
        device = torch.device(self.speed.device)
        model = train_classifier(images, labels, epochs=epochs, seed=seed, device=device)
        return self.accuracy(model.predict)

    def _adapters(
        self, method: str, images: Tensor, labels: Tensor, budget: PrivacyBudget, progress: Progress
    ) -> list[Weights]:
        """An adapter for each class, all of them together for one budget."""
        count = len(self.classes)
        if method.partition("/")[0] == DPSGD_LORA:
            settings = self.config.lora_values(method, n=len(images), epsilon=budget.epsilon)
            return class_fits(
                self.bundle,
                images,
                labels,
                classes=count,
                config=class_config(settings, n=len(images), classes=count),
                budget=budget,
                progress=progress,
            )
        made = release_once(self.bundle, images, budget, labels=labels, classes=self.classes)
        if method in REWEIGHTED:
            public, labels = self.public
            weights = adapt_on_public(
                self.bundle,
                made.mean(),
                made.mean_noise_std(),
                public,
                classes=labels if method == "reweighted_by_class" else None,
                progress=progress,
            )
        else:
            weights = released_weights(self.bundle, made)
        return [pick(weights, c) for c in range(count)]

    def _draw(
        self, adapters: list[Weights], seed: int, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Images of each class's adapter, and the class they were made for."""
        count, classes = self.config.images_per_class, len(adapters)
        sampling = dataclasses.replace(self.config.sampling, count=count)
        drawn = []
        for c, weights in enumerate(adapters):
            # Seeds apart, so that no class begins with another's starting noise.
            drawn.append(draw_images(self.bundle, weights, sampling, seed=seed * classes + c))
            progress(c + 1, classes)
        return torch.cat(drawn), torch.arange(classes).repeat_interleave(count)

    @cached_property
    def _private_classifiers(self) -> PrivateClassifiers:
        return PrivateClassifiers(self.config, self.classes, lambda: self.public, self.speed)


def beside(drawn: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Drawn images with public ones, each kind about half of all.

    Args:
        drawn: float32 [M, C, H, W] and int64 [M].
        public: float32 [N, C, H, W] and int64 [N].

    Returns:
        The smaller one repeated a whole number of times, and the larger one.
    """
    fewer, more = sorted((drawn, public), key=lambda pair: len(pair[1]))
    times = round(len(more[1]) / max(1, len(fewer[1])))
    return torch.cat([fewer[0]] * times + [more[0]]), torch.cat([fewer[1]] * times + [more[1]])


def cell_base(config: LabelledConfig, cell: Cell, named: Callable[[], str]) -> str:
    """What a row's `base` says: the bundle, or the settings that a classifier was trained with.

    Rows of other settings are other rows, so a recipe that was changed measures its cells anew.

    Args:
        config: the recipe.
        cell: of it.
        named: the bundle as rows spell it; called where the cell's method has one.
    """
    bundle = named() if is_synthetic(cell.method) else ""
    if cell.method == "hyper":  # its settings stand beside it, see `labelled_settings`
        return bundle
    values: dict[str, object] = {"steps": config.classifier_steps}
    n, epsilon = cell.n or 1, cell.epsilon or 0.0
    if is_synthetic(cell.method):
        if cell.method in REWEIGHTED:
            values |= {"reweight": dataclasses.asdict(ReweightConfig())}
        else:
            values |= {"lora": config.lora_values(cell.method, n=n, epsilon=epsilon)}
        values |= {"images": config.images_per_class}
        values |= {"sampling": dataclasses.asdict(config.sampling)}
        return f"{bundle}-{json_digest(values)}"
    if cell.method.startswith("dpsgd"):
        made = config.classifier(cell.method, n=n, epsilon=epsilon,
                                 image_shape=(1, 28, 28), classes=10)  # fmt: skip
        values = dataclasses.asdict(made)
    return f"{'wrn' if cell.method.startswith('dpsgd') else 'cnn'}-{json_digest(values)}"


def run_labelled(
    config: LabelledConfig,
    out: Path,
    *,
    only: Only | None = None,
    speed: Speed | None = None,
    on_cell: OnCell | None = None,
    measure: bool = True,
) -> list[Row]:
    """Makes every cell that the results file does not hold yet.

    Args:
        config: the recipe.
        out: JSONL; a run that was killed goes on after its last whole cell.
        only: which cells; all when None.
        speed: where networks compute, and how much of the `dpsgd` methods is held at once.
        on_cell: see `OnCell`.
        measure: False takes the rows there are; where none are of the bundle as it is now, those
            of the one before, see `labelled_caption`.

    Returns:
        The rows of this recipe's cells, old and new, in the order of the cells.

    Raises:
        UsageError: `only` asks for what the recipe does not have.
    """
    chosen = only if only is not None else Only()
    chosen.check(n=config.n, epsilon=config.epsilon, seeds=config.seeds)
    worlds: dict[str, LabelledSet] = {}

    def world(name: str) -> LabelledSet:
        if name not in worlds:
            worlds.clear()  # one set in memory at a time
            worlds[name] = LabelledSet(config, name, speed or Speed())
        return worlds[name]

    # A table alone needs no set to lie here: a cell that a set is too small for has no rows.
    sizes = {n: len(world(n).data.pool) if measure else max(config.n) for n in config.private_sets}
    known = read_rows(out)

    @functools.cache
    def named() -> str:
        return _present(config) if measure else measured_bundle(config, known)

    wanted = list(labelled_cells(config, sizes))
    if measure:
        measure_cells(
            filter(chosen.keeps, wanted), out, bench=config.bench, delta=config.delta,
            base=lambda cell: cell_base(config, cell, named),
            figures=lambda cell, progress: world(cell.private_set).measure(cell, progress),
            on_cell=on_cell, device=torch.device((speed or Speed()).device),
            settings=lambda cell: labelled_settings(config, cell),
        )  # fmt: skip
        known = read_rows(out)
    rows: list[Row] = []
    for cell in wanted:
        key = (config.bench, cell_base(config, cell, named), *dataclasses.astuple(cell))
        mine = (row for row in known if row_key(row) == key)
        rows += [row for row in mine if fits(row, labelled_settings(config, cell))]
    return rows


def measured_bundle(config: LabelledConfig, rows: list[Row]) -> str:
    """The bundle that a table of these rows is of, see `measured_base`."""
    return measured_base(rows, config.bench, _present(config))


def labelled_caption(config: LabelledConfig, out: Path) -> str:
    """What has to stand above the table of rows that there are, see `caption`."""
    methods = set(SYNTHETIC) & set(config.methods)
    return caption(measured_bundle(config, read_rows(out)), _present(config)) if methods else ""


def _present(config: LabelledConfig) -> str:
    return base_name(load_bundle(config.bundle))
