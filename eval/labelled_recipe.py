"""Recipes of the labelled benchmark: TOML on disk, a frozen dataclass inside, and its cells."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import RECIPES
from hyperdp.eval.cells import Cell
from hyperdp.eval.class_learners import class_config
from hyperdp.eval.study import SamplingConfig
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.classifier.network import NetworkConfig

REWEIGHTED_ALONE = ("reweighted", "reweighted_by_class")
AND_PUBLIC = "_and_public"
REWEIGHTED = (*REWEIGHTED_ALONE, *(method + AND_PUBLIC for method in REWEIGHTED_ALONE))
DPSGD_LORA = "dpsgd_lora"
SYNTHETIC = (DPSGD_LORA, "hyper", *REWEIGHTED)  # a classifier of images that adapters drew
FROM_PUBLIC = "dpsgd_from_public"
VARIED = ("dpsgd", FROM_PUBLIC, DPSGD_LORA)  # methods that variants are tried of
NEEDS_PUBLIC = ("public_only", FROM_PUBLIC, *REWEIGHTED)
METHODS = (*dict.fromkeys(NEEDS_PUBLIC + SYNTHETIC), "nonprivate", "dpsgd")


def is_synthetic(method: str) -> bool:
    """Whether a method, with a variant's name or without, has its classifier see what it drew."""
    return method.partition("/")[0] in SYNTHETIC


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """A recipe of the labelled benchmark: accuracy on real images that nothing was trained on.

    Attributes:
        bench: its name, in every row.
        private_sets: see `hyperdp.eval.private_sets`; or the .npz of a public task, for tuning.
        n: numbers of private records; one that a set does not have is left out for that set.
        epsilon: budgets. delta: of every budget. seeds: of draws of records and of training.
        methods: out of `METHODS`.
            `hyper`: a labelled release, an adapter for each class, and a classifier of its images.
            `reweighted`: the same after `hyperdp emit --public` with the public images, without
            their labels. `reweighted_by_class`: with them (`--public-label-column`).
            `reweighted_and_public`, `reweighted_by_class_and_public`: the classifier sees as many
            of the public images too, with their labels; what is private is still the one release.
            `dpsgd`: De et al. 2022 on the same records; `dpsgd/NAME` with a variant's settings.
            `dpsgd_from_public`: the same, begun with weights trained on the public images, with
            settings of its own; `dpsgd_from_public/NAME` with a variant's.
            `dpsgd_lora`: an adapter for each class by DP-SGD, together under the one budget
            (`hyperdp.eval.class_learners`), and a classifier of their images; `dpsgd_lora/NAME`
            with a variant's settings.
            `nonprivate`: the classifier of `hyper` on the records themselves.
            `public_only`: that classifier on the public images: the control without any privacy.
        bundle: of the methods of adapters.
        lora: values of the `FitConfig` of `dpsgd_lora`, see `class_config`.
        public: .npz of `hyperdp pretrain digits`, for the methods that need it.
        classifier_steps: of the classifier of images, of 50 images each; the same for every method.
        images_per_class: drawn from each adapter. sampling: how.
        share: expected batch over n of `dpsgd`, as n differs from cell to cell.
        dpsgd: the other values of its `ClassifierConfig`. network: of its `NetworkConfig`.
        from_public: what `dpsgd_from_public` has otherwise: a start that is good is lost again by
            the steps and rates that a fresh one needs.
        at: what a `method` (dpsgd, dpsgd_from_public or dpsgd_lora) has otherwise at an `epsilon`,
            an `n`, or both: a table each, of these and of values. Later ones win, and variants over
            all.
        variants: name → values of its method that a variant has otherwise, for tuning and ablation.
    """

    bench: str
    private_sets: list[str]
    n: list[int]
    epsilon: list[float]
    delta: float
    seeds: list[int]
    methods: list[str]
    bundle: str = "glyphs"
    public: str = ""
    classifier_steps: int = 600
    images_per_class: int = 200
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    lora: dict[str, Any] = field(default_factory=dict)
    share: float = 0.25
    dpsgd: dict[str, Any] = field(default_factory=dict)
    from_public: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    at: list[dict[str, Any]] = field(default_factory=list)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of_variants = {f"{m}/{v}" for m in VARIED for v in self.variants}
        methods = {*METHODS, *of_variants}
        if unknown := sorted(set(self.methods) - methods):
            raise UsageError(
                expected=f"methods out of {', '.join(sorted(methods))}",
                found=", ".join(unknown),
                todo="Correct the recipe.",
            )
        for entry in self.at:
            if entry.get("method") not in VARIED or not {"epsilon", "n"} & set(entry):
                raise UsageError(
                    expected=f"`at` with one of {', '.join(VARIED)}, and an epsilon or an n",
                    found=str(entry),
                    todo="Correct the recipe.",
                )
        if not self.public and {m.partition("/")[0] for m in self.methods} & set(NEEDS_PUBLIC):
            raise UsageError(
                expected="`public`, the .npz that `hyperdp pretrain digits` wrote",
                found=f"none, with methods {', '.join(self.methods)}",
                todo="Add it to the recipe.",
            )

    def _changes(self, method: str, *, n: int, epsilon: float) -> dict[str, Any]:
        """What a method has otherwise in a cell: by `at`, and by its variant."""
        name, _, variant = method.partition("/")
        cell = {"method": name, "epsilon": epsilon, "n": n}
        changes: dict[str, Any] = {}
        for entry in self.at:
            if all(entry.get(key, value) == value for key, value in cell.items()):
                changes |= {key: value for key, value in entry.items() if key not in cell}
        return changes | (self.variants[variant] if variant else {})

    def lora_values(self, method: str, *, n: int, epsilon: float) -> dict[str, Any]:
        """The settings of a `dpsgd_lora…` method in a cell, as `class_config` takes them.

        Args:
            method: with its variant's name after the stroke.
            n: records of the cell; public in a benchmark.
            epsilon: of the cell.
        """
        return {**self.lora, **self._changes(method, n=n, epsilon=epsilon)}

    def classifier(
        self,
        method: str,
        *,
        n: int,
        epsilon: float,
        image_shape: tuple[int, int, int],
        classes: int,
    ) -> ClassifierConfig:
        """The settings of a `dpsgd…` method in a cell.

        Args:
            method: with its variant's name after the stroke.
            n: records of the cell; public in a benchmark.
            epsilon: of the cell.
            image_shape: [C, H, W].
            classes: L.
        """
        public = method.partition("/")[0] == FROM_PUBLIC
        changes = {
            **(self.from_public if public else {}),
            **self._changes(method, n=n, epsilon=epsilon),
        }
        network = {**self.network, **changes.pop("network", {})}
        lists = {key: tuple(value) for key, value in network.items() if isinstance(value, list)}
        share = changes.pop("share", self.share)
        return ClassifierConfig(
            **{**self.dpsgd, **changes},
            batch_size=max(1, round(share * n)),
            network=NetworkConfig(**{**network, **lists}, image_shape=image_shape, classes=classes),
        )


