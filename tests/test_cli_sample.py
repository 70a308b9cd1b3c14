"""`hyperdp sample`: an adapter of another model is refused by name, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdp.cli._app import run
from hyperdp.lora import save_peft
from tests.worlds import tiny_bundle


def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    bundle = tiny_bundle(tmp_path / "bundle")
    own, foreign = bundle.config.sites[0], "model.layers.0.self_attn.q_proj"
    weights = {foreign: (torch.zeros(1, 2, 8), torch.zeros(1, 8, 2))}
    save_peft(weights, tmp_path / "adapter", base_name="lm")
    words = ["-b", str(bundle.path), "-n", "1", "-o", str(tmp_path / "out")]
    assert run(["sample", str(tmp_path / "adapter"), *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert foreign in said and "--bundle" in said and own not in said
    assert not (tmp_path / "out").exists()
