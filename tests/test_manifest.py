"""The manifest: it names every file of a bundle, and nothing that it does not name is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hyperdp.bundle import SHIPPED, load_bundle
from hyperdp.errors import BundleError
from hyperdp.lora import save_peft
from hyperdp.manifest import MEASURED, NETWORKS, read_manifest
from hyperdp.text_bundle import MODEL, open_bundle
from tests.text_world import text_bundle
from tests.worlds import tiny_bundle


def rewrite(folder: Path, change) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_bytes())
    change(manifest["files"])
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("folder", sorted(p.parent for p in SHIPPED.glob("*/bundle.json")), ids=str)
def test_the_shipped_bundles_hold_what_they_name_and_no_more(folder: Path):
    read_manifest(folder)


def test_an_adapter_laid_beside_the_model_is_refused_and_not_put_into_it(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    sites = {name: bundle.base.model.get_submodule(name) for name in bundle.config.sites[:2]}
    weights = {
        name: (module.weight.new_ones(1, 2, module.in_features),
               module.weight.new_ones(1, module.out_features, 2))
        for name, module in sites.items()
    }  # fmt: skip
    save_peft(weights, tmp_path / "b" / MODEL, base_name="tiny-text")
    with pytest.raises(BundleError, match=r"adapter_config\.json"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    "name", ["x.py", "unet/model.safetensors", "deep/er/x", f"unet/{MEASURED[0]}"]
)
def test_a_file_that_the_manifest_does_not_name_is_refused(name: str, tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    path = tmp_path / "b" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("planted")
    with pytest.raises(BundleError, match=path.name):
        load_bundle(tmp_path / "b")


def test_a_link_to_a_folder_is_refused_too(tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / "more").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="more"):
        load_bundle(tmp_path / "b")


def test_what_was_measured_later_and_hidden_files_may_lie_there(tmp_path: Path):
    saved = tiny_bundle(tmp_path / "b")
    for name in (*MEASURED, ".DS_Store", "unet/.hidden"):
        (tmp_path / "b" / name).write_text("later")
    assert load_bundle(tmp_path / "b").hash == saved.hash


@pytest.mark.parametrize("gone", [None, *NETWORKS, "unet/config.json"])
def test_a_manifest_must_name_the_networks_and_the_model(gone: str | None, tmp_path: Path):
    tiny_bundle(tmp_path / "b")
    rewrite(tmp_path / "b", lambda files: files.pop(gone) if gone else files.clear())
    with pytest.raises(BundleError, match="a manifest that names"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_bundle_is_never_run(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text_bundle(tmp_path / "b")
    lm, ran = tmp_path / "b" / MODEL, tmp_path / "ran"
    (lm / "planted.py").write_text(f"open({str(ran)!r}, 'w')\nclass Planted: pass\n")
    own = json.loads((lm / file).read_bytes())
    own["auto_map"] = {
        "AutoConfig": "planted.Planted",
        "AutoModelForCausalLM": "planted.Planted",
        "AutoTokenizer": ["planted.Planted", "planted.Planted"],
    }
    own["model_type"], own["tokenizer_class"] = "planted", "Planted"
    (lm / file).write_text(json.dumps(own))
    for name in (file, "planted.py"):
        digest = hashlib.sha256((lm / name).read_bytes()).hexdigest()
        rewrite(tmp_path / "b", lambda files, k=f"{MODEL}/{name}", v=digest: files.update({k: v}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what an operator might answer
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "b")
    assert not ran.exists()
