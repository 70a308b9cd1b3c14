"""`hyperdp private --refine`, from a file to two verified certificates."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hyperdp.cli._app import run
from hyperdp.ledger import Ledger
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle


@pytest.fixture
def words(tmp_path):
    tiny_bundle(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=pixels)
    return [
        "private", str(tmp_path / "scans.npz"), "--bundle", str(tmp_path / "bundle"),
        "--ledger", str(tmp_path / "ledger.db"), "--epsilon", "0.5", "--delta", "1e-4",
        "--allow-weak-delta", "-o", str(tmp_path / "out"),
    ]  # fmt: skip


STEPS = ["--size", "8", "--batch", "4", "--steps", "2", "--microbatch", "4"]


def test_one_budget_ends_in_two_certificates_that_verify(words, tmp_path, capsys):
    asked = [*words, "--refine", "prism", *STEPS, "--json"]
    assert run(asked) == 0
    shown = capsys.readouterr()
    assert "a guess" in shown.err
    facts = json.loads(shown.out)
    assert (facts["method"], facts["fraction"], facts["fraction_from"]) == ("prism", 0.5, "guess")
    assert facts["release_epsilon"] < facts["epsilon"] <= 0.5
    for part in ("release", "adapter"):
        assert run(["verify", str(tmp_path / "out" / part), "-l", str(tmp_path / "ledger.db")]) == 0
    assert run(asked) == 2  # the folder is taken
    assert run([*asked[:-1], "-o", str(tmp_path / "again")]) == 3  # the budget is spent
    assert Ledger(tmp_path / "ledger.db").account(str(tmp_path / "scans.npz")).cap.epsilon == 0.5


def test_a_share_of_zero_is_the_one_shot_path(words, tmp_path, capsys):
    assert run([*words, "--refine", "dpsgd", "--refine-fraction", "0"]) == 0
    assert "spent: epsilon 0.5" in capsys.readouterr().out
    kinds = [e.kind for e in Ledger(tmp_path / "ledger.db").history()]
    assert kinds == ["cap", "reserve", "spend", "commit"]
    release = json.loads((tmp_path / "out" / "release" / "certificate.json").read_bytes())
    beside = json.loads((tmp_path / "out" / "adapter" / "certificate.json").read_bytes())
    assert release == beside  # what `emit` lays beside an adapter
    assert release["epsilon"] == 0.5


def test_bad_words_are_refused_before_anything_is_spent(words, tmp_path, capsys):
    for more, told in (
        (["--refine", "prism"], "--size with --refine"),
        (["--steps", "3"], "--refine prism or --refine dpsgd"),
        (["--refine", "prism", *STEPS, "--refine-fraction", "1"], "hyperdp fit"),
        (["--refine", "prism", "--size", "0"], "--size of at least 1"),
        (["--refine", "prism", "--size", "-4"], "--size of at least 1"),
        (["--refine", "prism", *STEPS, "--epsilon", "0"], "epsilon"),
        (["--refine", "prism", *STEPS, "--epsilon", "-2"], "epsilon"),
        (["--refine", "prism", *STEPS, "--adjacency", "replace-one"], "add-remove"),
        (["--refine", "dpsgd", *STEPS, "--label-column", "folder", "--classes", "0,1"],
         "unlabelled release with --refine"),
    ):  # fmt: skip
        assert run([*words, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "ledger.db").exists()
