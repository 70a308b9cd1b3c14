"""The search for a split on public tasks: what it picks, that it goes on, and its command."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hyperdp.bundle import load_bundle
from hyperdp.cli.pretrain import app
from hyperdp.errors import UsageError
from hyperdp.eval import hybrid_search
from hyperdp.eval.bench_recipe import RECIPES
from hyperdp.eval.hybrid_search import (
    HybridSearch,
    StepSetting,
    Trial,
    choose,
    read_search,
    search_hybrid,
)
from hyperdp.hybrid_table import load_hybrid
from hyperdp.pretrain import text_forms
from hyperdp.pretrain.text_corpus import SAMPLE, read_documents
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.text_world import text_bundle
from tests.worlds import tiny_bundle

SLOW = StepSetting(steps=2, expected_batch=4, clip_norm=0.1, lr=1e-3)
FAST = replace(SLOW, lr=1e-2, expected_batch=64)
SEARCH = HybridSearch(
    sizes=(8, 16), epsilons=(1.0,), delta=1e-4, fractions=(0.3, 0.6),
    settings={"prism": (SLOW, FAST), "dpsgd": (SLOW,)}, queries=4,
)  # fmt: skip


def losses(**better: float) -> dict[Trial, float]:
    """Base 1.0, LoRA 0.5, one shot 0.8, everything else 0.9, but for `better` by method."""
    known = {"base": 1.0, "lora": 0.5, "one-shot": 0.8}
    found = {trial: known.get(trial.method, 0.9) for trial in SEARCH.trials()}
    for trial in found:
        if trial.method in better and trial.setting in (FAST, SLOW) and trial.fraction == 0.6:
            found[trial] = better[trial.method] - 0.01 * (trial.setting == FAST)
    return found


def test_the_best_mean_over_tasks_is_picked_and_one_shot_where_nothing_beats_it():
    # On prism's best both tasks agree in the mean; dpsgd is better on one, worse in the mean.
    cells = choose([losses(prism=0.7, dpsgd=0.7), losses(prism=0.75, dpsgd=0.95)], SEARCH)
    assert [(c.method, c.size) for c in cells] == [
        ("prism", 8), ("prism", 16), ("dpsgd", 8), ("dpsgd", 16),
    ]  # fmt: skip
    small, large, plain, _ = cells
    assert (small.fraction, small.lr, small.expected_batch) == (0.6, 1e-2, 8)
    assert large.expected_batch == 16  # a batch is cut to the size
    assert small.gain == pytest.approx(((1 - 0.69) + (1 - 0.74)) / 2 / 0.5)
    assert small.one_shot == pytest.approx(0.4)
    assert (plain.fraction, plain.gain) == (0.0, plain.one_shot)
    assert plain.tasks == 2


def test_tasks_that_say_nothing_are_left_out_and_must_not_be_all():
    silent = losses() | {Trial(method="lora"): 0.995}
    assert choose([losses(prism=0.6), silent], SEARCH)[0].tasks == 1
    with pytest.raises(UsageError, match="gains something"):
        choose([silent], SEARCH)


def test_a_killed_search_goes_on_and_another_one_begins_anew(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "tiny")
    made = []

    def weights(trial, bundle, pool, search, *, seed, pace):
        assert pool.shape == (16, 1, 28, 28)
        if dying and len(made) == 5:
            raise KeyboardInterrupt
        made.append(trial)
        return {"known": losses(prism=0.7)[trial]}

    monkeypatch.setattr(hybrid_search, "_weights", weights)
    monkeypatch.setattr(hybrid_search, "_loss", lambda b, w, q: w["known"])
    tasks = {"one": lambda: torch.zeros(20, 1, 28, 28), "two": lambda: torch.zeros(20, 1, 28, 28)}

    def run(search=SEARCH, told=None):
        progress = None if told is None else (lambda done, total: told.append((done, total)))
        return search_hybrid(bundle, tasks, search, tmp_path / "notes.jsonl", progress=progress)

    dying = True
    with pytest.raises(KeyboardInterrupt):
        run()
    dying = False
    told: list[tuple[int, int]] = []
    cells = run(told=told)
    count = len(list(SEARCH.trials()))
    assert len(made) == 2 * count  # nothing was measured twice
    assert told[0] == (1, 2 * count) and told[-1] == (2 * count, 2 * count)
    assert run() == cells and len(made) == 2 * count
    run(replace(SEARCH, delta=1e-5))
    assert len(made) == 4 * count


@pytest.mark.parametrize(
    "change",
    [{"fractions": []}, {"fractions": [1.0]}, {"settings": {"ffa": []}}, {"sizes": []},
     {"more": 1}, {"settings": {"prism": [{"steps": 1}]}}],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused(change):
    values = tomllib.loads((RECIPES / "hybrid-glyphs.toml").read_text())
    assert read_search(values).records == 2256
    with pytest.raises(UsageError):
        read_search(values | change)


def test_the_command_writes_a_table_that_the_bundle_takes(tmp_path: Path):
    bundle = tiny_bundle(tmp_path / "tiny")
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "sizes = [12]\nepsilons = [4.0]\ndelta = 1e-4\nfractions = [0.5]\nqueries = 16\n"
        "[finetune]\nsteps = 30\nlr = 2e-2\nbatch_size = 8\nbf16 = false\n"
        "[[settings.dpsgd]]\nsteps = 2\nexpected_batch = 6\nclip_norm = 0.1\nlr = 1e-3\n"
    )
    words = ["hybrid", str(bundle.path), "--recipe", str(recipe), "--tasks", "1", "--corpus",
             "sample", "--work", str(tmp_path / "work"), "--microbatch", "4"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    table = load_hybrid(bundle.path, bundle.hash)
    assert table is not None
    [cell] = table.cells
    assert (cell.method, cell.size, cell.epsilon, cell.tasks) == ("dpsgd", 12, 4.0, 1)
    assert cell.gain >= cell.one_shot
    assert load_bundle(bundle.path).hash == bundle.hash  # measured on it, no part of it
    assert CliRunner().invoke(app, [*words[:3], "nowhere"]).exit_code != 0


def test_a_bundle_of_texts_gets_its_table_from_documents(tmp_path: Path, monkeypatch):
    bundle = text_bundle(tmp_path / "texts")
    plain = [replace(one, topic=f"brown/{one.topic}") for one in read_documents(SAMPLE)]
    monkeypatch.setattr(text_forms, "wide_documents", lambda: plain)
    monkeypatch.setattr(hybrid_search, "LEAST_GAIN", 0.005)  # the toy model learns little
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "sizes = [64]\nepsilons = [8.0]\ndelta = 1e-4\nfractions = [0.5]\nqueries = 16\n"
        "[finetune]\nrank = 4\nsteps = 100\nlr = 3e-2\nbatch_size = 8\nbf16 = false\n"
        "[[settings.dpsgd]]\nsteps = 2\nexpected_batch = 6\nclip_norm = 0.1\nlr = 1e-3\n"
        "[[settings.prism]]\nsteps = 2\nexpected_batch = 6\nclip_norm = 0.1\nlr = 1e-3\n"
    )
    notes = tmp_path / "work"
    words = ["hybrid", str(bundle.path), "--recipe", str(recipe), "--tasks", "1", "--work"]
    result = CliRunner().invoke(app, [*words, str(notes), "--microbatch", "4"])
    assert result.exit_code == 0, result.output
    table = load_hybrid(bundle.path, bundle.hash)
    assert table is not None
    assert [(c.method, c.size, c.tasks) for c in table.cells] == [
        ("dpsgd", 64, 1), ("prism", 64, 1),
    ]  # fmt: skip
    losses = [json.loads(line) for line in next(notes.iterdir()).read_text().splitlines()]
    assert len({line["loss"] for line in losses if "loss" in line}) == 5  # all of them differ


def test_the_shipped_search_of_texts_fits_its_fields():
    assert read_search(tomllib.loads((RECIPES / "hybrid-texts.toml").read_text())).sizes
