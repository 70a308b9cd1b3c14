"""Samples of a labelled release are given to the class on whose side they lie, each to one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.cli._app import run
from hyperdp.errors import UsageError
from hyperdp.private.selection import class_margins, select_by_class


def world(classes: int, *, k: int = 24, each: int = 40, apart: float = 0.3, seed: int = 0):
    """Means of classes, and samples around them: [L, k], [L·each, k], [L·each]."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, k)) / np.sqrt(k)
    labels = np.repeat(np.arange(classes), each)
    samples = 0.2 * rng.standard_normal((len(labels), k)) / np.sqrt(k) + apart * means[labels]
    return torch.tensor(means).float(), torch.tensor(samples).float(), labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_margins_are_those_of_a_loop(classes: int):
    means, samples, _ = world(classes)
    found = class_margins(samples, means)
    x, z = samples.double().numpy(), means.double().numpy()
    sides = np.empty((len(x), classes))
    for c in range(classes):
        rest = np.mean([z[o] for o in range(classes) if o != c], axis=0)
        sides[:, c] = [row @ (z[c] - rest) for row in x]
        sides[:, c] = (sides[:, c] - sides[:, c].mean()) / sides[:, c].std(ddof=1)
    for i in range(len(x)):
        for c in range(classes):
            wanted = sides[i, c] - max(sides[i, o] for o in range(classes) if o != c)
            assert abs(float(found[i, c]) - wanted) < 1e-4


@pytest.mark.parametrize("classes", [2, 4])
def test_each_class_gets_its_own_and_no_sample_goes_twice(classes: int):
    means, samples, labels = world(classes)
    chosen = select_by_class(samples, means, 20)
    rows = [row for own in chosen for row in own]
    assert [len(own) for own in chosen] == [20] * classes
    assert len(set(rows)) == len(rows)
    for c, own in enumerate(chosen):
        assert np.mean(labels[own] == c) > 0.9


def test_noise_that_all_samples_share_changes_nothing():
    """The noise of z adds ⟨what samples have in common, noise⟩ to every sample alike."""
    means, samples, _ = world(2)
    common = torch.randn(samples.shape[1], generator=torch.Generator().manual_seed(1))
    assert select_by_class(samples, means, 10) == select_by_class(samples + common, means, 10)


def test_all_samples_are_given_where_as_many_are_wanted():
    means, samples, _ = world(3, each=7)
    chosen = select_by_class(samples, means, 7)
    assert sorted(row for own in chosen for row in own) == list(range(21))


def test_what_cannot_be_chosen_by_is_refused():
    means, samples, _ = world(2, each=5)
    with pytest.raises(UsageError, match="two classes"):
        select_by_class(samples, means[:1], 2)
    with pytest.raises(UsageError, match="at least 12 samples"):
        select_by_class(samples, means, 6)


def test_documents_of_a_labelled_release_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    rows = [
        {"text": f"{word} " * 12, "kind": kind}
        for kind, word in (("not spam", "meeting at noon"), ("spam", "win money now"))
        for _ in range(20)
    ]
    data = tmp_path / "mails.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    made, adapters = str(tmp_path / "release"), str(tmp_path / "adapters")
    assert run(["release", str(data), "-o", made, "-b", "text-tiny", "--epsilon", "8", "-d", "1e-5",
                "--text-column", "text", "--label-column", "kind", "--classes", "not spam,spam",
                "--ledger", str(tmp_path / "ledger.json")]) == 0  # fmt: skip
    assert run(["emit", made, "-o", adapters, "-b", "text-tiny"]) == 0
    capsys.readouterr()
    words = ["sample", adapters, "-b", "text-tiny", "--json"]
    assert run([*words, "-n", "4", "-o", str(tmp_path / "all")]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == {"not_spam": 4, "spam": 4}  # folders
    chosen = ["--release", made, "--candidates", "2", "-o", str(tmp_path / "chosen")]
    assert run([*words, "-n", "2", *chosen]) == 0
    drawn, kept = (
        [json.loads(line) for line in (tmp_path / name / "texts.jsonl").open(encoding="utf-8")]
        for name in ("all", "chosen")
    )
    # What stands in the file is the class, as the data had it.
    assert [line["label"] for line in kept] == ["not spam", "not spam", "spam", "spam"]
    texts = [line["text"] for line in drawn]
    assert len(set(texts)) == 8 and {line["text"] for line in kept} < set(texts)
    assert run([*words, "--candidates", "2", "-o", str(tmp_path / "alone")]) == 2
    assert "--release" in capsys.readouterr().err
    assert run(["sample", f"{adapters}/not_spam", "-b", "text-tiny", "--release", made,
                "--candidates", "2", "-o", str(tmp_path / "one")]) == 2  # fmt: skip
    assert not (tmp_path / "one").exists() and not (tmp_path / "alone").exists()
