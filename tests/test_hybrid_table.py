"""The table of splits beside a bundle, and what the command line makes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hyperdp.cli._refining import RefineRequest, settle
from hyperdp.errors import BundleError, UsageError
from hyperdp.hybrid_table import HYBRID_FILE, HybridCell, HybridTable, load_hybrid

CELL = HybridCell(
    method="prism", size=512, epsilon=1.0, fraction=0.6, steps=40, expected_batch=100,
    clip_norm=0.5, lr=2e-3, gain=0.7, one_shot=0.5, tasks=4,
)  # fmt: skip


class Beside:
    """What `settle` asks of a bundle."""

    hash = "ab" * 32

    def __init__(self, path):
        self.path = path


def table(*cells: HybridCell) -> HybridTable:
    return HybridTable(
        bundle="glyphs", bundle_hash=Beside.hash, delta=1e-5, cells=list(cells), made={}
    )


def asked(**changes) -> RefineRequest:
    nothing = dict.fromkeys(("fraction", "size", "steps", "batch", "clip_norm", "lr"))
    return RefineRequest(**{"method": "prism", **nothing, "size": 600, **changes})


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    made = table(CELL, replace(CELL, method="dpsgd", fraction=0.0))
    assert made.save(tmp_path).name == HYBRID_FILE
    assert load_hybrid(tmp_path, Beside.hash) == made
    assert load_hybrid(tmp_path / "nowhere", Beside.hash) is None


def test_the_nearest_cell_of_the_method_is_taken(tmp_path):
    far = replace(CELL, size=4096, fraction=0.9)
    rich = replace(CELL, epsilon=8.0, fraction=0.8)
    made = table(CELL, far, rich, replace(CELL, method="dpsgd", fraction=0.1))
    assert made.at("prism", size=600, epsilon=1.2) == CELL
    assert made.at("prism", size=10**6, epsilon=1.0) == far
    assert made.at("prism", size=300, epsilon=20.0) == rich
    assert made.at("dpsgd", size=10**6, epsilon=20.0).fraction == 0.1
    assert made.at("ffa", size=600, epsilon=1.0) is None
    # As near to both: ln 2 to either side, on the axis of sizes; the smaller share is taken.
    pair = table(replace(CELL, size=256), replace(CELL, size=1024, fraction=0.2))
    assert pair.at("prism", size=512, epsilon=1.0).fraction == 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"cells": []},
        {"cells": [{"method": "prism"}]},
        {"delta": 2.0},
        {"format": "another"},
        {"bundle_hash": 7},
        {"bundle_hash": "cd" * 32},
        *(
            {"cells": [vars(CELL) | wrong]}
            for wrong in (
                {"fraction": 1.0}, {"fraction": -0.1}, {"lr": "1"}, {"steps": 1.5}, {"size": True},
                {"expected_batch": 513}, {"epsilon": 0.0}, {"more": 1},
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_table_is_refused(change, tmp_path):
    path = table(CELL).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match="hyperdp pretrain hybrid"):
        load_hybrid(tmp_path, Beside.hash)
    path.write_text("{")
    with pytest.raises(BundleError, match="a table of splits"):
        load_hybrid(tmp_path, Beside.hash)


def test_what_is_asked_stands_and_the_rest_is_the_tables(tmp_path):
    table(CELL).save(tmp_path)
    found = settle(asked(), Beside(tmp_path), 1.0)
    assert (found.fraction, found.source) == (0.6, "table")
    c = found.config
    assert (c.method, c.size, c.steps, c.lr) == ("prism", 600, 40, 2e-3)
    assert (c.expected_batch, c.clip_norm) == (100, 0.5)
    assert "n = 512 and ε = 1" in found.told
    found = settle(asked(fraction=0.25, steps=7, batch=3), Beside(tmp_path), 1.0)
    assert (found.fraction, found.source, found.config.steps) == (0.25, "asked", 7)
    assert (found.config.expected_batch, found.config.lr) == (3, 2e-3)
    assert settle(asked(size=50), Beside(tmp_path), 1.0).config.expected_batch == 50


def test_where_the_table_has_one_shot_best_there_are_no_steps(tmp_path):
    table(replace(CELL, fraction=0.0)).save(tmp_path)
    assert settle(asked(), Beside(tmp_path), 1.0).config is None
    assert settle(asked(fraction=0.3), Beside(tmp_path), 1.0).config.steps == 40


def test_without_a_table_the_share_is_a_guess_and_is_said_to_be(tmp_path):
    found = settle(asked(size=20), Beside(tmp_path), 1.0)
    assert (found.fraction, found.source) == (0.5, "guess")
    assert "a guess" in found.told
    assert "hyperdp pretrain hybrid" in found.told
    assert found.config.expected_batch == 20
    table(CELL).save(tmp_path)  # of prism alone
    assert settle(asked(method="dpsgd"), Beside(tmp_path), 1.0).source == "guess"


def test_a_share_of_zero_needs_nothing_else_and_bad_words_are_refused(tmp_path):
    assert settle(asked(fraction=0.0, size=None), Beside(tmp_path), 1.0).config is None
    with pytest.raises(UsageError, match="--size with --refine"):
        settle(asked(size=None), Beside(tmp_path), 1.0)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="0 <= --refine-fraction < 1"):
            asked(fraction=wrong)
