"""`hyperdp pretrain forecast`: what `plan`, the guard and `drift` know, from public tasks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hyperdp.cli._bars import counting_bar
from hyperdp.cli._device import OnDevice, on_device
from hyperdp.cli.plan import check_picture
from hyperdp.errors import UsageError
from hyperdp.forecast import FORECAST_FILE, load_forecast

if TYPE_CHECKING:
    from hyperdp.forecast import Forecast
    from hyperdp.pretrain.forecast import ForecastConfig
    from hyperdp.pretrain.world import World

SHOWN = 14  # records of each task in the picture


def forecast_command(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or a shipped one's name.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the files; the bundle's own by default."),
    ] = None,
    tasks: Annotated[int, typer.Option(min=9, help="Held-out public tasks of the table.")] = 24,
    like: Annotated[
        Literal["any", "print", "hand"],
        typer.Option(
            help="What the tasks are like: of every kind, printed scripts, or a few characters by "
            "many hands. Tables of other kinds are kept; `plan --like` chooses."
        ),
    ] = "any",
    lora_steps: Annotated[
        int, typer.Option(min=1, help="Steps of non-private LoRA; the benchmark's are 1500.")
    ] = 1500,
    fid: Annotated[
        bool, typer.Option("--fid", help="Measure FID too: images for every cell, hours.")
    ] = False,
    samples: Annotated[int, typer.Option(min=64, help="Images of each cell, with --fid.")] = 1000,
    levels: Annotated[
        int,
        typer.Option(min=2, help="Noise levels, between the least and the most; fewer are sooner."),
    ] = 8,
    noise_std: Annotated[
        list[float] | None,
        typer.Option("--noise-std", help="These noise levels of the mean, instead of --levels."),
    ] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            "-n",
            min=1,
            help="A number of units of the table; may be repeated. 64, 256 and 2048 by default; "
            "LoRA is trained on the largest.",
            show_default=False,
        ),
    ] = None,
    guard: Annotated[bool, typer.Option(help="Make the guard's calibration data.")] = True,
    guard_tasks: Annotated[
        int,
        typer.Option(
            min=100, help="Training tasks, and twice as many held-out ones, of the guard."
        ),
    ] = 600,
    table: Annotated[bool, typer.Option(help="Make the table of the forecast.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Measure nothing: draw records of each task beside its gain, from the forecast "
            "that there is. --tasks, --like, --fid and --seed as it was made with.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        str,
        typer.Option(
            help="The public data of the bundle: `glyphs`, the folder that `hyperdp pretrain "
            "images` wrote, or `sample`, which ships for tests."
        ),
    ] = "glyphs",
    work: Annotated[
        Path,
        typer.Option(
            help="Folder where finished tasks are kept: to go on after a kill, and to be shared by "
            "several processes."
        ),
    ] = Path("runs/forecast"),
    seed: Annotated[int, typer.Option(help="Of the draws of public tasks.")] = 0,
    device: OnDevice = "cpu",
) -> None:
    """Measure a bundle on held-out public tasks, once, for `plan`, the guard and `drift`.

    Both files name the bundle by its hash and are refused beside any other bundle. Several
    processes with one --work share the tasks between them; all but one want --no-guard.

    Example: hyperdp pretrain forecast runs/glyphs/bundle

    Example: hyperdp pretrain forecast glyphs --no-guard --fid --tasks 9 --like print

    Example: hyperdp pretrain forecast glyphs --tasks 9 --fid --picture tasks.png
    """
    from hyperdp.bundle import load_bundle
    from hyperdp.eval.results import provenance
    from hyperdp.forecast import Forecast, ForecastTable
    from hyperdp.pretrain.forecast import (
        DEFAULT_UNITS,
        ForecastConfig,
        Measure,
        loss_measure,
        make_tables,
        spread_levels,
    )
    from hyperdp.pretrain.guard import GuardConfig, make_guard
    from hyperdp.pretrain.provenance import check_corpus
    from hyperdp.pretrain.recipe import open_recipe_world

    check_picture(picture, "--picture")
    if not (guard or table or picture):
        raise UsageError(
            expected="something to make",
            found="--no-guard and --no-table",
            todo="Leave one of them out.",
        )
    loaded = on_device(load_bundle(bundle), device)
    folder = out if out is not None else loaded.path
    folder.mkdir(parents=True, exist_ok=True)
    public = open_recipe_world({"corpus": corpus})
    check_corpus(loaded.path, public.digest)
    config = ForecastConfig(
        tasks=tasks,
        like=like,
        units=tuple(sorted(set(sizes or DEFAULT_UNITS))),
        noise_std=tuple(sorted(set(noise_std))) if noise_std else spread_levels(levels),
        queries=1000 if fid else 256,
        seed=seed,
    )
    if table and picture is None:
        _check_room(folder, loaded.hash, like, fid=fid)
    if picture is not None:
        _draw(picture, load_forecast(folder, loaded.hash), public, config)
        return
    with counting_bar() as bar:
        if guard:
            step = bar.add_task("guard: tasks", total=3 * guard_tasks)
            asked = GuardConfig(reference=guard_tasks, calibration=2 * guard_tasks, seed=seed)
            made = make_guard(
                loaded, public, asked, lambda done, _: bar.update(step, completed=done)
            )
            typer.echo(f"guard in {made.save(folder)}")
        if not table:
            return
        import torch

        from hyperdp.eval.study import SamplingConfig, lora_weights
        from hyperdp.lora import Weights
        from hyperdp.private.finetune import FinetuneConfig

        began = time.monotonic()
        # As in the bench `glyphs-gain`: what is foretold is that table's gain.
        sampling = SamplingConfig(count=samples, steps=24, batch_size=100)
        finetune = FinetuneConfig(rank=8, steps=lora_steps, lr=3e-3)
        measures: dict[str, Measure] = {"loss": loss_measure}
        if fid:
            from hyperdp.eval.features import EfficientNetLite0
            from hyperdp.eval.forecast_measures import FidMeasure

            measures["fid"] = FidMeasure(EfficientNetLite0(loaded.device), sampling)

        def nonprivate(records: torch.Tensor, number: int) -> Weights:
            return lora_weights(loaded, records, finetune, seed=number)

        step = bar.add_task("forecast: tasks", total=tasks)
        settings = {"finetune": dataclasses.asdict(finetune)}
        if fid:
            settings["sampling"] = dataclasses.asdict(sampling)
        tables: list[ForecastTable] = make_tables(
            loaded,
            public,
            config,
            work,
            nonprivate=nonprivate,
            measures=measures,
            settings=settings,
            progress=lambda done, _: bar.update(step, completed=done),
        )
    facts = {
        **provenance(loaded.device),
        "seconds": round(time.monotonic() - began),
        "settings": settings,
    }
    forecast = Forecast(
        bundle=loaded.name, bundle_hash=loaded.hash, tables=tables, made={like: facts}
    )
    typer.echo(f"forecast in {forecast.add_to(folder)}")


def _check_room(folder: Path, bundle_hash: str, like: str, *, fid: bool) -> None:
    """Finds before hours of work that what will be written has no place.

    Raises:
        BundleError: there is a forecast of another bundle in the folder, or a damaged one.
        UsageError: there are tables of more than will be measured, which would be lost.
    """
    if not (folder / FORECAST_FILE).is_file():
        return
    if "fid" in load_forecast(folder, bundle_hash).quantities(like) and not fid:
        raise UsageError(
            expected=f"--fid, as {folder / FORECAST_FILE} has tables of FID for tasks like {like}",
            found="a table of the loss alone to take their place",
            todo="Add --fid, or write to another folder with -o.",
        )


def _draw(picture: Path, forecast: Forecast, public: World, config: ForecastConfig) -> None:
    from hyperdp.eval.plan_picture import draw_tasks
    from hyperdp.pretrain.forecast import sample_tasks

    gains = forecast.table(like=config.like).best_gains()
    if len(gains) != config.tasks:
        raise UsageError(
            expected=f"--tasks {len(gains)}, which the forecast was made of",
            found=str(config.tasks),
            todo="Give --tasks, --like, --fid and --seed as it was made with.",
        )
    with counting_bar() as bar:
        step = bar.add_task("drawing tasks", total=config.tasks)
        samples = sample_tasks(
            public, config, SHOWN, progress=lambda done, _: bar.update(step, completed=done)
        )
    typer.echo(f"tasks in {draw_tasks(samples, gains, picture)}")
