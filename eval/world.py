"""One private set with the bundle: what a method makes of it, and the figures of that."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import BenchConfig, at_size
from hyperdp.eval.cells import Cell
from hyperdp.eval.digit_classifier import DigitClassifier, train_classifier
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.hybrids import hybrid_once
from hyperdp.eval.kept_pictures import COLUMNS, Keep
from hyperdp.eval.measure import read_reference
from hyperdp.eval.methods import HYBRIDS, LEARNERS, METHODS
from hyperdp.eval.metrics.fid import fid, kid
from hyperdp.eval.nearest import nearest_weights
from hyperdp.eval.private_sets import PrivateSet, load_private_set
from hyperdp.eval.rivals import evolve_once, fit_once, fully_tuned
from hyperdp.eval.study import (
    CONTROLS,
    Progress,
    class_lora_weights,
    control_weights,
    draw_images,
    held_out_loss,
    lora_weights,
    release_once,
    released_weights,
)
from hyperdp.eval.tuning import Tuning
from hyperdp.library import Library
from hyperdp.lora import Weights, pick
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.inversion import InversionBundle, conditioned
from hyperdp.private.readers.hints import without_options
from hyperdp.private.release import Release
from hyperdp.private.reweight import adapt_on_public


def load_set(name: str) -> PrivateSet:
    """A private set by name, or a public task by the path of the .npz that `pretrain` wrote."""
    if not name.endswith(".npz"):
        return load_private_set(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            expected="a public task that `hyperdp pretrain tasks` wrote",
            found=f"no file {path}",
            todo="Run `hyperdp pretrain tasks -o FOLDER` first.",
        )
    with np.load(path, allow_pickle=False) as file:
        pool, reference = (torch.from_numpy(file[key]) for key in ("pool", "reference"))
        labels = {key: torch.from_numpy(file[key]) for key in file.files if key.endswith("_labels")}
    return PrivateSet(
        name=name,
        about=f"Public validation task {path.stem}.",
        pool=pool.float() / 127.5 - 1,
        pool_labels=labels.get("pool_labels"),
        reference=reference.float() / 127.5 - 1,
        reference_labels=labels.get("reference_labels"),
    )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method made of its records.

    Attributes:
        bundle: whose base model it draws with.
        weights: one adapter in it; {} for the base as it is.
        condition: float32 [d] for its embedding of the time, or None.
        images: float32 [N, C, H, W] where the result is images; then there is no loss.
    """

    bundle: Bundle
    weights: Weights = field(default_factory=dict)
    condition: Tensor | None = None
    images: Tensor | None = None


