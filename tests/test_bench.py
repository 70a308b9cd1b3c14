"""The benchmark: its cells, resuming after a kill, the rows on disk and the table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.errors import DataError, UsageError
from hyperdp.eval import bench as bench_module
from hyperdp.eval.bench import run_bench
from hyperdp.eval.bench_recipe import BenchConfig, cells, read_bench_recipe
from hyperdp.eval.digit_classifier import train_classifier
from hyperdp.eval.private_sets import load_private_set
from hyperdp.eval.results import Row, append_rows, mean_std, read_rows, render_into, to_markdown
from hyperdp.eval.study import SamplingConfig, control_weights, draw_images
from hyperdp.private.finetune import FinetuneConfig
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
    assert run_bench(config, out) == rows == read_rows(out)


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


def test_recipes_are_read_and_refused(tmp_path: Path):
    assert read_bench_recipe("glyphs-gain").sampling.count >= 1000
    assert read_bench_recipe("glyphs-gain", ["digits"]).private_sets == ["digits"]
    assert read_bench_recipe("glyphs-gain", methods=["lora"]).methods == ["lora"]
    with pytest.raises(UsageError, match="Shipped recipes"):
        read_bench_recipe("nothing")
    bad = tmp_path / "r.toml"
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
