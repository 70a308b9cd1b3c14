"""Labelled documents: what adapters of the classes are worth to a classifier of real documents.

A document is what a record holds of it, its first L tokens, for whoever reads it: so no method is
judged by words that another was never shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.encoder import clip
from hyperdp.eval.cells import Cell, OnCell, Only, measure_cells
from hyperdp.eval.class_learners import class_config, fits_by_class
from hyperdp.eval.metrics.divergence import mauve
from hyperdp.eval.results import Row, read_rows, to_markdown
from hyperdp.eval.study import CONTROL_NOISE_STD, Progress
from hyperdp.eval.text_bench import open_text_bundle
from hyperdp.eval.text_classifier import classify, zero_shot_accuracy
from hyperdp.eval.text_recipe import STEPPED, TextLabelsConfig
from hyperdp.eval.text_sets import edition_of, load_labelled_set
from hyperdp.eval.text_split import LabelledTextSet
from hyperdp.eval.text_study import (
    best_lora_weights,
    document_losses,
    embed_documents,
    read_public,
    release_documents,
    to_text_records,
    to_tokens,
)
from hyperdp.lora import Weights, adapters, pick
from hyperdp.private.emit import adapter_weights
from hyperdp.private.release import Release
from hyperdp.private.reweight import adapt_on_public
from hyperdp.private.selection import select_by_class
from hyperdp.text_bundle import TextBundle

METRICS = ("accuracy", "accuracy_zero_shot", "mauve")
NOISELESS = "noiseless"  # what `hyper` would be worth, were its release exact
REFERENCES = ("real", "lora", NOISELESS)  # of n documents, without privacy
METHODS = ("base", *REFERENCES, "hyper", "selected", "reweighted", *STEPPED)


def label_cells(config: TextLabelsConfig, sizes: dict[str, int]) -> Iterator[Cell]:
    """The cells of a recipe.

    Args:
        config: the recipe.
        sizes: private set → size of its pool; cells with more documents are left out.
    """
    private = ["hyper"]
    private += ["selected"] if config.candidates > 1 else []
    private += ["reweighted"] if config.public else []
    private += config.stepped
    for name in config.private_sets:
        yield Cell(private_set=name, method="base", n=None, epsilon=None, seed=config.seeds[0])
        for n in [n for n in config.n if n <= sizes[name]]:
            for epsilon in (None, *config.epsilon):
                for seed in config.seeds:
                    for method in REFERENCES if epsilon is None else private:
                        yield Cell(private_set=name, method=method, n=n, epsilon=epsilon, seed=seed)


class TextLabels:
    """Measures the cells of one recipe.

    Args:
        config: the recipe.
        bundle: it names.
    """

    def __init__(self, config: TextLabelsConfig, bundle: TextBundle) -> None:
        self.config, self.bundle = config, bundle
        self.sets: dict[str, LabelledTextSet] = {
            name: load_labelled_set(name, edition_of(name, config.editions))
            for name in config.private_sets
        }
        self._releases: dict[tuple[str, int | None, float | None, int], Release] = {}

    @cached_property
    def public(self) -> Tensor:
        """The public documents of `reweighted`, int64 [N, L]."""
        return read_public(self.bundle, self.config.public)

    def figures(self, cell: Cell, progress: Progress) -> dict[str, float]:
        """Metric → value of one cell."""
        data = self.sets[cell.private_set]
        documents = [] if cell.n is None else data.documents(cell.n, seed=cell.seed)
        labels = np.array(data.labels(documents), dtype=np.int64)
        tokens = to_tokens(self.bundle, documents) if documents else torch.empty(0)
        classes = range(len(data.classes))
        if cell.method == "real":
            groups = [[documents[i] for i in np.flatnonzero(labels == c)] for c in classes]
            return self._worth(data, groups)
        weights = self._weights(cell, tokens, labels, data.classes, progress)
        many = self.config.candidates if cell.method == "selected" else 1
        written = [
            # Seeds apart, so that no class writes what another does.
            self._write(w, seed=cell.seed * len(classes) + c, many=many)
            for c, w in enumerate(weights)
        ]
        if cell.method == "selected":
            written = self._selected(cell, [text for group in written for text in group])
        reference = to_tokens(self.bundle, data.reference)
        losses = torch.stack([document_losses(self.bundle, w, reference) for w in weights])
        truth = np.array(data.labels(data.reference), dtype=np.int64)
        zero_shot = zero_shot_accuracy(losses.double().numpy(), truth)
        return {**self._worth(data, written), "accuracy_zero_shot": zero_shot}

    def _worth(self, data: LabelledTextSet, groups: Sequence[Sequence[str]]) -> dict[str, float]:
        """What documents of each class say of the held-out ones: accuracy, and how near they are.

        The divergence is taken class by class, of at most as many documents as an adapter writes,
        and averaged: shares of the classes are no matter of it.
        """
        truth = np.array(data.labels(data.reference), dtype=np.int64)
        reference = to_tokens(self.bundle, data.reference)
        real = embed_documents(self.bundle, reference)
        tokens = [to_tokens(self.bundle, group) for group in groups]
        near = [
            mauve(embed_documents(self.bundle, group[: self.config.per_class]), real[truth == c])
            for c, group in enumerate(tokens)
        ]
        labels = np.repeat(np.arange(len(tokens)), [len(group) for group in tokens])
        found = classify(
            self._as_read(torch.cat(tokens)), labels, self._as_read(reference),
            self.config.classifier,
        )  # fmt: skip
        return {
            "accuracy": float(balanced_accuracy_score(truth, found)),
            "mauve": float(np.mean(near)),
        }

    def _as_read(self, tokens: Tensor) -> list[str]:
        """The text that records hold."""
        return [self.bundle.base.tokenizer.decode(row[1:].tolist()) for row in tokens]

    def _write(self, weights: Weights, *, seed: int, many: int = 1) -> list[str]:
        base, count = self.bundle.base, many * self.config.per_class
        with adapters(base.model, weights):
            return base.sample(count, seed=seed, temperature=self.config.temperature)

    def _selected(self, cell: Cell, texts: list[str]) -> list[list[str]]:
        """Of what all classes' adapters wrote, what lies furthest on each class's side of z."""
        embedded = self._embeddings(to_tokens(self.bundle, texts))
        z = self._releases[cell.private_set, cell.n, cell.epsilon, cell.seed].mean()
        chosen = select_by_class(embedded, z.float(), self.config.per_class)
        return [[texts[row] for row in rows] for rows in chosen]

    def _embeddings(self, tokens: Tensor) -> Tensor:
        """Clipped embeddings of documents [N, L], without noise, float32 [N, k]."""
        found = torch.from_numpy(embed_documents(self.bundle, tokens)).float()
        return clip(found, self.bundle.config.clip_norm)

    def _weights(
        self,
        cell: Cell,
        tokens: Tensor,
        labels: NDArray[np.int64],
        classes: Sequence[str],
        progress: Progress,
    ) -> list[Weights]:
        """An adapter for each class; of a private method all together for one budget."""
        count = len(classes)
        if cell.method == "base":
            return [{}] * count
        groups = [tokens[torch.from_numpy(labels == c)] for c in range(count)]
        if cell.method == "lora":
            trials = self.config.references()
            return [
                best_lora_weights(self.bundle, group, trials, seed=cell.seed, progress=progress)
                for group in groups
            ]
        if cell.method == NOISELESS:
            found = adapter_weights(
                self.bundle,
                torch.stack([self._embeddings(group).mean(0) for group in groups]),
                torch.full((count,), CONTROL_NOISE_STD),
            )
            return [pick(found, c) for c in range(count)]
        budget = PrivacyBudget(epsilon=float(cell.epsilon or 0), delta=self.config.delta)
        if cell.method in self.config.stepped:
            return fits_by_class(
                self.bundle,
                [to_text_records(group) for group in groups],
                config=class_config(self.config.stepped[cell.method], n=len(tokens), classes=count),
                budget=budget,
                progress=progress,
            )
        # One release for all readings that one run measures, so that what differs is the reading; a
        # run that goes on draws other noise.
        key = (cell.private_set, cell.n, cell.epsilon, cell.seed)
        if key not in self._releases:
            self._releases[key] = release_documents(
                self.bundle, tokens, budget, labels=labels.tolist(), classes=classes
            )
        z, level = (self._releases[key].mean(), self._releases[key].mean_noise_std())
        if cell.method == "reweighted":
            settings = self.config.reweight
            found = adapt_on_public(self.bundle, z, level, self.public, settings, progress=progress)
        else:
            found = adapter_weights(self.bundle, z, level)
        return [pick(found, c) for c in range(count)]


def row_base(config: TextLabelsConfig, bundle: TextBundle, method: str, edition: int) -> str:
    """What a row's `base` says: the bundle, and a digest of its method's settings and of the split.

    Rows of other settings are other rows, so a recipe that was changed measures its cells anew.

    Args:
        config: the recipe.
        bundle: of it.
        method: of the row.
        edition: of the private set.
    """
    own: dict[str, object] = {
        "lora": [asdict(trial) for trial in config.references()]
        if config.finetune_trials
        else asdict(config.finetune),
        "selected": config.candidates,
        "reweighted": [config.public, asdict(config.reweight)],
        **{name: getattr(config, name) for name in STEPPED},
    }
    shared = [config.per_class, config.temperature, asdict(config.classifier)]
    delta = None if method in ("base", *REFERENCES) else config.delta
    split = [edition] if edition > 1 else []  # rows of the first name none
    values = json.dumps([*split, shared, delta, own.get(method)], sort_keys=True)
    return f"{bundle.name} {bundle.hash[:12]} {hashlib.sha256(values.encode()).hexdigest()[:8]}"


def run_text_labels(
    config: TextLabelsConfig,
    path: Path,
    on_cell: OnCell,
    methods: list[str] | None = None,
    only: Only | None = None,
) -> list[Row]:
    """Measures every cell that `path` does not hold yet.

    Args:
        config: the recipe.
        path: JSONL of rows.
        on_cell: see `OnCell`.
        methods: only these; all when None.
        only: which cells; all when None.

    Returns:
        All rows of this recipe and bundle.

    Raises:
        UsageError: the bundle is none of text, a set without labels, or `only` asks for what the
            recipe does not have.
    """
    chosen = only if only is not None else Only()
    chosen.check(n=config.n, epsilon=config.epsilon, seeds=config.seeds)
    bundle = open_text_bundle(config.bundle)
    bench = TextLabels(config, bundle)
    sizes = {name: len(data.pool) for name, data in bench.sets.items()}
    cells = [c for c in label_cells(config, sizes) if methods is None or c.method in methods]
    measure_cells(
        filter(chosen.keeps, cells), path, bench=config.bench, delta=config.delta,
        base=lambda c: row_base(config, bundle, c.method, bench.sets[c.private_set].edition),
        figures=bench.figures, on_cell=on_cell,
    )  # fmt: skip
    return stored_label_rows(config, path, bundle)


def stored_label_rows(config: TextLabelsConfig, path: Path, bundle: TextBundle) -> list[Row]:
    """The rows of a file that are of this recipe, its settings and its bundle, in one order."""
    editions = {name: edition_of(name, config.editions) for name in config.private_sets}
    found = [
        row for row in read_rows(path) if row.bench == config.bench
        and row.private_set in config.private_sets
        and row.method in METHODS
        and row.base == row_base(config, bundle, row.method, editions[row.private_set])
    ]  # fmt: skip

    def place(row: Row) -> tuple[int, int, float, int, int]:
        order = (config.private_sets.index(row.private_set), row.n or 0, row.epsilon or 0.0)
        return (*order, METHODS.index(row.method), row.seed)

    return sorted(found, key=place)


def label_table(rows: list[Row]) -> str:
    """The table of a recipe's rows, Markdown."""
    return to_markdown(rows, METRICS)
