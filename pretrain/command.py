"""Trains what a recipe says: the one way in for the command line and for launched processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperdp.bundle import Bundle
from hyperdp.pretrain.base import BaseConfig, train_base
from hyperdp.pretrain.hyper import HyperConfig, train_hyper
from hyperdp.pretrain.recipe import open_recipe_texts, open_recipe_world, read_recipe
from hyperdp.pretrain.run_folder import claimed, run_settings
from hyperdp.pretrain.text_base import TextBaseConfig, train_text_base
from hyperdp.pretrain.text_hyper import TextHyperConfig, train_text_hyper
from hyperdp.pretrain.values import build
from hyperdp.pretrain.world import World
from hyperdp.processes import processes
from hyperdp.text_bundle import TextBundle

TEXT_FAMILY = "causal-lm"


def output_folder(recipe: str, out: Path | None) -> Path:
    """Where a run goes: `out`, or `runs/RECIPE`."""
    return out if out is not None else Path("runs") / Path(recipe).stem


def run_base(recipe: str, out: Path | None, steps: int | None) -> Path:
    """Trains a base model, or goes on with it.

    Args:
        recipe: a TOML file, or a shipped recipe's name.
        out: folder of the run; `runs/RECIPE` when None.
        steps: instead of the recipe's.

    Returns:
        The folder, with the base in it.

    Raises:
        UsageError: the recipe is none, or not one of a base; the folder is another run's, or
            another process trains in it.
    """
    values = _with_steps(read_recipe(recipe, "base"), steps)
    folder = output_folder(recipe, out)
    if values.get("family") == TEXT_FAMILY:
        texts = open_recipe_texts(values)  # takes the corpus out of the values
        text_config = build(TextBaseConfig, values)
        with claimed(folder, run_settings("base", text_config, corpus=texts.digest)):
            train_text_base(text_config, folder, texts)
    else:
        world = _open(values)
        config = build(BaseConfig, values)
        with claimed(folder, run_settings("base", config, corpus=world.digest)):
            train_base(config, folder, world)
    return folder


def run_hyper(
    recipe: str,
    out: Path | None,
    steps: int | None,
    *,
    base: Path | None,
    freeze_base: bool = False,
    command: str,
) -> Bundle | TextBundle:
    """Trains encoder and hypernetwork, or goes on with them.

    Args:
        recipe: a TOML file, or a shipped recipe's name.
        out: folder of the run; `runs/RECIPE` when None.
        steps: instead of the recipe's.
        base: any local diffusers folder of a family that hyperdp has; the recipe's when None.
        freeze_base: leave the base as it is, whatever the recipe's `base_weight`.
        command: what was typed, for the record.

    Returns:
        The bundle.

    Raises:
        UsageError: the recipe is none, or not one of a hypernetwork; the base is no known one; the
            folder is another run's, or another process trains in it.
    """
    values = _with_steps(read_recipe(recipe, "hyper"), steps)
    values = values if base is None else {**values, "base": str(base)}
    folder = output_folder(recipe, out)
    if values.get("family") == TEXT_FAMILY:
        texts = open_recipe_texts(values)
        text_config = build(TextHyperConfig, values)
        settings = run_settings(
            "hyper", text_config, corpus=texts.digest, base=Path(text_config.base)
        )
        with claimed(folder, settings):
            return train_text_hyper(text_config, folder, texts, command=command)
    values = {**values, "base_weight": 0.0} if freeze_base else values  # texts' is always frozen
    world = _open(values)
    config = build(HyperConfig, values)
    settings = run_settings("hyper", config, corpus=world.digest, base=Path(config.base))
    with claimed(folder, settings):
        return train_hyper(config, folder, world, command=command)


def _with_steps(values: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """A recipe with another number of steps."""
    return (
        values if steps is None else {**values, "loop": {**values.get("loop", {}), "steps": steps}}
    )


def _open(values: dict[str, object]) -> World:
    with processes().main_process_first():  # which may have to render it
        return open_recipe_world(values)
