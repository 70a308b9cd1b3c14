"""The text bench: perplexity of every method on every private set, and where secrets rank."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import at_size
from hyperdp.eval.canaries import Ranks, make_canaries, rank_canaries
from hyperdp.eval.cells import Cell, OnCell, Only, measure_cells
from hyperdp.eval.hybrids import hybrid_records
from hyperdp.eval.results import Row, read_rows, to_markdown
from hyperdp.eval.rivals import fit_records
from hyperdp.eval.study import Progress
from hyperdp.eval.text_recipe import TextBenchConfig
from hyperdp.eval.text_sets import edition_of, load_text_set
from hyperdp.eval.text_split import NOT_PUBLIC, TextSet
from hyperdp.eval.text_study import (
    best_lora_weights,
    control_weights,
    nats,
    perplexity,
    read_public,
    recovered,
    release_documents,
    released_weights,
    to_tokens,
)
from hyperdp.lora import Weights, pick
from hyperdp.private.records import TextRecord
from hyperdp.private.release import Release
from hyperdp.private.reweight import adapt_on_public
from hyperdp.text_bundle import MODEL, TextBundle, open_bundle

GAIN = ("perplexity", "recovered_gain")
SECRETS = ("canaries_found", "exposure_max", "exposure_mean", "smallest_p")
REFERENCES = ("base", "lora", "public_mean")
SHARED, REWEIGHTED = "shared", "reweighted"  # where the recipe names public documents
BASE_ONLY = ("base", "lora")  # what encoder and hypernetwork have no part in


def text_cells(config: TextBenchConfig, sizes: dict[str, int]) -> Iterator[Cell]:
    """The cells of a recipe, in the order that they are measured in.

    Args:
        config: the recipe.
        sizes: private set → size of its pool; cells with more records are left out.
    """
    for name in config.private_sets:
        fixed = ("base", "lora") if config.canaries else REFERENCES
        fixed = (*fixed, SHARED) if config.public else fixed
        once = ("hyper", REWEIGHTED) if config.public else ("hyper",)
        for method in fixed:
            n = config.n[0] if config.canaries else None
            yield Cell(private_set=name, method=method, n=n, epsilon=None, seed=config.seeds[0])
        for n in config.n:
            for epsilon in config.epsilon if n <= sizes[name] else ():
                for seed in config.seeds:
                    controls = () if config.canaries else ("other_task",)
                    for method in (*once, *controls, *config.fits, *config.hybrids):
                        yield Cell(private_set=name, method=method, n=n, epsilon=epsilon, seed=seed)


def methods_of(config: TextBenchConfig) -> tuple[str, ...]:
    """Every method that a recipe has cells of."""
    public = (SHARED, REWEIGHTED) if config.public else ()
    return (*REFERENCES, *public, "hyper", "other_task", *config.fits, *config.hybrids)


class TextBench:
    """Measures the cells of one recipe.

    Args:
        config: the recipe.
        bundle: it names.
    """

    def __init__(self, config: TextBenchConfig, bundle: TextBundle) -> None:
        self.config, self.bundle = config, bundle
        self.sets: dict[str, TextSet] = {
            name: load_text_set(name, edition_of(name, config.editions))
            for name in config.private_sets
        }
        self._releases: dict[tuple[str, int | None, float | None, int], Release] = {}

    @cached_property
    def public(self) -> Tensor:
        """The public documents of `shared` and `reweighted`, int64 [N, L]."""
        return read_public(self.bundle, self.config.public)

    def figures(self, cell: Cell, progress: Progress | None = None) -> dict[str, float]:
        """Metric → value of one cell."""
        data = self.sets[cell.private_set]
        if self.config.canaries:
            return self._secrets(cell, data, progress)
        weights = self._weights(cell, data.documents(cell.n or len(data.pool), seed=cell.seed),
                                progress)  # fmt: skip
        value = nats(self.bundle, weights, to_tokens(self.bundle, data.reference))
        return {"nats": value, "perplexity": perplexity(value)}

    def _secrets(self, cell: Cell, data: TextSet, progress: Progress | None) -> dict[str, float]:
        c = self.config
        secrets = make_canaries(c.canaries, c.candidates, seed=cell.seed)
        planted = [text for text in secrets.planted for _ in range(c.repeats)]
        documents = data.documents((cell.n or 0) - len(planted), seed=cell.seed) + planted
        weights = self._weights(cell, documents, progress)
        ranks: Ranks = rank_canaries(self.bundle, weights, secrets)
        return {
            "canaries_found": float(ranks.found),
            "exposure_max": max(ranks.exposures),
            "exposure_mean": sum(ranks.exposures) / len(ranks.exposures),
            "smallest_p": ranks.smallest_p,
        }

    def _weights(self, cell: Cell, documents: list[str], progress: Progress | None) -> Weights:
        if cell.method == "base":
            return {}
        if cell.method == "public_mean":
            return control_weights(self.bundle, "public_mean")
        tokens = to_tokens(self.bundle, documents)
        if cell.method in ("lora", SHARED):
            own = cell.method == "lora"
            records = tokens if own else self.public
            trials = self.config.references() if own else [self.config.shared]
            return best_lora_weights(
                self.bundle, records, trials, seed=cell.seed, progress=progress
            )
        budget = PrivacyBudget(epsilon=float(cell.epsilon or 0), delta=self.config.delta)
        stepped = [TextRecord(tokens=row) for row in tokens.numpy()]
        if cell.method in self.config.fits:
            rival = at_size(self.config.fits[cell.method], len(documents))
            return fit_records(self.bundle, stepped, rival, budget, progress=progress)
        if cell.method in self.config.hybrids:
            hybrid = at_size(self.config.hybrids[cell.method], len(documents))
            return hybrid_records(self.bundle, stepped, hybrid, budget, progress=progress)
        return self._read(cell, tokens, budget, progress)

    def _read(
        self, cell: Cell, tokens: Tensor, budget: PrivacyBudget, progress: Progress | None
    ) -> Weights:
        """What a method makes of a release; one for all that one run measures."""
        key = (cell.private_set, cell.n, cell.epsilon, cell.seed)
        if key not in self._releases:
            self._releases[key] = release_documents(self.bundle, tokens, budget)
        made = self._releases[key]
        if cell.method == REWEIGHTED:
            z, level = made.mean(), made.mean_noise_std()
            settings = self.config.reweight
            found = adapt_on_public(self.bundle, z, level, self.public, settings, progress=progress)
            return pick(found, 0)
        if cell.method == "other_task":  # at the noise level of such a release
            level_of = float(made.mean_noise_std()[0])
            return control_weights(self.bundle, "other_task", noise_std=level_of)
        return released_weights(self.bundle, made)


def open_text_bundle(name_or_path: str | Path) -> TextBundle:
    """A text bundle by name or folder.

    Raises:
        UsageError: the bundle is none of text. BundleError: unknown or damaged.
    """
    bundle = open_bundle(name_or_path)
    if not isinstance(bundle, TextBundle):
        raise UsageError(
            expected="a bundle of texts",
            found=f"{bundle.name!r}, which is of images",
            todo="Name another, such as text-tiny.",
        )
    return bundle


def row_name(bundle: TextBundle, method: str, config: TextBenchConfig, edition: int) -> str:
    """How rows of a method name a bundle: by its hash, or by its base model's where that is all.

    Beside it stands a digest of the method's settings and of the split of the private set: a recipe
    that was changed measures its cells anew.

    Args:
        bundle: of the recipe.
        method: of the row.
        config: the recipe.
        edition: of the private set.
    """
    own: dict[str, object] = {
        "lora": config.references(),
        SHARED: (config.public, config.shared),
        REWEIGHTED: (config.public, config.reweight),
        **config.fits,
        **config.hybrids,
    }
    secrets = (config.canaries, config.candidates, config.repeats) if config.canaries else None
    if secrets and edition < NOT_PUBLIC:  # where secrets rank has nothing to do with a reference
        edition = 1
    delta = None if method in (*REFERENCES, SHARED) else config.delta
    settings = repr((edition, delta, secrets, own.get(method)))
    if method in BASE_ONLY:
        digest = hashlib.sha256((bundle.path / MODEL / "model.safetensors").read_bytes())
        digest.update("\n".join(bundle.config.sites).encode())  # where LoRA goes
        digest.update(settings.encode())
        return f"{bundle.name} {MODEL} {digest.hexdigest()[:12]}"
    digest = hashlib.sha256(settings.encode())
    return f"{bundle.name} {bundle.hash[:12]} {digest.hexdigest()[:8]}"


def run_text_bench(
    config: TextBenchConfig,
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
        methods: only these; all when None. There is a gain where there is `base` and `lora` too.
        only: which cells; all when None.

    Returns:
        All rows of this recipe and bundle.

    Raises:
        UsageError: the bundle is none of text, or `only` asks for what the recipe does not have.
    """
    chosen = only if only is not None else Only()
    chosen.check(n=config.n, epsilon=config.epsilon, seeds=config.seeds)
    bundle = open_text_bundle(config.bundle)
    bench = TextBench(config, bundle)
    sizes = {name: len(data.pool) for name, data in bench.sets.items()}
    cells = [c for c in text_cells(config, sizes) if methods is None or c.method in methods]
    measure_cells(
        filter(chosen.keeps, cells),
        path,
        bench=config.bench,
        delta=config.delta,
        base=lambda cell: row_name(
            bundle, cell.method, config, bench.sets[cell.private_set].edition
        ),
        figures=bench.figures,
        on_cell=on_cell,
    )
    return stored_text_rows(config, path, bundle)