class World:
    """One private set with the bundle and what is computed once for it.

    Attributes:
        keep: called with each cell and its images.
    """

    keep: Keep | None = None

    def __init__(
        self, config: BenchConfig, name: str, bundle: Bundle, tuning: Tuning | None = None
    ) -> None:
        self.config, self.bundle, self.tuning = config, bundle, tuning
        self.data = load_set(name)
        self._releases: dict[tuple[int | None, float | None, int], Release] = {}

    @cached_property
    def extractor(self) -> EfficientNetLite0:
        """What FID and KID compare; not loaded where only losses are measured."""
        return EfficientNetLite0(self.bundle.device)

    @cached_property
    def reference(self) -> Features:
        """Features of the reference half."""
        return extract(self.extractor, self.data.reference)

    @cached_property
    def public(self) -> Tensor:
        """The public records of `reweighted` and `shared`, float32 [N, C, H, W]."""
        with without_options("the recipe's `public`"):
            return read_reference(self.config.public, self.bundle.config.image_shape)[0]

    def settings(self, cell: Cell) -> Any:
        """A cell's settings: its variant's, or those that tuning found best, or the recipe's."""
        if self.tuning is not None and "/" not in cell.method:
            best = self.tuning.settings(cell.method, cell.n, cell.epsilon)
            if best is not None:
                return best[1]
        return self.config.settings(cell.method)

    def make(self, cell: Cell, progress: Progress) -> Made:
        """What the method of a cell makes of its records."""
        method, bundle = cell.method.partition("/")[0], self.bundle
        if method == "floor":
            return Made(bundle=bundle, images=self.data.pool[: self.config.sampling.count])
        if method == "base":
            return Made(bundle=bundle)
        if method in CONTROLS:
            return Made(bundle=bundle, weights=control_weights(bundle, method))
        images, _ = self.data.records(cell.n or max(self.config.n), seed=cell.seed)
        if METHODS[method].needs == "budget":
            return self._make_private(cell, images, progress)
        settings = self.settings(cell)
        if method == "full":
            tuned = fully_tuned(bundle, images, settings, seed=cell.seed, progress=progress)
            return Made(bundle=tuned)
        images = self.public if method == "shared" else images
        weights = lora_weights(bundle, images, settings, seed=cell.seed, progress=progress)
        return Made(bundle=bundle, weights=weights)

    def _make_private(self, cell: Cell, images: Tensor, progress: Progress) -> Made:
        """What a method makes of records under a budget, through a ledger of its own."""
        method, bundle = cell.method.partition("/")[0], self.bundle
        budget, settings = self._budget(cell), self.settings(cell)
        if method == "dpagg":
            inverse = InversionBundle.of(bundle, settings)
            return Made(bundle=bundle, condition=release_once(inverse, images, budget).mean()[0])
        if method == "evolution":
            drawn = evolve_once(
                bundle, images, self._evolution(settings, cell), budget, progress=progress
            )
            return Made(bundle=bundle, images=drawn)
        if method in LEARNERS:
            config = at_size(settings, len(images))
            weights = fit_once(bundle, images, config, budget, progress=progress)
        elif method in HYBRIDS:
            hybrid = at_size(settings, len(images))
            weights = hybrid_once(bundle, images, hybrid, budget, progress=progress)
        else:
            made = self._release(cell, images, budget)
            weights = pick(self.read(method, made, settings, progress), 0)
        return Made(bundle=bundle, weights=weights)

    def _release(self, cell: Cell, images: Tensor, budget: PrivacyBudget) -> Release:
        """One release for all methods that read one, so that what differs is the method."""
        key = (cell.n, cell.epsilon, cell.seed)
        if key not in self._releases:
            self._releases[key] = release_once(self.bundle, images, budget)
        return self._releases[key]

    def _evolution(self, settings: EvolutionConfig, cell: Cell) -> EvolutionConfig:
        """With as many images as every method draws, in as many steps."""
        sampling = self.config.sampling
        if not sampling.count:
            raise UsageError(
                expected="sampling.count >= 1 for `evolution`, whose result is images",
                found="0",
                todo="Correct the recipe, or leave the method out.",
            )
        return dataclasses.replace(
            settings,
            count=sampling.count,
            steps=sampling.steps,
            batch_size=sampling.batch_size,
            seed=cell.seed,
        )

    def _budget(self, cell: Cell) -> PrivacyBudget:
        assert cell.epsilon is not None  # noqa: S101
        return PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)

    def read(self, method: str, made: Release, settings: Any, progress: Progress) -> Weights:
        """The adapters, one for each class, that a method makes of a release."""
        if method == "reweighted":
            return adapt_on_public(
                self.bundle,
                made.mean(),
                made.mean_noise_std(),
                self.public,
                settings,
                progress=progress,
            )
        if method == "nearest":
            library = Library.load(Path(self.config.library), self.bundle)
            return nearest_weights(library, made.mean()[0], settings)
        return released_weights(self.bundle, made)

    def measure(self, cell: Cell, progress: Progress) -> dict[str, float]:
        """The figures of one cell: `loss` on the reference half, `fid` and `kid`."""
        count = self.config.sampling.count
        made = self.make(cell, progress)
        figures: dict[str, float] = {}
        images = made.images
        if images is None:
            with conditioned(made.bundle.base.model, made.condition):
                figures["loss"] = held_out_loss(made.bundle, made.weights, self.data.reference)
                images = draw_images(
                    made.bundle,
                    made.weights,
                    self.config.sampling,
                    seed=cell.seed,
                    progress=progress,
                )
        if self.keep is not None:
            self.keep(cell, images)
        if count:
            features = extract(self.extractor, images)
            figures["fid"] = fid(features, self.reference).value
            figures["kid"] = kid(features, self.reference).value
        return figures


class LabelledWorld(World):
    """The labelled bench: how many images of each class's adapter are read as that class."""

    @cached_property
    def classifier(self) -> DigitClassifier:
        """Trained on the reference half, which shares no record with the pool."""
        assert self.data.reference_labels is not None  # noqa: S101
        return train_classifier(self.data.reference, self.data.reference_labels)

    def measure(self, cell: Cell, progress: Progress) -> dict[str, float]:
        """`accuracy` over all classes, and `accuracy_CLASS` for each."""
        labels = self.data.pool_labels
        assert labels is not None  # noqa: S101
        names = [str(c) for c in range(int(labels.max()) + 1)]
        adapters = self._class_weights(cell, names, progress)
        figures, shown = {}, []
        for index, name in enumerate(names):
            images = draw_images(
                self.bundle,
                adapters[index],
                self.config.sampling,
                seed=cell.seed * 1000 + index,
                progress=progress,
            )
            figures[f"accuracy_{name}"] = self.classifier.share_read_as(images, index)
            shown.append(images[:COLUMNS])
        if self.keep is not None:
            self.keep(cell, torch.cat(shown))
        return {"accuracy": sum(figures.values()) / len(figures), **figures}

    def _class_weights(self, cell: Cell, names: list[str], progress: Progress) -> list[Weights]:
        if cell.method == "base":
            return [{} for _ in names]
        if cell.method in CONTROLS:
            return [control_weights(self.bundle, cell.method) for _ in names]
        if cell.method not in {"lora", "hyper", "reweighted"}:
            raise UsageError(
                expected="of a labelled bench: base, lora, hyper, reweighted or a control",
                found=cell.method,
                todo="Correct the recipe.",
            )
        images, labels = self.data.records(cell.n or max(self.config.n), seed=cell.seed)
        assert labels is not None  # noqa: S101
        settings = self.settings(cell)
        if cell.method == "lora":
            weights = class_lora_weights(
                self.bundle, images, labels, settings, seed=cell.seed, progress=progress
            )
            return [pick(weights, c) for c in range(len(names))]
        made = release_once(self.bundle, images, self._budget(cell), labels=labels, classes=names)
        weights = self.read(cell.method, made, settings, progress)
        return [pick(weights, c) for c in range(len(names))]
