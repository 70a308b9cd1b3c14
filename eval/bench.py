"""The benchmark: method × private set × n × ε × seed, resumable cell by cell."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import BenchConfig, Cell, cells
from hyperdp.eval.digit_classifier import DigitClassifier, train_classifier
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.measure import read_reference
from hyperdp.eval.metrics.fid import fid, kid
from hyperdp.eval.private_sets import PrivateSet, load_private_set
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
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
from hyperdp.lora import Weights, pick
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


class World:
    """One private set with the bundle and what is computed once for it."""

    def __init__(self, config: BenchConfig, name: str, bundle: Bundle) -> None:
        self.config, self.bundle = config, bundle
        self.data = load_set(name)
        self.extractor = EfficientNetLite0()

    @cached_property
    def reference(self) -> Features:
        """Features of the reference half."""
        return extract(self.extractor, self.data.reference)

    def weights(self, cell: Cell, progress: Progress) -> Weights:
        """The adapter of a cell; {} for the base model."""
        if cell.method == "base":
            return {}
        if cell.method in CONTROLS:
            return control_weights(self.bundle, cell.method)
        if cell.method.startswith("lora"):
            images, _ = self.data.records(max(self.config.n), seed=cell.seed)
            setting = self.config.variants.get(cell.method[5:], self.config.finetune)
            return lora_weights(self.bundle, images, setting, seed=cell.seed, progress=progress)
        assert cell.n is not None and cell.epsilon is not None  # noqa: S101
        images, _ = self.data.records(cell.n, seed=cell.seed)
        budget = PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)
        return pick(self.read(cell, release_once(self.bundle, images, budget), progress), 0)

    @cached_property
    def public(self) -> Tensor:
        """The public records of the method `reweighted`, float32 [N, C, H, W]."""
        return read_reference(self.config.public, self.bundle.config.image_shape)[0]

    def read(self, cell: Cell, made: Release, progress: Progress) -> Weights:
        """The adapters, one for each class, that a cell's method makes of a release."""
        if cell.method != "reweighted":
            return released_weights(self.bundle, made)
        return adapt_on_public(
            self.bundle,
            made.mean(),
            made.mean_noise_std(),
            self.public,
            self.config.reweight,
            progress=progress,
        )

    def measure(self, cell: Cell, progress: Progress) -> dict[str, float]:
        """The figures of one cell: `loss` on the reference half, `fid` and `kid`."""
        count = self.config.sampling.count
        figures: dict[str, float] = {}
        if cell.method == "floor":
            images = self.data.pool[:count]
        else:
            weights = self.weights(cell, progress)
            figures["loss"] = held_out_loss(self.bundle, weights, self.data.reference)
            images = draw_images(
                self.bundle, weights, self.config.sampling, seed=cell.seed, progress=progress
            )
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

    def _class_weights(self, cell: Cell, names: list[str], progress: Progress) -> list[Weights]:
        if cell.method == "base":
            return [{} for _ in names]
        if cell.method in CONTROLS:
            return [control_weights(self.bundle, cell.method) for _ in names]
        images, labels = self.data.records(cell.n or max(self.config.n), seed=cell.seed)
        assert labels is not None  # noqa: S101
        if cell.method == "lora":
            weights = class_lora_weights(
                self.bundle, images, labels, self.config.finetune, seed=cell.seed, progress=progress
            )
            return [pick(weights, c) for c in range(len(names))]
        assert cell.epsilon is not None  # noqa: S101
        budget = PrivacyBudget(epsilon=cell.epsilon, delta=self.config.delta)
        made = release_once(self.bundle, images, budget, labels=labels, classes=names)
        weights = self.read(cell, made, progress)
        return [pick(weights, c) for c in range(len(names))]


def run_bench(
    config: BenchConfig,
    out: Path,
    *,
    on_cell: Callable[[Cell, int, int], Progress] | None = None,
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
    done = {_key(r) for r in rows}
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
    gains = recovered_gains(rows)
    append_rows(out, gains)
    return rows + gains


def recovered_gains(rows: list[Row]) -> list[Row]:
    """The recovered gains that a bench's rows do not hold yet, in the order of the rows.

    (FID_base - FID) / (FID_base - FID_LoRA), with the mean over seeds of base and of non-private
    LoRA on all private records. A set without these two, or that LoRA does not bring nearer, has no
    gain; it has one as soon as they are measured, whatever the order of the cells.
    """
    known = {_key(r) for r in rows if r.metric == "recovered_gain"}
    fids = [r for r in rows if r.metric == "fid"]
    gains = []
    for row in fids:
        if row.method in {"floor", "base", "lora"} or _key(row) in known:
            continue
        base, lora = (
            [r.value for r in fids if (r.private_set, r.method) == (row.private_set, name)]
            for name in ("base", "lora")
        )
        if not base or not lora:
            continue
        best, start = sum(lora) / len(lora), sum(base) / len(base)
        if start > best:
            gain = (start - row.value) / (start - best)
            gains.append(dataclasses.replace(row, metric="recovered_gain", value=gain))
    return gains


def _key(row: Row) -> tuple[str, str, int | None, float | None, int]:
    return row.private_set, row.method, row.n, row.epsilon, row.seed


def _silent(done: int, total: int) -> None:
    """No progress."""
