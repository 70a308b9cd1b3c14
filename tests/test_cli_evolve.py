"""`hyperdp evolve` from a file to verified images, and what it refuses."""

from __future__ import annotations

import json

import numpy as np

from hyperdp.cli._app import run
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle


def test_a_file_becomes_images_that_verify(tmp_path, capsys, monkeypatch):
    tiny_bundle(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=pixels)
    words = [
        "evolve", str(tmp_path / "scans.npz"), "--bundle", str(tmp_path / "bundle"),
        "--ledger", str(tmp_path / "ledger.db"), "--epsilon", "0.5", "--delta", "1e-6",
        "--count", "3", "--candidates", "2", "--iterations", "2",
    ]  # fmt: skip
    where = ["-o", str(tmp_path / "evolved"), "--images", str(tmp_path / "images")]
    assert run([*words, "--last-strength", "1.5", *where]) == 2
    assert "last_strength" in capsys.readouterr().err
    assert not (tmp_path / "ledger.db").exists()
    assert run([*words, *where, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["count"], facts["iterations"], facts["unit"]) == (3, 2, "record")
    assert len(list((tmp_path / "images").glob("*.png"))) == 3
    assert run(["verify", str(tmp_path / "evolved"), "-l", str(tmp_path / "ledger.db")]) == 0
    assert "epsilon (Fourier)" in capsys.readouterr().out
    assert run([*words, "-o", str(tmp_path / "again")]) == 3  # the cap is spent
    capsys.readouterr()
    for place in ("images", "scans.npz", "scans.npz/in"):  # full, a file, and in the data
        again = ["-o", str(tmp_path / "again"), "--images", str(tmp_path / place), "--dataset", "x"]
        assert run([*words, *again]) == 2
        assert "--images" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run([*words, "-o", str(tmp_path / "again"), "--dataset", "x"]) == 2
    assert "one process for `hyperdp evolve`" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE")
    assert not (tmp_path / "again").exists()
    assert run(["evolve", "--help"]) == 0
    assert "Example: hyperdp evolve" in " ".join(capsys.readouterr().out.split())
