"""`hyperdp fit` from a file to a verified adapter, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hyperdp.cli._app import run
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle


@pytest.fixture
def words(tmp_path):
    tiny_bundle(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=pixels)
    return [
        "fit", str(tmp_path / "scans.npz"), "--bundle", str(tmp_path / "bundle"),
        "--ledger", str(tmp_path / "ledger.db"), "--epsilon", "0.5", "--delta", "1e-4",
        "--size", "8", "--batch", "4", "--steps", "2", "--rank", "2", "--microbatch", "4",
        "-o", str(tmp_path / "adapter"),
    ]  # fmt: skip


def test_a_file_becomes_an_adapter_that_verifies(words, tmp_path, capsys):
    assert run([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == "dpsgd"
    assert facts["sampling_probability"] == 0.5
    assert run(["verify", str(tmp_path / "adapter"), "-l", str(tmp_path / "ledger.db")]) == 0
    assert "epsilon (Fourier)" in capsys.readouterr().out
    assert run([*words[:-1], str(tmp_path / "again")]) == 3  # the cap is spent


def test_bad_words_are_refused(words, capsys):
    assert run([*words, "--method", "magic"]) == 2
    assert "dpsgd, ffa, projected, prism, anadp" in capsys.readouterr().err
    assert run([*words, "--batch", "9"]) == 2
    assert "public size, 8" in capsys.readouterr().err
    assert run([*words, "--method", "prism", "--optimizer", "sgd", "--start", "public-mean"]) == 2
    assert "found --optimizer. Leave" in capsys.readouterr().err
    assert run([*words, "--start", "spectral", "--init", "nowhere"]) == 2
    assert "found --start. Leave" in capsys.readouterr().err
    assert run(["fit", "--help"]) == 0
    assert "Example: hyperdp fit" in " ".join(capsys.readouterr().out.split())
