"""Text bundles: a round trip, one hash, and refusal of anything changed or of the other kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hyperdp.bundle import load_bundle
from hyperdp.errors import BundleError
from hyperdp.text_bundle import MODEL, TextBundle, load_text_bundle, open_bundle
from tests.text_world import TEXTS, encoder, text_bundle
from tests.worlds import tiny_bundle


def test_round_trip_keeps_hash_and_function(tmp_path: Path):
    saved = text_bundle(tmp_path / "b")
    again = open_bundle(tmp_path / "b")
    assert isinstance(again, TextBundle) and again.hash == saved.hash
    x = torch.from_numpy(again.base.tokenizer.encode_all(TEXTS))
    with torch.no_grad():
        assert torch.equal(again.encoder(x), saved.encoder(x))
        trained = encoder(again.config.vocab_size)(x)
        torch.testing.assert_close(again.encoder(x), trained, rtol=1e-2, atol=1e-2)
    assert not again.encoder.training


def test_stock_transformers_loads_the_base(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / MODEL, dtype=torch.float32)
    own = bundle.base.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "b" / MODEL)) == bundle.config.vocab_size


@pytest.mark.parametrize(
    "file", ["encoder.safetensors", f"{MODEL}/model.safetensors", f"{MODEL}/tokenizer.json"]
)
def test_one_changed_byte_is_refused(tmp_path: Path, file: str):
    text_bundle(tmp_path / "b")
    path = tmp_path / "b" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [{"embed_dim": 4}, {"vocab_size": 7}, {"clip_norm": 0}, {"encoder_kind": "x"}, {"nope": 1}],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object]):
    text_bundle(tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["config"].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "b")


def test_a_bundle_of_the_other_kind_is_named_as_such(tmp_path: Path):
    text_bundle(tmp_path / "text")
    tiny_bundle(tmp_path / "image")
    with pytest.raises(BundleError, match="Text bundles"):
        load_bundle(tmp_path / "text")
    with pytest.raises(BundleError, match="causal-lm"):
        load_text_bundle(tmp_path / "image")
    assert open_bundle(tmp_path / "image").hash == load_bundle(tmp_path / "image").hash