def stored_text_rows(config: TextBenchConfig, path: Path, bundle: TextBundle) -> list[Row]:
    """The rows of a file that are of this recipe, its sets, its settings and its bundle.

    They come in the order of the recipe's cells, whatever the order they were measured in. Gains
    are worked out here and never read: a stored one would stay when its reference is measured anew.
    """
    editions = {name: edition_of(name, config.editions) for name in config.private_sets}
    found = [
        row
        for row in read_rows(path)
        if row.bench == config.bench
        and row.private_set in config.private_sets
        and row.metric != "recovered_gain"
        and row.base == row_name(bundle, row.method, config, editions[row.private_set])
    ]
    every = text_cells(config, dict.fromkeys(config.private_sets, sys.maxsize))
    place = {(c.private_set, c.method, c.n, c.epsilon, c.seed): i for i, c in enumerate(every)}

    def rank(row: Row) -> int:
        key = (row.private_set, row.method, row.n, row.epsilon, row.seed)
        return place.get(key, len(place))

    found.sort(key=rank)
    return list(_with_gains(found))


def _with_gains(rows: list[Row]) -> Iterator[Row]:
    """Rows, and behind each figure in nats its gain, where base and LoRA leave one to recover."""
    marks: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.metric == "nats" and row.method in BASE_ONLY:
            marks.setdefault(row.private_set, {})[row.method] = row.value
    for row in rows:
        yield row
        known = marks.get(row.private_set, {})
        if row.metric != "nats" or row.method in BASE_ONLY or len(known) < len(BASE_ONLY):
            continue
        if known["lora"] < known["base"]:
            gain = recovered({**known, row.method: row.value}, row.method)
            yield dataclasses.replace(row, metric="recovered_gain", value=gain)


def text_table(config: TextBenchConfig, rows: list[Row]) -> str:
    """The table of a recipe's rows, Markdown."""
    return to_markdown(rows, SECRETS if config.canaries else GAIN)