def labelled_cells(config: LabelledConfig, sizes: dict[str, int]) -> Iterator[Cell]:
    """Every cell of a recipe.

    Args:
        config: the recipe.
        sizes: records in each private set's pool.
    """
    for name in config.private_sets:
        for method in config.methods:
            for n in [m for m in config.n if m <= sizes[name]]:
                for epsilon in config.epsilon:
                    for seed in config.seeds:
                        private = method not in {"public_only", "nonprivate"}
                        uses_records = method != "public_only"
                        if (private or epsilon == config.epsilon[0]) and (
                            uses_records or n == config.n[0]
                        ):
                            yield Cell(
                                private_set=name,
                                method=method,
                                n=n if uses_records else None,
                                epsilon=epsilon if private else None,
                                seed=seed,
                            )


def read_labelled_recipe(
    name_or_path: str, only: list[str] | None = None, methods: list[str] | None = None
) -> LabelledConfig:
    """Reads a recipe of the labelled benchmark.

    Args:
        name_or_path: a TOML file, or the name of a shipped recipe.
        only: keep these private sets.
        methods: keep these methods.

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
            todo="Shipped recipes of this kind: labelled-quick, labelled-full.",
        )
    try:
        values = tomllib.loads(path.read_text())
        sampling = SamplingConfig(**values.pop("sampling", {}))
        config = LabelledConfig(**values, sampling=sampling)
        for method in config.methods:  # so that a bad value is found before the first cell
            for n, epsilon in itertools.product(config.n, config.epsilon):
                if method.partition("/")[0] == DPSGD_LORA:
                    values = config.lora_values(method, n=n, epsilon=epsilon)
                    class_config(values, n=n, classes=10)
                elif method.startswith("dpsgd"):
                    config.classifier(
                        method, n=n, epsilon=epsilon, image_shape=(1, 28, 28), classes=10
                    )
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UsageError(
            expected=f"a labelled recipe in {path}", found=str(error), todo="Correct the file."
        ) from error
    return dataclasses.replace(
        config, private_sets=only or config.private_sets, methods=methods or config.methods
    )
