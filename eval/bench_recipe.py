"""Benchmark recipes: TOML on disk, a frozen dataclass inside, and the cells they stand for."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hyperdp.errors import UsageError
from hyperdp.eval.cells import Cell
from hyperdp.eval.hybrids import HybridConfig
from hyperdp.eval.methods import HYBRIDS, LEARNERS, METHODS
from hyperdp.eval.nearest import NearestConfig
from hyperdp.eval.study import SamplingConfig
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.inversion import InversionConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.reweight import ReweightConfig

RECIPES = Path(__file__).parent / "recipes"
Steps = TypeVar("Steps", bound=FitConfig)
BY_NAME = ("fits", "hybrids")  # fields with settings of several methods, by name


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A benchmark recipe.

    Attributes:
        bench: its name, in every row.
        bundle: name or folder.
        private_sets: see `hyperdp.eval.private_sets`.
        n: numbers of private records. epsilon: budgets. delta: of every budget.
        seeds: of draws of records, starting noise and training; the noise of a release has none.
        methods: out of `METHODS`; `METHOD/VARIANT` for one with a variant's settings, `METHOD/*`
            for all of its variants.
            `floor`: the private records themselves. `lora`, `lora_n`, `full`: fine-tuning without
            privacy, on all records and on n, and of all weights. `shared`: LoRA on `public`, the
            one shared LoRA beside `public_mean`. `reweighted`: trains what `hyper` emits on, on
            `public` re-weighted to have the released mean. `nearest`: the LoRA of the public tasks
            nearest to a release, out of `library`. `dpagg`: one noisy mean of the condition that
            each record is best explained by. `evolution`: Private Evolution, whose
            result is images. `dpsgd` … `anadp`: `hyperdp fit`. `hybrid_dpsgd`, `hybrid_prism`:
            `hyperdp private --refine`.
        public: public records (`hyperdp pretrain public`).
        labelled: one adapter for each class, measured by how many of its images a classifier of the
            reference set reads as that class.
        sampling: the same for every cell; with count = 0 only the held-out loss is measured.
        library: folder of public tasks and their LoRAs (`hyperdp pretrain library`).
        finetune, full, reweight, inversion, nearest, evolution: settings of the methods that
            `METHODS` gives these fields; `evolution` makes as many images, in as many steps, as
            `sampling` says.
        fits: settings of the step-trained learners by name, but for the public size N: that is n.
        hybrids: settings of the hybrids by name, likewise.
        variants: method → name → settings that it has otherwise. For tuning, on public tasks
            (`hyperdp pretrain tasks`).
        tuning: recipes of variants, measured before. A method that has variants there takes the one
            that was best (`hyperdp.eval.tuning`).
        reuse: recipes that measure some of these cells in the same way; their rows are taken over
            (`hyperdp.eval.reuse`).
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
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    full: FinetuneConfig = field(default_factory=FinetuneConfig)
    reweight: ReweightConfig = field(default_factory=ReweightConfig)
    library: str = "runs/library"
    inversion: InversionConfig = field(default_factory=InversionConfig)
    nearest: NearestConfig = field(default_factory=NearestConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    fits: dict[str, FitConfig] = field(default_factory=dict)
    hybrids: dict[str, HybridConfig] = field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    tuning: list[str] = field(default_factory=list)
    reuse: list[str] = field(default_factory=list)

    @property
    def known(self) -> list[str]:
        """Every method that this recipe can name, a method's variants after it."""
        return [
            name
            for method in METHODS
            for name in (method, *(f"{method}/{v}" for v in self.variants.get(method, {})))
        ]

    def settings(self, method: str) -> Any:
        """The settings dataclass of a method of this recipe; None where it has none.

        Args:
            method: out of `METHODS`, with the variant's name after a stroke.

        Raises:
            TypeError: a variant's key does not fit.
            UsageError: a value does not, or a learner without settings.
        """
        name, _, variant = method.partition("/")
        place = METHODS[name].settings
        if not place:
            return None
        base = getattr(self, place)
        if place in BY_NAME:
            if name not in base:
                raise UsageError(
                    expected=f"settings of {name} in [{place}.{name}]",
                    found=", ".join(base) or "none",
                    todo="Add them to the recipe.",
                )
            base = base[name]
        given = self.variants[name][variant] if variant else {}
        changes = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        if "expected_batch" in changes:  # `at_size` gives the size that a cell has
            changes = {**changes, "size": changes["expected_batch"]}
        return dataclasses.replace(base, **changes)


