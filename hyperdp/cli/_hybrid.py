"""`hyperdp pretrain hybrid`: which share of a budget steps should get, from public tasks."""

from __future__ import annotations

import dataclasses
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdp.cli._bars import counting_bar
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle

FORMS = 8  # that a task of texts mixes
Tasks = dict[str, "Callable[[], Tensor]"]


def hybrid_command(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or a shipped one's name.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What is tried: a TOML file, or a shipped recipe's name; hybrid-glyphs for a "
            "bundle of images, hybrid-texts for one of texts.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of hybrid.json; the bundle's own by default."),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Held-out public tasks.")] = 6,
    corpus: Annotated[
        str,
        typer.Option(
            help="The public data of the bundle: `glyphs`, the folder that `hyperdp pretrain "
            "images` wrote, or `sample`, which ships for tests. Not for texts."
        ),
    ] = "glyphs",
    microbatch: Annotated[int, typer.Option(min=1, help="Records in memory at once.")] = 32,
    work: Annotated[
        Path, typer.Option(help="Folder where measurements are kept, to go on after a kill.")
    ] = Path("runs/hybrid"),
    seed: Annotated[int, typer.Option(help="Of the draws of public tasks.")] = 0,
) -> None:
    """Find, on held-out public tasks, how `private --refine` should split a budget.

    Every candidate is a real hybrid with a ledger of its own: hours for the shipped recipe.
    The table names the bundle by its hash and is refused beside any other.

    Example: hyperdp pretrain hybrid glyphs

    Example: hyperdp pretrain hybrid text-tiny --tasks 2
    """
    from hyperdp.eval.bench_recipe import RECIPES
    from hyperdp.eval.hybrid_search import read_search, search_hybrid
    from hyperdp.eval.results import provenance
    from hyperdp.hybrid_table import HybridTable
    from hyperdp.private.learners.config import Pace
    from hyperdp.text_bundle import TextBundle, open_bundle

    loaded = open_bundle(bundle)
    texts = isinstance(loaded, TextBundle)
    recipe = recipe or ("hybrid-texts" if texts else "hybrid-glyphs")
    path = Path(recipe) if Path(recipe).is_file() else RECIPES / f"{recipe}.toml"
    try:
        search = read_search(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            expected="a recipe: a TOML file or a shipped name",
            found=f"{recipe!r} ({error})",
            todo="Shipped are hybrid-glyphs and hybrid-texts; see eval/recipes.",
        ) from error
    folder = out if out is not None else loaded.path
    folder.mkdir(parents=True, exist_ok=True)
    public = (
        _text_tasks(loaded, tasks, search.records, seed)
        if isinstance(loaded, TextBundle)
        else _image_tasks(loaded, corpus, tasks, search.records, seed)
    )
    began = time.monotonic()
    with counting_bar() as bar:
        step = bar.add_task("hybrids on public tasks", total=None)
        cells = search_hybrid(
            loaded,
            public,
            search,
            work / f"hybrid-{loaded.hash[:12]}.jsonl",
            pace=Pace(microbatch=microbatch),
            progress=lambda done, total: bar.update(step, completed=done, total=total),
        )
    facts = {
        **provenance(),
        "seconds": round(time.monotonic() - began),
        "search": dataclasses.asdict(search),
    }
    table = HybridTable(
        bundle=loaded.name,
        bundle_hash=loaded.hash,
        delta=search.delta,
        cells=cells,
        made=facts,
    )
    for cell in cells:
        typer.echo(
            f"{cell.method} n={cell.size} ε={cell.epsilon:g}: f={cell.fraction:g}, recovered gain "
            f"{cell.gain:.2f} against {cell.one_shot:.2f} of one release alone"
        )
    typer.echo(f"table in {table.save(folder)}")


def _image_tasks(bundle: Bundle, corpus: str, count: int, records: int, seed: int) -> Tasks:
    """Held-out tasks of public images, float32 [records, C, H, W] each."""
    import torch

    from hyperdp.pretrain.fitting import fit
    from hyperdp.pretrain.provenance import check_corpus
    from hyperdp.pretrain.recipe import open_recipe_world

    world = open_recipe_world({"corpus": corpus})
    check_corpus(bundle.path, world.digest)
    sampler = world.tasks(1, {"everything": 0.0})

    def draw(index: int) -> Tensor:
        rng = torch.Generator().manual_seed(1_000_003 * seed + index)  # a task's own
        return fit(sampler.draw(1, records, rng)[0], bundle.config.image_shape)

    return {f"{corpus} {seed}-{index}": partial(draw, index) for index in range(count)}


def _text_tasks(bundle: TextBundle, count: int, records: int, seed: int) -> Tasks:
    """Held-out passages in forms that no training has seen, tokens int64 [records, L] each."""
    from hyperdp.eval.text_study import to_tokens
    from hyperdp.pretrain.text_forms import unseen_forms

    found = unseen_forms(count, records, forms=FORMS, seed=seed)
    return {
        f"{name} {seed}": partial(to_tokens, bundle, documents) for name, documents in found.items()
    }
