"""From a release to PEFT adapters, and those in a process where hyperdp is not importable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import BundleError, UsageError
from hyperdp.ledger import Ledger
from hyperdp.lora import attach_peft, load_peft
from hyperdp.private.emit import adapter_weights, class_folders, emit_adapter
from hyperdp.private.records import Record
from hyperdp.private.release import Release, release
from tests.worlds import tiny_bundle

STOCK = """
import sys
sys.modules["hyperdp"] = None  # an import of it would fail
import numpy as np, torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from peft import PeftModel
bundle, adapter, out = sys.argv[1:4]
torch.set_num_threads(1)
unet = UNet2DModel.from_pretrained(bundle + "/unet", torch_dtype=torch.float32)
model = PeftModel.from_pretrained(unet, adapter).eval()
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(bundle + "/scheduler")
x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(11))
scheduler.set_timesteps(5)
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x, return_dict=False)[0]
np.save(out, x.clamp(-1, 1).numpy())
"""


def _records(count: int, *, classes: list[str] | None = None) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        Record(
            image=rng.uniform(-1, 1, (1, 28, 28)).astype(np.float32),
            label=classes[i % len(classes)] if classes else None,
        )
        for i in range(count)
    ]


def _release(bundle: Bundle, folder: Path, *, classes: list[str] | None = None) -> Release:
    return release(
        _records(400, classes=classes),
        bundle=bundle,
        budget=PrivacyBudget(epsilon=4.0, delta=1e-5),
        ledger=Ledger(folder / "ledger.db"),
        out=folder / "release",
        dataset="test",
        classes=classes,
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> Bundle:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    return tiny_bundle(tmp_path / "bundle")


def test_the_adapter_is_rho_of_the_release(bundle: Bundle, tmp_path: Path):
    made = _release(bundle, tmp_path)
    [folder] = emit_adapter(tmp_path / "release", bundle, tmp_path / "adapter")
    expected = adapter_weights(bundle, made.mean(), made.mean_noise_std())
    for name, (a, b) in load_peft(folder).items():
        assert torch.equal(a, expected[name][0])
        assert torch.equal(b, expected[name][1])
    assert (folder / "certificate.json").read_bytes() == (
        tmp_path / "release" / "certificate.json"
    ).read_bytes()


def test_a_labelled_release_emits_an_adapter_for_each_class(bundle: Bundle, tmp_path: Path):
    made = _release(bundle, tmp_path, classes=["cat", "dog/wolf"])
    folders = emit_adapter(made, bundle, tmp_path / "adapter")
    assert [f.name for f in folders] == ["cat", "dog_wolf"]
    weights = [load_peft(f) for f in folders]
    name = next(iter(weights[0]))
    assert not torch.equal(weights[0][name][1], weights[1][name][1])
    both = adapter_weights(bundle, made.mean(), made.mean_noise_std())
    assert torch.equal(weights[1][name][1][0], both[name][1][1])
    modes = {f.stat().st_mode & 0o777 for f in folders[0].iterdir() if f.suffix != ".md"}
    assert len(modes) == 1  # whoever may read one of them may read all
    # From Python, where the release is at hand as an object, the certificate comes along too.
    stated = (tmp_path / "release" / "certificate.json").read_bytes()
    assert (tmp_path / "adapter" / "certificate.json").read_bytes() == stated


def test_another_bundle_is_refused(bundle: Bundle, tmp_path: Path):
    _release(bundle, tmp_path)
    other = tiny_bundle(tmp_path / "other", name="other")
    with pytest.raises(BundleError, match="made with"):
        emit_adapter(tmp_path / "release", other, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_is_overwritten(bundle: Bundle, tmp_path: Path):
    made = _release(bundle, tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="empty or new"):
        emit_adapter(made, bundle, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "folder"), [("7", "7"), ("../up", "_up"), ("", "_"), ("ä b", "ä_b"), ("..", "_")]
)
def test_class_names_cannot_leave_the_folder(name: str, folder: str):
    assert class_folders([name]) == [folder]


def test_classes_whose_names_come_to_the_same_have_folders_of_their_own():
    assert class_folders(["c++", "c__", "C", "c"]) == ["c__-0", "c__-1", "C-2", "c-3"]
    assert len(set(class_folders(["a+", "a_", "a_-0"]))) == 3


def _stock_images(bundle: Bundle, adapter: Path, out: Path) -> np.ndarray:
    subprocess.run(
        [sys.executable, "-c", STOCK, str(bundle.path), str(adapter), str(out)],
        check=True,
        cwd=out.parent,
    )
    return np.load(out)


def test_stock_diffusers_and_peft_draw_the_same_images_bit_for_bit(bundle: Bundle, tmp_path: Path):
    _release(bundle, tmp_path)
    [adapter] = emit_adapter(tmp_path / "release", bundle, tmp_path / "adapter")
    stock = _stock_images(bundle, adapter, tmp_path / "stock.npy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        family = bundle.load_base()
        ours = family.sample(
            4, seed=11, steps=5, batch_size=4, model=attach_peft(family.model, adapter)
        )
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(stock, ours.numpy())


def test_the_shipped_bundle_too(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    test_stock_diffusers_and_peft_draw_the_same_images_bit_for_bit(load_bundle("glyphs"), tmp_path)
