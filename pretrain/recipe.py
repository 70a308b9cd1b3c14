"""Recipes: TOML on disk, frozen dataclasses inside."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hyperdp.errors import UsageError
from hyperdp.pretrain.corpus import Corpus, open_corpus
from hyperdp.pretrain.corpus_sample import open_sample

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


def read_recipe(name_or_path: str, kind: str) -> dict[str, Any]:
    """Reads a recipe by the name of a shipped one or by path.

    Args:
        name_or_path: `glyphs-base`, or a path to a TOML file.
        kind: `base` or `hyper`; the recipe must say the same.

    Returns:
        The recipe as plain types, without `kind`.

    Raises:
        UsageError: no such recipe, bad TOML, or another kind.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UsageError(
            expected="a recipe: a TOML file or a shipped name",
            found=f"{name_or_path!r}",
            todo=f"Shipped recipes: {shipped}.",
        )
    try:
        recipe = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            expected="valid TOML", found=f"{error} in {path}", todo="Mend the file."
        ) from error
    if recipe.pop("kind", None) != kind:
        raise UsageError(
            expected=f'kind = "{kind}" in {path}',
            found="another kind",
            todo="Choose a fitting recipe.",
        )
    return recipe


def build(cls: type[T], values: dict[str, Any]) -> T:
    """Builds a frozen dataclass, nested ones too, from plain types.

    Raises:
        UsageError: a key that the dataclass does not have, or one that it misses.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise UsageError(
            expected=f"keys of {cls.__name__}: {', '.join(sorted(known))}",
            found=", ".join(unknown),
            todo="Remove or rename them.",
        )
    built = {}
    for key, value in values.items():
        hint = hints[key]
        built[key] = (
            build(hint, value)
            if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict)
            else value
        )
    try:
        return cls(**built)
    except TypeError as error:
        raise UsageError(
            expected=f"every required key of {cls.__name__}", found=str(error), todo="Add it."
        ) from error


def open_recipe_corpus(values: dict[str, Any]) -> Corpus:
    """The corpus that a recipe names; takes the key `corpus` out of `values`.

    `corpus = "glyphs"` (the default) is rendered from the installed fonts into the cache;
    `corpus = "sample"` is the small one that ships for tests.
    """
    name = values.pop("corpus", "glyphs")
    if name == "sample":
        return open_sample()
    if name == "glyphs":
        return open_corpus()
    raise UsageError(
        expected='corpus = "glyphs" or "sample"', found=repr(name), todo="Correct the recipe."
    )