def cells(config: BenchConfig) -> Iterator[Cell]:
    """Every cell of a recipe, the references of a set before what is compared with them.

    Raises:
        UsageError: an unknown method.
    """
    chosen = _chosen(config)
    for name in config.private_sets:
        for method in chosen:
            needs = METHODS[method.partition("/")[0]].needs
            for n in config.n if needs != "set" else [None]:
                for epsilon in config.epsilon if needs == "budget" else [None]:
                    for seed in config.seeds if needs != "set" else config.seeds[:1]:
                        yield Cell(private_set=name, method=method, n=n, epsilon=epsilon, seed=seed)


def _chosen(config: BenchConfig) -> list[str]:
    """The recipe's methods in the order of `METHODS`, stars spelt out."""
    known = config.known
    wanted = set()
    for method in config.methods:
        stem = method.removesuffix("*")
        fitting = [m for m in known if m == method or (stem != method and m.startswith(stem))]
        if not fitting:
            raise UsageError(
                expected=f"methods out of {', '.join(known)}",
                found=method,
                todo="Correct the recipe.",
            )
        wanted |= set(fitting)
    return [method for method in known if method in wanted]


def at_size(config: Steps, n: int) -> Steps:
    """A learner's settings for n units, which a benchmark takes for public.

    Args:
        config: as the recipe has them.
        n: units; a larger batch than that is made as large.
    """
    return dataclasses.replace(config, size=n, expected_batch=min(config.expected_batch, n))


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
        config = _build(tomllib.loads(path.read_text()))
        for method in config.known:  # so that a bad value is found before the first cell
            if METHODS[method.partition("/")[0]].settings not in BY_NAME or "/" in method:
                config.settings(method)
    except (tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise UsageError(
            expected=f"a bench recipe in {path}", found=str(error), todo="Correct the file."
        ) from error
    if only:
        config = dataclasses.replace(config, private_sets=only)
    if methods:
        config = dataclasses.replace(config, methods=methods)
    return config


def _build(values: dict[str, Any]) -> BenchConfig:
    parts = {
        "sampling": SamplingConfig,
        "finetune": FinetuneConfig,
        "full": FinetuneConfig,
        "reweight": ReweightConfig,
        "inversion": InversionConfig,
        "nearest": NearestConfig,
        "evolution": EvolutionConfig,
    }
    built = {name: kind(**values[name]) for name, kind in parts.items() if name in values}
    if unknown := sorted(set(values.get("variants", {})) - set(METHODS)):
        raise UsageError(
            expected=f"[variants.METHOD.NAME] of a method: {', '.join(METHODS)}",
            found=", ".join(unknown),
            todo="Correct the recipe.",
        )
    fits = {name: fit_settings(name, given) for name, given in values.get("fits", {}).items()}
    hybrids = {
        name: hybrid_settings(name, given) for name, given in values.get("hybrids", {}).items()
    }
    return BenchConfig(**{**values, **built, "fits": fits, "hybrids": hybrids})


def fit_settings(name: str, values: dict[str, Any]) -> FitConfig:
    """A learner's settings as a recipe has them; its size is put in cell by cell.

    Args:
        name: of the learner.
        values: fields of `FitConfig`.

    Raises:
        UsageError: there is no such learner.
    """
    return FitConfig(**_by_name(name, values, "fits", LEARNERS), method=name)


def hybrid_settings(name: str, values: dict[str, Any]) -> HybridConfig:
    """A hybrid's settings, likewise.

    Args:
        name: of the hybrid.
        values: fields of `HybridConfig`.

    Raises:
        UsageError: there is no such hybrid.
    """
    method = name.removeprefix("hybrid_")
    return HybridConfig(**_by_name(name, values, "hybrids", HYBRIDS), method=method)


def _by_name(
    name: str, values: dict[str, Any], place: str, known: tuple[str, ...]
) -> dict[str, Any]:
    if name not in known:
        raise UsageError(
            expected=f"[{place}.NAME] of a learner: {', '.join(known)}",
            found=name,
            todo="Correct the recipe.",
        )
    batch = values.get("expected_batch", FitConfig.expected_batch)
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()} | {
        "size": batch
    }
