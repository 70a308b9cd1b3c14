"""Benchmark recipes: TOML on disk, a frozen dataclass inside, and the cells they stand for."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperdp.errors import UsageError
from hyperdp.eval.study import CONTROLS, SamplingConfig
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.reweight import ReweightConfig

RECIPES = Path(__file__).parent / "recipes"
METHODS = ("floor", "base", "lora", *CONTROLS, "hyper", "reweighted")
NEEDS_RELEASE = ("hyper", "reweighted")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A benchmark recipe.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder.
        private_sets: see `hyperdp.eval.private_sets`.
        n: numbers of private records. epsilon: budgets. delta: of every budget.
        seeds: of draws of records, starting noise and training; the noise of a release has none.
        methods: out of `METHODS`; `floor` is the private records themselves, `reweighted` trains
            what `hyper` emits on, on public records re-weighted to have the released mean.
        public: the public records of `reweighted` (`hyperdp pretrain public`).
        reweight: its settings.
        labelled: one adapter for each class, measured by how many of its images a classifier of the
            reference set reads as that class.
        sampling: the same for every cell; with count = 0 only the held-out loss is measured.
        finetune: of the method `lora`.
        variants: other settings of non-private LoRA; the method `lora/NAME` uses them. For tuning,
            on public tasks (`hyperdp pretrain tasks`).
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
    public: str = "runs/public.npz"
    reweight: ReweightConfig = field(default_factory=ReweightConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    variants: dict[str, FinetuneConfig] = field(default_factory=dict)


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
    known = [*METHODS, *(f"lora/{name}" for name in config.variants)]
    if unknown := sorted(set(config.methods) - set(known)):
        raise UsageError(
            expected=f"methods out of {', '.join(known)}",
            found=", ".join(unknown),
            todo="Correct the recipe.",
        )
    for name in config.private_sets:
        for method in known:
            if method in config.methods and method not in NEEDS_RELEASE:
                yield Cell(
                    private_set=name, method=method, n=None, epsilon=None, seed=config.seeds[0]
                )
        for method in known:
            if method in config.methods and method in NEEDS_RELEASE:
                for n in config.n:
                    for epsilon in config.epsilon:
                        for seed in config.seeds:
                            yield Cell(
                                private_set=name, method=method, n=n, epsilon=epsilon, seed=seed
                            )


def read_bench_recipe(
    name_or_path: str, only: list[str] | None = None, methods: list[str] | None = None
) -> BenchConfig:
    """Reads a bench recipe.

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
            todo=f"Shipped recipes: {', '.join(sorted(p.stem for p in RECIPES.glob('*.toml')))}.",
        )
    try:
        values = tomllib.loads(path.read_text())
        config = BenchConfig(
            **{
                **values,
                "sampling": SamplingConfig(**values.get("sampling", {})),
                "finetune": FinetuneConfig(**values.get("finetune", {})),
                "reweight": ReweightConfig(**values.get("reweight", {})),
                "variants": {
                    name: FinetuneConfig(**variant)
                    for name, variant in values.get("variants", {}).items()
                },
            }
        )
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UsageError(
            expected=f"a bench recipe in {path}", found=str(error), todo="Correct the file."
        ) from error
    if only:
        config = dataclasses.replace(config, private_sets=only)
    if methods:
        config = dataclasses.replace(config, methods=methods)
    return config
