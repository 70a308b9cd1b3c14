"""Making a forecast and a guard on the sample corpus; released means against a real release."""

from __future__ import annotations

import dataclasses
import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hyperdp.cli._app import run
from hyperdp.families import load_family
from hyperdp.forecast import Forecast
from hyperdp.lora import Weights
from hyperdp.pretrain import task_files
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.forecast import (
    ForecastConfig,
    loss_measure,
    make_tables,
    released_mean,
    sample_tasks,
    spread_levels,
)
from hyperdp.pretrain.foreign import draw_foreign
from hyperdp.pretrain.guard import GuardConfig, make_guard
from hyperdp.pretrain.task_files import TaskFiles
from hyperdp.pretrain.world import GlyphWorld
from tests.pipelines import stable_diffusion_folder
from tests.worlds import tiny_bundle


def test_tables_go_on_after_a_kill_and_come_out_the_same(tmp_path: Path) -> None:
    bundle, corpus = tiny_bundle(tmp_path / "tiny"), GlyphWorld(open_sample())
    config = ForecastConfig(tasks=3, units=(4, 16), noise_std=(1e-3, 1e-1), queries=8)
    trained: list[int] = []

    def nonprivate(records: torch.Tensor, seed: int) -> Weights:
        trained.append(seed)
        if dying and len(trained) == 3:
            raise KeyboardInterrupt
        assert len(records) == 16
        return {}

    def make(folder: Path) -> list:
        return make_tables(
            bundle, corpus, config, folder,
            nonprivate=nonprivate, measures={"loss": loss_measure}, settings={"steps": 1},
        )  # fmt: skip

    dying = True
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "work")
    dying = False
    resumed = make(tmp_path / "work")
    assert len(trained) == 4  # the killed task alone was made again
    assert resumed == make(tmp_path / "new")
    [table] = resumed
    assert table.lora == table.base  # {} is the base itself
    assert len({*np.ravel(table.hyper)}) == 12  # every cell is a figure of its own


def test_more_noise_levels_measure_no_more_than_these(tmp_path: Path) -> None:
    bundle, corpus = tiny_bundle(tmp_path / "tiny"), GlyphWorld(open_sample())
    trained: list[int] = []

    def nonprivate(records: torch.Tensor, seed: int) -> Weights:
        trained.append(seed)
        return {}

    def make(folder: str, *levels: float, steps: int = 1) -> list:
        config = ForecastConfig(tasks=2, units=(4, 16), noise_std=levels, queries=8)
        return make_tables(
            bundle, corpus, config, tmp_path / folder,
            nonprivate=nonprivate, measures={"loss": loss_measure}, settings={"steps": steps},
        )  # fmt: skip

    [few] = make("work", 1e-3, 1e-1)
    [more] = make("work", 1e-3, 1e-2, 1e-1)
    assert len(trained) == 2  # LoRA of the first run serves the second
    assert [more] == make("new", 1e-3, 1e-2, 1e-1) and len(trained) == 4
    assert np.array_equal(np.array(more.hyper)[:, :, ::2], few.hyper)
    make("work", 1e-2, 1e-1)  # with another lowest level ρ(public mean) is another
    make("work", 1e-3, 1e-2, 1e-1, steps=2)
    assert len(trained) == 8


