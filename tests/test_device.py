"""Networks on a device of their own; where there is no GPU, torch's `meta` stands for one."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdp import family as family_module
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.cli import main
from hyperdp.cli._device import on_device
from hyperdp.compute import device_of, has_fast_bf16, usable_device
from hyperdp.errors import UsageError
from hyperdp.eval.digit_classifier import train_classifier
from hyperdp.eval.results import append_rows, hardware, provenance, read_rows
from hyperdp.eval.rivals import fit_once
from hyperdp.eval.study import SamplingConfig, draw_images, lora_weights
from hyperdp.lora import Weights, adapters
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.text_bundle import open_bundle
from tests.bench_rows import bench_rows, quick_config
from tests.worlds import tiny_bundle

META = torch.device("meta")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def _adapter(bundle: Bundle) -> Weights:
    return adapter_weights(bundle, torch.ones(1, bundle.config.embed_dim), torch.full((1,), 0.01))


def _images(bundle: Bundle, count: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, *bundle.config.image_shape, generator=rng) * 2 - 1


def test_a_bundle_moves_its_base_and_every_later_copy_and_nothing_else(tmp_path: Path) -> None:
    moved = tiny_bundle(tmp_path).to(META)
    assert device_of(moved.base.model) == device_of(moved.load_base().model) == META
    assert device_of(moved.encoder).type == device_of(moved.hypernetwork).type == "cpu"


def test_images_and_adapters_follow_the_base(tmp_path: Path) -> None:
    moved = tiny_bundle(tmp_path).to(META)
    images = _images(moved)
    with adapters(moved.base.model, _adapter(moved)):
        losses = moved.base.loss_at(images, torch.full((3,), 0.5), torch.randn(images.shape))
    assert losses.device == META and losses.shape == (3,)


@pytest.mark.parametrize("name", ["cuda:99", "no-such-device", "meta", "hpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        usable_device(name)


def test_the_commands_refuse_it_before_any_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    for words in (["bench", "bench-quick"], ["bench", "text-gain"], ["labelled", "labelled-quick"]):
        with pytest.raises(SystemExit) as left:
            main([*words, "--device", "cuda:99", "-o", str(rows)])
        assert left.value.code == 2
        assert "--device" in capsys.readouterr().err
    assert not rows.exists()


def test_commands_that_spend_refuse_it_before_they_spend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, nothing = tmp_path / "out", str(tmp_path / "nothing")
    budget = ["--epsilon", "1", "--delta", "1e-5", "-o", str(out)]
    for words in (
        ["sample", nothing, "-o", str(out)],
        ["emit", nothing, "-o", str(out)],
        ["fit", nothing, "--size", "100", *budget],
        ["private", nothing, *budget],
    ):
        for device, bundle in (("cuda:99", "glyphs"), ("nowhere", "glyphs")):
            with pytest.raises(SystemExit) as left:
                main([*words, "--device", device, "--bundle", bundle])
            assert left.value.code == 2
            assert "--device" in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_of_texts_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = open_bundle("text-tiny")
    assert on_device(texts, "cpu") is texts
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if there were a GPU
    with pytest.raises(UsageError, match="texts"):
        on_device(texts, "cuda")


def test_rows_name_a_gpu_beside_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert hardware(torch.device("cpu")) == hardware()
    assert hardware(torch.device("cuda", 1)) == f"{hardware()}, GPU 1"


def test_records_on_the_cpu_have_the_same_times_and_noise_whatever_computes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    for name in ("normal", "uniform"):
        real = getattr(family_module, name)
        monkeypatch.setattr(
            family_module, name, lambda *a, real=real: asked.append(a[2]) or real(*a)
        )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not for meta
    moved = bundle.load_base()
    moved.to(META)
    images, rng = _images(bundle), torch.Generator().manual_seed(0)
    assert moved.loss(images, rng).device == META
    assert moved.adapter_loss(images[None], images[None], rng).device == META
    assert asked and {device.type for device in asked} == {"cpu"}


def test_a_figure_that_another_process_has_written_is_not_written_again(tmp_path: Path) -> None:
    rows, path = bench_rows(quick_config()), tmp_path / "rows.jsonl"
    append_rows(path, rows[:3])
    append_rows(path, rows, once=True)
    assert read_rows(path) == rows
    append_rows(path, rows[:1])  # a bench that measures again says so again
    assert len(read_rows(path)) == len(rows) + 1


@pytest.mark.gpu
def test_a_gpu_gives_what_the_processor_gives(bundle: Bundle, tmp_path: Path) -> None:
    moved = tiny_bundle(tmp_path).to("cuda")
    images, weights = _images(bundle, 4), _adapter(bundle)
    s, noise = torch.linspace(0.1, 0.9, 4), torch.randn(images.shape)
    found = []
    for one in (bundle, moved):
        with adapters(one.base.model, weights):
            found.append(one.base.loss_at(images, s, noise).cpu())
    assert torch.allclose(found[0], found[1], rtol=1e-3)
    config = SamplingConfig(count=5, steps=3, batch_size=2, bf16=False)
    drawn = [draw_images(one, weights, config, seed=0) for one in (bundle, moved)]
    assert torch.allclose(drawn[0], drawn[1], atol=2e-2)


@pytest.mark.gpu
def test_adapters_are_trained_on_a_gpu_and_come_back(tmp_path: Path) -> None:
    moved = tiny_bundle(tmp_path).to("cuda")
    config = FinetuneConfig(rank=2, steps=3, batch_size=4)
    weights = lora_weights(moved, _images(moved, 16), config, seed=0)
    assert all(part.device.type == "cpu" for pair in weights.values() for part in pair)
    family = moved.load_base()
    rng = torch.Generator().manual_seed(0)
    grads = per_example_gradients(
        family.model, weights, lambda: record_losses(family, _images(moved), 1, rng), examples=3
    )
    assert all(part.device.type == "cpu" for pair in grads.values() for part in pair)
    assert any(bool(b.abs().max() > 0) for _, b in grads.values())


@pytest.mark.gpu
def test_a_fit_on_a_gpu_passes_its_own_checks(tmp_path: Path) -> None:
    moved = tiny_bundle(tmp_path).to("cuda")
    config = FitConfig(size=40, expected_batch=10, steps=3)
    budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
    for method in ("dpsgd", "ffa", "projected", "anadp"):
        chosen = dataclasses.replace(config, method=method)
        weights = fit_once(moved, _images(moved, 40), chosen, budget)
        assert all(part.device.type == "cpu" for pair in weights.values() for part in pair)


@pytest.mark.gpu
def test_the_classifier_of_images_stays_where_it_was_trained() -> None:
    images = torch.rand(100, 1, 28, 28) * 2 - 1
    model = train_classifier(images, torch.arange(100) % 2, epochs=1, device=torch.device("cuda"))
    assert device_of(model).type == "cuda"
    assert model.predict(images).device.type == "cpu"


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("avx512_bf16 avx512_vbmi", True),
        ("amx_tile amx_bf16", True),
        ("avx2 avx512f", False),
        ("avx512_bf16_of_another_name", False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_says_so(tmp_path, flags, fast):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse2\n")
    assert has_fast_bf16(info) is fast
    assert not has_fast_bf16(tmp_path / "absent")


@pytest.mark.parametrize("begun_as", ["/somewhere/bin/hyperdp", "/somewhere/hyperdp/__main__.py"])
def test_rows_name_the_command_and_no_folder_of_the_machine(monkeypatch, begun_as):
    monkeypatch.setattr("sys.argv", [begun_as, "bench", "bench-quick"])
    assert provenance()["command"] == "hyperdp bench bench-quick"
