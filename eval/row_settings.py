"""What a row was measured with: a digest of settings beside it, so that others are other rows.

Rows from before there were digests have none, and count for what their recipe said then.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from hyperdp.eval.cells import Cell
from hyperdp.eval.methods import METHODS
from hyperdp.eval.results import Row

if TYPE_CHECKING:
    from hyperdp.eval.bench_recipe import BenchConfig
    from hyperdp.eval.labelled_recipe import LabelledConfig

ON_PUBLIC = {"shared", "reweighted"}  # trained on public records: which ones is a setting


def bench_settings(config: BenchConfig, cell: Cell | Row) -> str:
    """The digest of a cell of an image bench: images, budget, and what its method is told.

    Args:
        config: the recipe.
        cell: of it, or the row of one.
    """
    method = cell.method.partition("/")[0]
    values: list[object] = [config.sampling, config.labelled]
    if method in METHODS:
        values.append(_told(config, cell.method))
        values.append(max(config.n) if METHODS[method].needs == "set" else None)
    values.append(config.public if method in ON_PUBLIC else None)
    values.append(config.delta if cell.epsilon is not None else None)
    return _digest(values)


def _told(config: BenchConfig, method: str) -> object:
    """A method's settings; None where another recipe's trials choose them (`tuning`)."""
    name, _, variant = method.partition("/")
    place = METHODS[name].settings
    if place in ("fits", "hybrids") and name not in getattr(config, place):
        return None
    if variant and variant not in config.variants.get(name, {}):  # no cell of this recipe
        return None
    return config.settings(method)


def labelled_settings(config: LabelledConfig, cell: Cell) -> str:
    """The digest of a labelled cell, of what `cell_base` does not name: budget, images, public."""
    values = [config.delta, config.images_per_class, config.sampling, config.classifier_steps]
    return _digest([*values, config.public])


def fits(row: Row, settings: str) -> bool:
    """Whether a row was measured with these settings, as far as it says so."""
    return row.settings in ("", settings)


def json_digest(values: dict[str, object]) -> str:
    """Eight hex digits of settings by name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _digest(values: list[object]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]
