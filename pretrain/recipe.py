"""Recipes: TOML on disk, frozen dataclasses inside."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.pretrain.corpus import Corpus, open_corpus
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.image_corpus import INDEX, open_images
from hyperdp.pretrain.image_tasks import ImageWorld
from hyperdp.pretrain.printed import open_further_scripts
from hyperdp.pretrain.text_corpus import TextCorpus, open_text_corpus, open_text_sample
from hyperdp.pretrain.text_forms import open_formed_corpus, open_unread_corpus
from hyperdp.pretrain.text_registers import open_wide_corpus
from hyperdp.pretrain.world import GlyphWorld, World

RECIPES = Path(__file__).parent / "recipes"


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
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            expected="valid TOML in UTF-8", found=f"{error} in {path}", todo="Mend the file."
        ) from error
    if recipe.pop("kind", None) != kind:
        raise UsageError(
            expected=f'kind = "{kind}" in {path}',
            found="another kind",
            todo="Choose a fitting recipe.",
        )
    return recipe


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
        expected='corpus = "glyphs", "sample" or a folder that `hyperdp pretrain images` wrote',
        found=repr(name),
        todo="Correct the recipe.",
    )


def open_recipe_world(values: dict[str, Any]) -> World:
    """The public data that a recipe names; takes the key `corpus` out of `values`.

    `corpus` is as for `open_recipe_corpus`, or the folder that `hyperdp pretrain images` wrote.

    Raises:
        UsageError: it is neither.
    """
    name = str(values.get("corpus", "glyphs"))
    if (Path(name) / INDEX).is_file():
        del values["corpus"]
        return ImageWorld(open_images(Path(name)))
    further = open_further_scripts if name == "glyphs" else None
    return GlyphWorld(open_recipe_corpus(values), further)


def open_recipe_texts(values: dict[str, Any]) -> TextCorpus:
    """The public texts that a recipe names; takes the key `corpus` out of `values`.

    `corpus = "text"` (the default) is gathered from the installed packages into the cache;
    `corpus = "text-wide"` has registers beside it that are far from literature;
    `corpus = "text-forms"` has made-up forms beside these, for ρ and for no base;
    `corpus = "text-unread"` has more of these, and files of installed packages;
    `corpus = "text-sample"` is the small one that ships for tests.
    """
    name = values.pop("corpus", "text")
    if name == "text-sample":
        return open_text_sample()
    if name == "text":
        return open_text_corpus()
    if name == "text-wide":
        return open_wide_corpus()
    if name == "text-forms":
        return open_formed_corpus()
    if name == "text-unread":
        return open_unread_corpus()
    raise UsageError(
        expected='corpus = "text", "text-wide", "text-forms", "text-unread" or "text-sample"',
        found=repr(name),
        todo="Correct the recipe.",
    )