def test_processes_share_the_tasks_and_wait_for_one_another(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(task_files, "POLL", 0.01)
    shared, made = TaskFiles(tmp_path, {"bundle": "a"}), []

    def measure(index: int) -> dict:
        made.append(index)
        return {"loss": {"base": index}}

    other = (shared.folder / "0001.lock").open("w")  # another process is at task 1
    fcntl.flock(other, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(shared.fill, 3, measure)
        while made != [0, 2]:
            assert not waiting.done()
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.2)
        assert made == [0, 2]
        other.close()  # it was killed: its task is free again
        figures = waiting.result(timeout=60)
    assert made == [0, 2, 1] and [f["loss"]["base"] for f in figures] == [0, 1, 2]
    assert TaskFiles(tmp_path, {"bundle": "a"}).fill(3, measure) == figures and len(made) == 3
    TaskFiles(tmp_path, {"bundle": "b"}).fill(1, measure)
    assert made[3:] == [0]  # figures of other settings do not count


def test_a_released_mean_has_the_noise_and_the_noisy_divisor_of_a_release() -> None:
    embedded = torch.full((50, 4), 0.3)
    rng = torch.Generator().manual_seed(0)
    draws = [
        released_mean(embedded, units=50, noise_std=0.02, clip_norm=1.0, rng=rng)
        for _ in range(4000)
    ]
    means, stds = torch.cat([m for m, _ in draws]), torch.cat([s for _, s in draws])
    ratio = stds / 0.02  # n / n̂
    assert float((1 / ratio).std()) == pytest.approx(4 * 0.02, rel=0.05)
    noise = means / ratio[:, None] - 0.3
    assert float(noise.std()) == pytest.approx(0.02, rel=0.03)


def test_the_loss_is_the_same_for_the_same_adapter_and_differs_for_another(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    queries = torch.rand(12, 1, 28, 28) * 2 - 1
    mean, level = torch.full((1, 8), 0.1), torch.full((1,), 0.01)
    with torch.no_grad():
        adapter = bundle.hypernetwork(mean, level)
    assert loss_measure(bundle, {}, queries) == loss_measure(bundle, {}, queries)
    assert loss_measure(bundle, adapter, queries) != loss_measure(bundle, {}, queries)


def test_the_loss_of_a_base_in_latents_has_noise_of_their_shape(tmp_path: Path) -> None:
    base = load_family(stable_diffusion_folder(tmp_path / "sd"))
    assert base.noise_shape != base.image_shape
    bundle = SimpleNamespace(base=base)
    assert loss_measure(bundle, {}, torch.zeros(3, *base.image_shape)) > 0


def test_a_guard_of_the_sample_corpus_is_whole_and_small(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    config = GuardConfig(reference=12, calibration=10, foreign=9, records=16)
    guard = make_guard(bundle, GlyphWorld(open_sample()), config)
    assert guard.reference.shape == (12, 8) and guard.calibration.shape == (10, 8)
    assert guard.foreign.shape == (9, 8) and guard.spectra.shape == (10, 8)
    assert np.trace(guard.scatter) == pytest.approx(1.0)
    found = guard.p_value(guard.calibration[0], noise_std=0.01, units=16)
    assert 1 / 11 <= found <= 1
    again = make_guard(bundle, GlyphWorld(open_sample()), config)
    np.testing.assert_array_equal(guard.calibration, again.calibration)


def test_foreign_data_is_in_range_and_of_many_kinds() -> None:
    rng = torch.Generator().manual_seed(0)
    sets = [draw_foreign((3, 20, 28), 5, rng) for _ in range(40)]
    assert all(s.shape == (5, 3, 20, 28) and s.abs().max() <= 1 for s in sets)
    assert all(bool(s.isfinite().all()) for s in sets)
    assert len({round(float(s.std()), 3) for s in sets}) > 30


def test_levels_spread_from_the_least_to_the_most_at_equal_ratios() -> None:
    levels = spread_levels(5)
    assert levels[0] == 5e-4 and levels[-1] == 0.2 and len(levels) == 5
    assert np.diff(np.log(levels)) == pytest.approx(np.log(400) / 4, rel=1e-3)
    assert ForecastConfig().noise_std == spread_levels(8)


def test_the_picture_shows_the_very_records_that_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, corpus = tiny_bundle(tmp_path / "tiny"), GlyphWorld(open_sample())
    config = ForecastConfig(tasks=9, units=(4, 16), noise_std=(1e-3, 1e-1), queries=8)
    seen: list[torch.Tensor] = []

    def nonprivate(records: torch.Tensor, seed: int) -> Weights:
        seen.append(records)
        return {}

    [made] = make_tables(
        bundle, corpus, config, tmp_path / "work",
        nonprivate=nonprivate, measures={"loss": loss_measure}, settings={},
    )  # fmt: skip
    shown = sample_tasks(corpus, config, 5)
    assert torch.equal(shown, torch.stack([records[:5] for records in seen]))
    lora = [base / (1 + task % 2) for task, base in enumerate(made.base)]
    kept = dataclasses.replace(made, lora=lora)  # every other task has nothing to gain
    gains = kept.best_gains()
    assert [gain is None for gain in gains] == [task % 2 == 0 for task in range(9)]
    figure = np.array(kept.hyper)[1, 1, 0]
    assert gains[1] == pytest.approx((kept.base[1] - figure) / (kept.base[1] - kept.lora[1]))
    Forecast(bundle="tiny", bundle_hash=bundle.hash, tables=[kept], made={}).save(bundle.path)
    words = ["pretrain", "forecast", str(bundle.path), "--corpus", "sample"]
    picture = tmp_path / "tasks.png"
    assert run([*words, "--tasks", "10", "--picture", str(picture)]) == 2
    assert "--tasks 9" in capsys.readouterr().err and not picture.exists()
    assert run([*words, "--tasks", "9", "--picture", str(picture)]) == 0
    with Image.open(picture) as drawn:
        assert drawn.height > 9 * 40
