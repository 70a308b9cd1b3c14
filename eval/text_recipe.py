"""Recipes of the text bench: TOML on disk, a frozen dataclass inside."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import fit_settings, hybrid_settings
from hyperdp.eval.class_learners import class_config
from hyperdp.eval.hybrids import HybridConfig
from hyperdp.eval.text_split import NEWEST
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.reweight import OF_TEXTS, ReweightConfig

RECIPES = Path(__file__).parent / "recipes"
KIND, LABELS_KIND = "text", "text-labels"
HYBRID = "hybrid_"
STEPPED = ("dpsgd", "prism", "hybrid_dpsgd", "hybrid_prism")  # an adapter for each class by steps


@dataclass(frozen=True, kw_only=True)
class TextBenchConfig:
    """A recipe of the text bench; in TOML with `kind = "text"`.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder of a text bundle.
        private_sets: out of `hyperdp.eval.text_sets.TEXT_SETS`, or JSONL of public tasks.
        editions: private set → edition of its split, for those that have rows of an older one.
        n: numbers of private documents; those that a set does not have are left out.
        epsilon: budgets. delta: of every budget.
        seeds: of draws of documents; the noise of a release has none.
        finetune: of the non-private LoRA, on the whole pool.
        finetune_trials: what else is tried for it, each a table of other values; see
            `hyperdp.eval.text_study.best_lora_weights`.
        fits: settings of step-trained rivals by method: a learner's name, or `NAME/VARIANT` where
            several are compared. Their public size is n, cell by cell.
        hybrids: the same of a release and steps from its adapter: `hybrid_dpsgd`, `hybrid_prism`,
            or one with a variant's name after a stroke.
        public: public documents (`hyperdp pretrain public --texts`) for two more methods: `shared`,
            one LoRA on all of them, and `reweighted`, what `hyper` emits trained on, on those that
            the same release points at. Neither where it is "".
        shared: of `shared`.
        reweight: of `reweighted`.
        canaries: how many secrets are planted; 0 measures perplexity instead.
        repeats: documents that hold each secret.
        candidates: other secrets that each planted one is ranked among.
    """

    bench: str
    bundle: str
    private_sets: list[str]
    n: list[int]
    epsilon: list[float]
    delta: float
    seeds: list[int]
    editions: dict[str, int] = field(default_factory=dict)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    finetune_trials: list[dict[str, Any]] = field(default_factory=list)
    fits: dict[str, FitConfig] = field(default_factory=dict)
    hybrids: dict[str, HybridConfig] = field(default_factory=dict)
    public: str = ""
    shared: FinetuneConfig = field(default_factory=FinetuneConfig)
    reweight: ReweightConfig = OF_TEXTS
    canaries: int = 0
    repeats: int = 1
    candidates: int = 4095

    def references(self) -> list[FinetuneConfig]:
        """Every setting of the non-private LoRA that is tried."""
        return [self.finetune, *(replace(self.finetune, **other) for other in self.finetune_trials)]


@dataclass(frozen=True, kw_only=True)
class TextClassifierConfig:
    """Logistic regression on TF-IDF features; never chosen by looking at private documents.

    Attributes:
        words: the longest run of words that is a feature.
        strength: C of scikit-learn, the inverse of the penalty's weight.
    """

    words: int = 1
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TextLabelsConfig:
    """A recipe of labelled documents; in TOML with `kind = "text-labels"`.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder of a text bundle.
        private_sets: out of `hyperdp.eval.text_sets.LABELLED_SETS`.
        editions: as for `TextBenchConfig`.
        n: numbers of private documents, of all classes together; those that a set does not have are
            left out.
        epsilon: budgets, each of all classes together. delta: of every budget.
        seeds: of draws of documents, training and sampling; the noise of a release has none.
        per_class: documents that each class's adapter writes.
        temperature: that they are written at.
        candidates: times `per_class` documents that `selected` chooses from
            (`hyperdp.private.selection`); no such method where it is 1.
        classifier: of all methods alike.
        finetune: of the non-private LoRA of each class.
        finetune_trials: what else is tried for it, as for `TextBenchConfig`.
        public: public documents (`hyperdp pretrain public --texts`) for `reweighted`; no such
            method where it is "".
        reweight: of `reweighted`; its batch is that of all classes.
        dpsgd, prism, hybrid_dpsgd, hybrid_prism: values of each, see `class_config`; no such method
            where it is empty.
    """

    bench: str
    bundle: str
    private_sets: list[str]
    n: list[int]
    epsilon: list[float]
    delta: float
    seeds: list[int]
    editions: dict[str, int] = field(default_factory=dict)
    per_class: int = 1000
    temperature: float = 1.0
    candidates: int = 1
    classifier: TextClassifierConfig = field(default_factory=TextClassifierConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    finetune_trials: list[dict[str, Any]] = field(default_factory=list)
    public: str = ""
    reweight: ReweightConfig = OF_TEXTS
    dpsgd: dict[str, Any] = field(default_factory=dict)
    prism: dict[str, Any] = field(default_factory=dict)
    hybrid_dpsgd: dict[str, Any] = field(default_factory=dict)
    hybrid_prism: dict[str, Any] = field(default_factory=dict)

    @property
    def stepped(self) -> dict[str, dict[str, Any]]:
        """Method → values for `class_config`, of those that train an adapter for each class."""
        return {
            name: {**getattr(self, name), "method": name.removeprefix(HYBRID)}
            for name in STEPPED
            if getattr(self, name)
        }

    def references(self) -> list[FinetuneConfig]:
        """Every setting of the non-private LoRA that is tried."""
        return [self.finetune, *(replace(self.finetune, **other) for other in self.finetune_trials)]

    def __post_init__(self) -> None:
        self.references()  # so that a bad value is found before the first cell
        for values in self.stepped.values():
            class_config(values, n=max(self.n), classes=2)


def text_recipe_path(name_or_path: str) -> Path | None:
    """The file of a recipe of texts; None where the recipe is of another kind, or there is none."""
    path = Path(name_or_path)
    path = path if path.is_file() else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        return None
    try:
        kind = recipe_kind(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None  # the other reader says what is wrong with it
    return path if kind in (KIND, LABELS_KIND) else None


def recipe_kind(path: Path) -> str | None:
    """What a recipe says of its kind; None where it says nothing."""
    kind: str | None = tomllib.loads(path.read_text()).get("kind")
    return kind


def read_text_recipe(path: Path, private_sets: list[str] | None = None) -> TextBenchConfig:
    """Reads a recipe.

    Args:
        path: of `text_recipe_path`.
        private_sets: only these of it.

    Raises:
        UsageError: a key that it does not have or misses, or a set that it does not name.
    """
    values = _read(path)
    try:
        tables: dict[str, Any] = {
            name: FinetuneConfig(**values.pop(name))
            for name in ("finetune", "shared")
            if name in values
        }
        if "reweight" in values:
            tables["reweight"] = ReweightConfig(**values.pop("reweight"))
        fits = {
            name: fit_settings(name.partition("/")[0], given)
            for name, given in values.pop("fits", {}).items()
        }
        hybrids = {
            name: hybrid_settings(name.partition("/")[0], given)
            for name, given in values.pop("hybrids", {}).items()
        }
        config = TextBenchConfig(**tables, fits=fits, hybrids=hybrids, **values)
        config.references()  # so that a bad value is found before the first cell
    except TypeError as error:
        raise UsageError(
            expected=f"the keys of a text recipe in {path}",
            found=str(error),
            todo="Compare with eval/recipes/text-gain.toml.",
        ) from error
    _check_editions(config)
    return replace(config, private_sets=_chosen(config.private_sets, private_sets))


def read_labels_recipe(path: Path, private_sets: list[str] | None = None) -> TextLabelsConfig:
    """Reads a recipe of labelled documents.

    Args:
        path: of `text_recipe_path`.
        private_sets: only these of it.

    Raises:
        UsageError: a key that it does not have or misses, or a set that it does not name.
    """
    values = _read(path)
    tables: dict[str, type[Any]] = {
        "classifier": TextClassifierConfig,
        "finetune": FinetuneConfig,
        "reweight": ReweightConfig,
    }
    try:
        made = {name: of(**values.pop(name)) for name, of in tables.items() if name in values}
        config = TextLabelsConfig(**made, **values)
    except TypeError as error:
        raise UsageError(
            expected=f"the keys of a recipe of labelled texts in {path}",
            found=str(error),
            todo="Compare with eval/recipes/text-labels.toml.",
        ) from error
    _check_editions(config)
    return replace(config, private_sets=_chosen(config.private_sets, private_sets))


def _read(path: Path) -> dict[str, Any]:
    """The values of a recipe, less its kind.

    Raises:
        UsageError: it asks for nothing.
    """
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    values.pop("kind")
    for name in ("private_sets", "n", "epsilon", "seeds"):
        if values.get(name) == []:
            raise UsageError(
                expected=f"one or more of {name} in {path}",
                found="none",
                todo="Compare with eval/recipes/text-gain.toml.",
            )
    return values


def _check_editions(config: TextBenchConfig | TextLabelsConfig) -> None:
    for name, edition in config.editions.items():
        if name not in config.private_sets or edition not in range(1, NEWEST + 1):
            raise UsageError(
                expected=f"editions from 1 to {NEWEST} of private sets of the recipe",
                found=f"{name} = {edition!r}",
                todo="Correct the table [editions], or leave it out.",
            )


def _chosen(named: list[str], only: list[str] | None) -> list[str]:
    """The sets of a recipe, or those of them that were asked for."""
    if unknown := sorted(set(only or []) - set(named)):
        raise UsageError(
            expected=f"private sets of the recipe: {', '.join(named)}",
            found=", ".join(unknown),
            todo="Choose out of these.",
        )
    return named if only is None else only
