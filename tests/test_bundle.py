"""Bundles: a round trip, one hash, and refusal of anything changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

from hyperdp.bundle import load_bundle
from hyperdp.errors import BundleError
from hyperdp.manifest import MEASURED
from tests.worlds import tiny_bundle, tiny_encoder


def test_round_trip_keeps_hash_and_function(tmp_path: Path):
    saved = tiny_bundle(tmp_path / "b")
    again = load_bundle(tmp_path / "b")
    assert again.hash == saved.hash
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again.encoder(x), saved.encoder(x))
        # weights are stored as float16: close to what was trained, not equal
        torch.testing.assert_close(again.encoder(x), tiny_encoder()(x), rtol=1e-2, atol=1e-2)
    assert not again.encoder.training


def test_stock_diffusers_loads_the_base(tmp_path: Path):
    bundle = tiny_bundle(tmp_path / "b")
    unet = UNet2DModel.from_pretrained(tmp_path / "b" / "unet", torch_dtype=torch.float32)
    FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "b" / "scheduler")
    own = bundle.base.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in unet.state_dict().items())


@pytest.mark.parametrize(
    "file",
    [
        "encoder.safetensors",
        "hypernetwork.safetensors",
        "training.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_one_changed_byte_is_refused(tmp_path: Path, file: str):
    tiny_bundle(tmp_path / "b")
    path = tmp_path / "b" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(tmp_path / "b")


def test_a_missing_file_is_refused(tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / "encoder.safetensors").unlink()
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "b")


def test_another_manifest_is_another_hash(tmp_path: Path):
    assert tiny_bundle(tmp_path / "a").hash != tiny_bundle(tmp_path / "b", name="other").hash


@pytest.mark.parametrize("change", [{"format": 99}, {"files": []}, {"config": None}])
def test_a_bad_manifest_is_refused(tmp_path: Path, change: dict[str, object]):
    tiny_bundle(tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "b")


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(tmp_path / "b")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["hypernetwork"]["width"] = 24
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="weights that fit"):
        load_bundle(tmp_path / "b")


def test_an_unknown_bundle_names_the_shipped_ones():
    with pytest.raises(BundleError, match="Shipped bundles"):
        load_bundle("no-such-bundle")


def test_a_manifest_may_not_point_outside_its_folder(tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    path = tmp_path / "b" / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside.txt"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "b")


def test_what_was_measured_on_a_bundle_does_not_outlive_it(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_bundle(folder)
    for name in MEASURED:
        (folder / name).write_text("of the bundle that lies here")
    again = tiny_bundle(folder, name="other")
    assert not any((folder / name).exists() for name in MEASURED)
    assert all((tmp_path / "tiny.1" / name).is_file() for name in MEASURED)  # nor is it lost
    (folder / MEASURED[0]).write_text("measured on it later")
    assert load_bundle(folder).hash == again.hash
