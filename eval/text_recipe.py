"""Recipes of the text bench: TOML on disk, a frozen dataclass inside."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.eval.bench_recipe import fit_settings
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.reweight import OF_TEXTS, ReweightConfig

RECIPES = Path(__file__).parent / "recipes"
KIND = "text"


@dataclass(frozen=True, kw_only=True)
class TextBenchConfig:
    """A recipe of the text bench; in TOML with `kind = "text"`.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder of a text bundle.
        private_sets: out of `hyperdp.eval.text_sets.TEXT_SETS`.
        n: numbers of private documents; those that a set does not have are left out.
        epsilon: budgets. delta: of every budget.
        seeds: of draws of documents; the noise of a release has none.
        finetune: of the non-private LoRA, on the whole pool.
        fits: settings of step-trained rivals by method: a learner's name, or `NAME/VARIANT` where
            several are compared. Their public size is n, cell by cell.
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
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    fits: dict[str, FitConfig] = field(default_factory=dict)
    public: str = ""
    shared: FinetuneConfig = field(default_factory=FinetuneConfig)
    reweight: ReweightConfig = OF_TEXTS
    canaries: int = 0
    repeats: int = 1
    candidates: int = 4095


def text_recipe_path(name_or_path: str) -> Path | None:
    """The file of a text recipe; None where the recipe is of another kind, or there is none."""
    path = Path(name_or_path)
    path = path if path.is_file() else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None  # the other reader says what is wrong with it
    return path if values.get("kind") == KIND else None


def read_text_recipe(path: Path, private_sets: list[str] | None = None) -> TextBenchConfig:
    """Reads a recipe.

    Args:
        path: of `text_recipe_path`.
        private_sets: only these of it.

    Raises:
        UsageError: a key that it does not have or misses, or a set that it does not name.
    """
    values: dict[str, Any] = tomllib.loads(path.read_text())
    values.pop("kind")
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
        config = TextBenchConfig(**tables, fits=fits, **values)
    except TypeError as error:
        raise UsageError(
            expected=f"the keys of a text recipe in {path}",
            found=str(error),
            todo="Compare with eval/recipes/text-gain.toml.",
        ) from error
    wanted = config.private_sets if private_sets is None else private_sets
    if unknown := sorted(set(wanted) - set(config.private_sets)):
        raise UsageError(
            expected=f"private sets of the recipe: {', '.join(config.private_sets)}",
            found=", ".join(unknown),
            todo="Choose out of these.",
        )
    return TextBenchConfig(**{**config.__dict__, "private_sets": wanted})
