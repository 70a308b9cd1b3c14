"""The benchmark: its cells, resuming after a kill, the rows on disk and the table."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyperdp.bundle import load_bundle
from hyperdp.cli._app import run
from hyperdp.errors import DataError, UsageError
from hyperdp.eval import bench as bench_module
from hyperdp.eval import results as results_module
from hyperdp.eval import reuse
from hyperdp.eval.bench import run_bench
from hyperdp.eval.bench_recipe import BenchConfig, at_size, cells, read_bench_recipe
from hyperdp.eval.cells import Cell, Only
from hyperdp.eval.digit_classifier import train_classifier
from hyperdp.eval.methods import LEARNERS, METHODS
from hyperdp.eval.private_sets import load_private_set
from hyperdp.eval.results import (
    Row,
    append_rows,
    mean_std,
    provenance,
    read_rows,
    render_into,
    to_markdown,
)
from hyperdp.eval.study import SamplingConfig, control_weights, draw_images, release_once
from hyperdp.eval.tuning import Tuning, choices
from hyperdp.eval.world import World
from hyperdp.library import Library
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.reweight import ReweightConfig
from tests.worlds import tiny_bundle


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> BenchConfig:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    tiny_bundle(tmp_path / "bundle")
    return BenchConfig(
        bench="test",
        bundle=str(tmp_path / "bundle"),
        private_sets=["digits"],
        n=[200],
        epsilon=[4.0],
        delta=1e-4,
        seeds=[0, 1],
        methods=["hyper", "lora", "base", "floor", "public_mean"],
        sampling=SamplingConfig(count=20, steps=2, batch_size=10, bf16=False),
        finetune=FinetuneConfig(rank=2, steps=2, batch_size=4, bf16=False),
    )


def _row(**change: object) -> Row:
    values = {
        "bench": "b", "base": "x", "private_set": "s", "method": "hyper", "n": 10, "epsilon": 1.0,
        "delta": 1e-5, "seed": 0, "metric": "fid", "value": 3.5, "commit": "c", "hardware": "h",
        "seconds": 1.0, "peak_rss_mb": 2.0, "command": "hyperdp bench",
    }  # fmt: skip
    return Row(**{**values, **change})  # type: ignore[arg-type]


def test_references_come_before_what_needs_them(config: BenchConfig):
    order = [c.method for c in cells(config)]
    assert order == ["floor", "base", "lora", "public_mean", "hyper", "hyper"]
    with pytest.raises(UsageError, match="magic"):
        list(cells(replace(config, methods=["magic"])))


def test_a_killed_bench_goes_on_and_loses_one_cell(
    config: BenchConfig, tmp_path: Path, monkeypatch
):
    out = tmp_path / "rows.jsonl"
    honest = bench_module.World.measure
    measured = []

    class KilledError(Exception):
        pass

    def dies(self, cell, progress):
        if len(measured) == 3:
            raise KilledError
        measured.append(cell)
        return honest(self, cell, progress)

    monkeypatch.setattr(bench_module.World, "measure", dies)
    with pytest.raises(KilledError):
        run_bench(config, out)
    before = read_rows(out)
    assert {r.method for r in before} == {"floor", "base", "lora"}
    with out.open("a") as file:
        file.write('{"bench": "test", "cut')  # what a kill in the middle of a write leaves
    measured.clear()
    monkeypatch.setattr(bench_module.World, "measure", honest)
    rows = run_bench(config, out)
    assert rows[: len(before)] == before
    keys = [(r.method, r.seed, r.metric) for r in rows]
    assert len(set(keys)) == len(keys)
    assert [r.seed for r in rows if r.method == "hyper" and r.metric == "kid"] == [0, 1]
    assert run_bench(config, out) == rows
    for row in rows:
        assert set(asdict(row)) == set(json.loads(out.read_text().splitlines()[0]))


def test_only_the_cells_that_are_asked_for(config: BenchConfig, tmp_path: Path):
    config = replace(config, n=[50, 200], methods=["base", "hyper"])
    rows = run_bench(config, tmp_path / "r.jsonl", only=Only(n=(50,), epsilon=(4.0,), seeds=(1,)))
    made = {(r.method, r.n, r.epsilon, r.seed) for r in rows}
    assert made == {("base", None, None, 0), ("hyper", 50, 4.0, 1)}
    for wrong, option in ((Only(n=(9,)), "--size"), (Only(seeds=(7,)), "--seed")):
        with pytest.raises(UsageError, match=option):
            run_bench(config, tmp_path / "r.jsonl", only=wrong)


def test_what_another_process_has_measured_meanwhile_is_passed_over(
    config: BenchConfig, tmp_path: Path
):
    config = replace(config, methods=["base", "lora", "public_mean"])
    out, seen = tmp_path / "r.jsonl", []

    def on_cell(cell: Cell, number: int, total: int):
        seen.append(cell.method)
        if cell.method == "base":
            run_bench(replace(config, methods=["lora"]), out)
        return lambda *_: None

    rows = run_bench(config, out, on_cell=on_cell)
    assert seen == ["base", "public_mean"]
    assert [r.method for r in rows if r.metric == "fid"] == ["lora", "base", "public_mean"]


def test_rows_of_another_recipe_are_taken_over_where_it_measures_the_same(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = (
        f'bench = "other"\nbundle = "{config.bundle}"\nprivate_sets = ["digits"]\nn = [200]\n'
        "epsilon = [4.0]\ndelta = 1e-4\nseeds = [0]\n"
        'methods = ["base", "hyper", "reweighted"]\n'
        "[sampling]\ncount = 20\nsteps = 2\nbatch_size = 10\nbf16 = false\n"
        "[finetune]\nrank = 2\nsteps = 2\nbatch_size = 4\nbf16 = false\n"
    )
    (tmp_path / "other.toml").write_text(text)
    monkeypatch.setattr(reuse, "RESULTS", tmp_path)
    other = read_bench_recipe(str(tmp_path / "other.toml"))
    first = run_bench(replace(other, methods=["base", "hyper"]), tmp_path / "other.jsonl")
    planted = [replace(r, method="reweighted") for r in first if r.method == "hyper"]
    append_rows(tmp_path / "other.jsonl", planted)

    measured = []
    config = replace(
        config, methods=["base", "lora", "hyper"], reuse=[str(tmp_path / "other.toml")]
    )
    rows = run_bench(
        config, tmp_path / "r.jsonl", on_cell=lambda cell, *_: measured.append(cell) or print
    )
    assert [(c.method, c.seed) for c in measured] == [("lora", 0), ("hyper", 1)]
    kept = [r for r in rows if r.seed == 0 and r.method != "lora" and r.metric != "recovered_gain"]
    assert kept == [replace(r, bench="test") for r in first]
    assert run_bench(config, tmp_path / "r.jsonl") == rows
    with pytest.raises(UsageError, match="same sampling"):
        run_bench(replace(config, sampling=SamplingConfig(count=21)), tmp_path / "s.jsonl")


def test_processes_that_write_at_once_lose_no_row(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    with ThreadPoolExecutor(8) as pool:  # each opens the file for itself, as a process does
        list(pool.map(lambda seed: append_rows(path, [_row(seed=seed)] * 3), range(64)))
    assert sorted(r.seed for r in read_rows(path)) == sorted([*range(64)] * 3)


@pytest.mark.parametrize("labelled", [False, True])
def test_reweighted_adapters_are_measured_like_any_other(
    config: BenchConfig, labelled: bool, tmp_path: Path
):
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "public.npz", images=images)
    config = replace(
        config,
        methods=["reweighted", "lora"],
        seeds=[0],
        labelled=labelled,
        public=str(tmp_path / "public.npz"),
        reweight=ReweightConfig(steps=2),
    )
    told = []
    rows = run_bench(
        config, tmp_path / "r.jsonl", on_cell=lambda *_: lambda *done: told.append(done)
    )
    assert (2, 2) in told
    assert {row.method for row in rows} == {"reweighted", "lora"}
    assert {row.metric for row in rows} >= ({"accuracy_9"} if labelled else {"fid", "kid"})


LEARNER = {"expected_batch": 4, "steps": 2, "rank": 2, "dims": 2, "lr": 0.1}


# The others' steps are tried in the tests of learners; here it is the bench that is tried.
QUICK = {"dpsgd", "prism"}
STEPPED = [
    method if method in QUICK else pytest.param(method, marks=pytest.mark.slow)
    for method in LEARNERS
]


@pytest.mark.parametrize("method", STEPPED)
def test_step_trained_learners_are_cells_like_any_other(
    config: BenchConfig, method: str, tmp_path: Path
):
    start = "public-mean" if method == "prism" else "fresh"
    fit = FitConfig(method=method, size=4, start=start, **LEARNER)
    config = replace(
        config,
        methods=[method],
        n=[3],
        seeds=[1],
        fits={method: fit},
        sampling=SamplingConfig(count=0),
    )
    told: list[tuple[int, int]] = []
    (row,) = run_bench(
        config, tmp_path / "r.jsonl", on_cell=lambda *_: lambda *done: told.append(done)
    )
    assert (row.method, row.metric, row.n, row.epsilon, row.seed) == (method, "loss", 3, 4.0, 1)
    assert told == [(1, 2), (2, 2)]
    base = run_bench(replace(config, methods=["base"]), tmp_path / "base.jsonl")
    assert row.value != base[0].value


def test_a_learners_size_is_the_cells(config: BenchConfig):
    fit = FitConfig(method="dpsgd", size=64, expected_batch=64)
    assert at_size(fit, 2000).probability == 64 / 2000
    assert at_size(fit, 10) == replace(fit, size=10, expected_batch=10)
    varied = replace(config, fits={"dpsgd": fit}, variants={"dpsgd": {"big": {"lr": 0.5}}})
    assert varied.settings("dpsgd/big") == replace(fit, lr=0.5)
    batch = replace(varied, variants={"dpsgd": {"b": {"expected_batch": 500}}})
    assert at_size(batch.settings("dpsgd/b"), 2000).probability == 0.25
    with pytest.raises(UsageError, match=r"\[fits.ffa\]"):
        varied.settings("ffa")


def test_references_without_privacy_learn_what_they_are_given(config: BenchConfig, tmp_path: Path):
    images = np.full((120, 28, 28), 255, dtype=np.uint8)
    np.savez(tmp_path / "public.npz", images=images)
    quick = FinetuneConfig(rank=2, steps=12, batch_size=8, lr=2e-2, ema=0.5, bf16=False)
    config = replace(
        config,
        methods=["base", "full", "lora_n", "shared"],
        n=[40],
        public=str(tmp_path / "public.npz"),
        finetune=quick,
        full=replace(quick, lr=5e-3),
        sampling=SamplingConfig(count=0),
    )
    rows = run_bench(config, tmp_path / "r.jsonl")
    loss = {(r.method, r.n, r.epsilon, r.seed): r.value for r in rows}
    base = loss["base", None, None, 0]
    assert loss["full", None, None, 0] < base
    assert loss["lora_n", 40, None, 0] < base
    assert loss["lora_n", 40, None, 0] != loss["lora_n", 40, None, 1]
    assert loss["shared", None, None, 0] > loss["lora_n", 40, None, 0]  # it saw white paper only
    assert len(loss) == 5


def test_stars_stand_for_all_variants(config: BenchConfig):
    variants = {"lora": {"a": {"lr": 1.0}, "b": {"lr": 2.0}}}
    config = replace(config, variants=variants, methods=["lora/*", "hyper"], seeds=[3])
    assert [c.method for c in cells(config)] == ["lora/a", "lora/b", "hyper"]
    assert config.settings("lora/b") == replace(config.finetune, lr=2.0)
    with pytest.raises(UsageError, match="lora/a"):
        list(cells(replace(config, methods=["dpsgd/*"])))


def _trial(variant: str, value: float, **change: object) -> Row:
    return _row(method=f"dpsgd/{variant}", metric="loss", value=value, bench="t", **change)


def test_tuning_takes_the_least_mean_loss_at_the_nearest_signal(
    config: BenchConfig, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("hyperdp.eval.tuning.RESULTS", tmp_path)
    recipe = tmp_path / "t.toml"
    recipe.write_text(
        'bench = "t"\nbundle = "x"\nprivate_sets = ["a", "b"]\nn = [100, 1000]\nepsilon = [1.0]\n'
        'delta = 1e-5\nseeds = [0]\nmethods = ["dpsgd/*"]\n[fits.dpsgd]\nsteps = 7\n'
        "[variants.dpsgd.low]\nlr = 0.1\n[variants.dpsgd.high]\nlr = 0.2\n"
    )
    wins = {100: "low", 1000: "high"}
    rows = [
        _trial(v, (1.0 if v == wins[n] else 1.1) + shift, n=n, private_set=task)
        for n in wins for v in ("low", "high") for task, shift in (("a", 0.0), ("b", 5.0))
    ]  # fmt: skip
    append_rows(tmp_path / "t.jsonl", rows)
    tuning = Tuning([str(recipe)], "x")
    assert tuning.settings("dpsgd", 100, 1.0)[0] == "low"
    assert tuning.settings("dpsgd", 500, 0.2)[1].lr == 0.1  # as much signal as 100 at ε = 1
    assert tuning.settings("dpsgd", 500, 8.0)[1] == replace(
        FitConfig(method="dpsgd", size=64), steps=7, lr=0.2
    )
    assert tuning.settings("hyper", 100, 1.0) is None
    world = World(replace(config, fits={}), "digits", load_bundle(config.bundle), tuning)
    cell = Cell(private_set="digits", method="dpsgd", n=500, epsilon=8.0, seed=0)
    assert world.settings(cell).lr == 0.2
    with pytest.raises(UsageError, match="no cell where they are"):
        Tuning([str(recipe)], "another base").settings("dpsgd", 100, 1.0)


def test_a_variant_that_diverged_or_was_not_measured_everywhere_is_not_chosen(config: BenchConfig):
    config = replace(
        config,
        fits={"dpsgd": FitConfig(method="dpsgd", size=64)},
        variants={"dpsgd": {"a": {"lr": 1.0}, "b": {"lr": 2.0}}},
    )
    rows = [_trial("a", float("nan")), _trial("b", 7.0)]
    (best,) = choices(config, rows)
    assert (best.variant, best.value, best.of) == ("b", 7.0, 2)
    assert choices(config, rows[:1]) == []
    assert choices(config, [*rows, _trial("a", 1.0, private_set="t")]) == []


def test_recovered_gain_is_the_definition(config: BenchConfig, tmp_path: Path, monkeypatch):
    found = {"floor": 5.0, "base": 100.0, "lora": 40.0, "public_mean": 91.0, "hyper": 70.0}
    monkeypatch.setattr(
        bench_module.World, "measure", lambda self, cell, progress: {"fid": found[cell.method]}
    )
    rows = run_bench(config, tmp_path / "rows.jsonl")
    gains = {r.method: r.value for r in rows if r.metric == "recovered_gain"}
    assert gains == {"public_mean": pytest.approx(0.15), "hyper": pytest.approx(0.5)}


def test_gains_come_as_soon_as_they_can_whatever_the_order(
    config: BenchConfig, tmp_path: Path, monkeypatch
):
    found = {"floor": 5.0, "base": 100.0, "lora": 40.0, "public_mean": 91.0, "hyper": 70.0}
    monkeypatch.setattr(
        bench_module.World, "measure", lambda self, cell, progress: {"fid": found[cell.method]}
    )
    out = tmp_path / "rows.jsonl"
    early = run_bench(dataclasses.replace(config, methods=["base", "hyper"]), out)
    assert not any(r.metric == "recovered_gain" for r in early)
    rows = run_bench(config, out)
    gains = [(r.method, r.seed, r.value) for r in rows if r.metric == "recovered_gain"]
    assert ("hyper", 1, pytest.approx(0.5)) in gains
    assert len(gains) == len({gain[:2] for gain in gains}) == 3
    assert run_bench(config, out) == rows
    stored = read_rows(out)  # gains are worked out and never stored
    assert [r for r in rows if r.metric != "recovered_gain"] == stored
    better = [dataclasses.replace(r, value=55.0) if r.method == "lora" else r for r in stored]
    out.unlink()
    append_rows(out, [*better, dataclasses.replace(stored[-1], metric="recovered_gain", value=9.0)])
    again = [(r.method, r.seed, r.value) for r in run_bench(config, out)
             if r.metric == "recovered_gain"]  # fmt: skip
    assert ("hyper", 1, pytest.approx(30 / 45)) in again and len(again) == len(gains)


def test_rows_of_other_settings_are_measured_anew(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured: list[str] = []

    def measure(self, cell, progress):
        measured.append(cell.method)
        return {"fid": 1.0 + len(measured)}

    monkeypatch.setattr(bench_module.World, "measure", measure)
    config = dataclasses.replace(config, methods=["base", "lora", "hyper"], seeds=[0])
    out = tmp_path / "rows.jsonl"
    changes = {
        "finetune": dataclasses.replace(config.finetune, steps=config.finetune.steps + 1),
        "sampling": dataclasses.replace(config.sampling, count=config.sampling.count + 1),
        "delta": config.delta / 2,
    }
    run_bench(config, out)
    first, whole = read_rows(out), ["base", "lora", "hyper"]
    assert measured == whole and all(row.settings for row in first)
    assert len({row.settings for row in first}) == 3
    anew = {"finetune": ["lora"], "sampling": whole, "delta": ["hyper"]}
    for key, value in changes.items():
        measured.clear()
        rows = run_bench(dataclasses.replace(config, **{key: value}), out)
        assert measured == anew[key]
        assert len([r for r in rows if r.metric == "fid"]) == 3  # one of each, of these settings
    measured.clear()
    assert len(run_bench(config, out)) == len(first) and not measured  # the old ones are there
    out.unlink()
    append_rows(out, [dataclasses.replace(row, settings="") for row in first])
    run_bench(config, out)  # rows from before there were digests count as they did
    assert not measured


def test_a_full_disk_leaves_no_part_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = {
        "bench": "b", "base": "x", "private_set": "s", "method": "m", "n": None, "epsilon": None,
        "delta": None, "seed": 0, "commit": "c", "hardware": "h", "seconds": 1.0,
        "peak_rss_mb": 1.0, "command": "w",
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    append_rows(path, [Row(metric="fid", value=1.0, **values)])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            append_rows(path, [Row(metric=m, value=1.0, **values) for m in ("kid", "loss")])
    assert path.read_bytes() == before
    append_rows(path, [Row(metric="kid", value=1.0, **values)])
    assert len(read_rows(path)) == 2


def test_a_row_says_where_its_tree_was_not_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HYPERDP_COMMIT", raising=False)
    place = tmp_path / "eval" / "results.py"
    place.parent.mkdir()
    monkeypatch.setattr(results_module, "__file__", str(place))

    def git(*words: str) -> None:
        own = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(own, cwd=tmp_path, check=True, capture_output=True)

    assert provenance()["commit"] == "unknown"
    git("init", "-q")
    for file in ("eval/results.py", "eval/results/a.jsonl", "docs/page.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("1")
    git("add", "-A")
    git("commit", "-qm", "one")
    clean = provenance()["commit"]
    assert len(clean) >= 7 and "dirty" not in clean
    (tmp_path / "docs" / "page.md").write_text("2")  # what a bench itself writes
    (tmp_path / "eval" / "results" / "a.jsonl").write_text("2")
    assert provenance()["commit"] == clean
    place.write_text("2")
    assert provenance()["commit"] == f"{clean}-dirty"


def test_rows_survive_the_disk_and_a_bad_line_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [_row(), _row(metric="kid", value=0.1, n=None)]
    append_rows(path, rows)
    assert read_rows(path) == rows
    assert read_rows(tmp_path / "none.jsonl") == []
    with path.open("a") as file:
        file.write('{"bench": 1}\n')
    with pytest.raises(DataError, match="line 3"):
        read_rows(path)


def test_the_table_has_mean_and_std_over_seeds():
    rows = [_row(seed=s, value=v) for s, v in ((0, 100.0), (1, 110.0), (2, 120.0))]
    table = to_markdown(
        [*rows, _row(method="base", n=None, epsilon=None, value=7.25)], ("fid", "kid")
    )
    assert "| s | hyper | 10 | 1 | 110 ± 10 | – |" in table
    assert "| s | base | – | – | 7.25 | – |" in table
    assert mean_std([0.5, 0.7]) == "0.60 ± 0.14"


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- table:a -->\nold\n<!-- /table:a -->\nbelow\n")
    for _ in range(2):
        render_into(page, "a", "| new |\n")
        text = "above\n<!-- table:a -->\n\n| new |\n\n<!-- /table:a -->\nbelow\n"
        assert page.read_text() == text
    with pytest.raises(DataError, match="table:b"):
        render_into(page, "b", "x")


def test_controls_are_what_the_bundle_says(config: BenchConfig, tmp_path: Path):
    bundle = bench_module.load_bundle(config.bundle)
    mean = control_weights(bundle, "public_mean")
    other = control_weights(bundle, "other_task")
    name = next(iter(mean))
    assert not torch.equal(mean[name][1], other[name][1])
    with pytest.raises(UsageError, match="a control"):
        control_weights(bundle, "magic")
    first = draw_images(bundle, mean, config.sampling, seed=3)
    assert torch.equal(first, draw_images(bundle, mean, config.sampling, seed=3))
    assert not torch.equal(first, draw_images(bundle, {}, config.sampling, seed=3))
    for count in (0, 1, 5):  # fewer than there are threads, too
        assert len(draw_images(bundle, {}, replace(config.sampling, count=count), seed=3)) == count


@pytest.mark.slow
def test_every_method_of_the_small_recipe_has_its_rows(
    config: BenchConfig, tmp_path: Path, monkeypatch
):
    """Learners have a test of their own, and cost most of the time."""
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "public.npz", images=images)
    bundle = load_bundle(config.bundle)
    library = Library.make(tmp_path / "library", bundle, {})
    for index in range(2):
        task = torch.full((8,), 0.1 * index)
        library.add(index, task, control_weights(bundle, "other_task"))
    released = []

    def counted(*arguments, **more):
        released.append(arguments)
        return release_once(*arguments, **more)

    monkeypatch.setattr("hyperdp.eval.world.release_once", counted)
    monkeypatch.setattr(  # features of the reference take a minute, and are tested elsewhere
        "hyperdp.eval.world.fid", lambda *_: SimpleNamespace(value=1.0)
    )
    monkeypatch.setattr("hyperdp.eval.world.kid", lambda *_: SimpleNamespace(value=2.0))
    monkeypatch.setattr("hyperdp.eval.world.extract", lambda _, images: images)
    small = read_bench_recipe("utility-small")
    assert set(small.methods) == set(METHODS)
    small = replace(
        small,
        bundle=config.bundle,
        public=str(tmp_path / "public.npz"),
        library=str(tmp_path / "library"),
        methods=[m for m in small.methods if m not in LEARNERS],
    )
    rows = run_bench(small, tmp_path / "r.jsonl")
    found = {(r.method, r.metric) for r in rows}
    for method in small.methods:
        assert {(method, "fid"), (method, "kid")} <= found
        assert ((method, "loss") in found) == (method not in {"floor", "evolution"})
    assert len(released) == 2  # one that hyper, reweighted and nearest all read, and dpagg's own
    loss = {r.method: r.value for r in rows if r.metric == "loss"}
    assert loss.pop("nearest") == pytest.approx(loss["other_task"], rel=1e-5)  # found it twice
    assert loss.pop("lora_n") == loss["lora"]  # of one n, all records are n records
    assert len(set(loss.values())) == len(loss)
    with pytest.raises(UsageError, match=r"sampling\.count"):
        run_bench(
            replace(small, methods=["evolution"], sampling=SamplingConfig(count=0)),
            tmp_path / "none.jsonl",
        )


@pytest.mark.parametrize("name", ["tune-learners", "tune-rivals", "tune-evolution"])
def test_every_method_is_tuned_with_as_many_trials(name: str):
    tuned = read_bench_recipe(name)
    assert {len(variants) for variants in tuned.variants.values()} == {4}
    for method, variants in tuned.variants.items():
        assert METHODS[method].needs == "budget"
        settings = [tuned.settings(f"{method}/{variant}") for variant in variants]
        assert len({str(s) for s in settings}) == 4
    assert all(s.endswith(".npz") for s in tuned.private_sets)  # public tasks alone


def test_the_utility_table_has_every_method_and_the_settings_of_each():
    table = read_bench_recipe("utility")
    assert set(table.methods) == set(METHODS)
    tuned = {m for name in table.tuning for m in read_bench_recipe(name).variants}
    assert tuned == {m for m in METHODS if METHODS[m].needs == "budget"} - {"hyper"}


def test_recipes_are_read_and_refused(tmp_path: Path):
    assert read_bench_recipe("glyphs-gain").sampling.count >= 1000
    assert read_bench_recipe("glyphs-gain", ["digits"]).private_sets == ["digits"]
    assert read_bench_recipe("glyphs-gain", methods=["lora"]).methods == ["lora"]
    with pytest.raises(UsageError, match="Shipped recipes"):
        read_bench_recipe("nothing")
    bad = tmp_path / "r.toml"
    for wrong, match in (
        ("[fits.magic]\nlr = 1.0", "of a learner"),
        ("[variants.magic.a]\nlr = 1.0", "of a method"),
        ("[variants.reweighted.a]\nspeed = 1.0", "speed"),
    ):
        bad.write_text(
            'bench = "b"\nbundle = "x"\nprivate_sets = []\nn = []\nepsilon = []\ndelta = 1e-5\n'
            f"seeds = []\nmethods = []\n{wrong}\n"
        )
        with pytest.raises(UsageError, match=match):
            read_bench_recipe(str(bad))
    bad.write_text("bench = 1")
    with pytest.raises(UsageError, match="Correct the file"):
        read_bench_recipe(str(bad))


def test_the_classifier_reads_digits():
    data = load_private_set("digits")
    model = train_classifier(data.pool[:700], data.pool_labels[:700], epochs=4)
    held_out = (model.predict(data.reference) == data.reference_labels).float().mean()
    assert held_out > 0.85
    zeros = data.reference[data.reference_labels == 0]
    assert model.share_read_as(zeros, 0) > 0.8
    assert model.share_read_as(zeros, 1) < 0.1


@pytest.mark.parametrize("name", ["theory", "train-step", "release", "emission"])
def test_table_only_measures_nothing_for_the_engine_either(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "rows.jsonl"
    assert run(["bench", name, "--table-only", "-o", str(out)]) == 2
    assert "--table-only" in capsys.readouterr().err and not out.exists()
