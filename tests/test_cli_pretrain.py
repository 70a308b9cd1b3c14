"""`hyperdp pretrain`: the files that judging and tuning read, drawn from the shipped sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperdp.cli.pretrain import app
from hyperdp.errors import UsageError
from hyperdp.eval.measure import read_reference
from hyperdp.eval.world import load_set
from hyperdp.library import Library
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.style import Style
from hyperdp.pretrain.text_corpus import open_text_sample
from hyperdp.private.readers import open_dataset
from hyperdp.text_bundle import load_text_bundle
from tests.worlds import tiny_bundle


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["held-out", "--records", "24"], "held-out.npz"),
        (["tasks", "--count", "1", "--records", "24"], "public-0-0.npz"),
        (["tasks", "--count", "1", "--records", "24", "--unseen"], "unseen-0-0.npz"),
    ],
)
def test_public_sets_can_be_read_by_the_bench(
    arguments: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus_module, "open_corpus", open_sample)
    out = tmp_path / file if arguments[0] == "held-out" else tmp_path
    for _ in range(2):  # the same seed, the same records
        result = CliRunner().invoke(app, [*arguments, "-o", str(out)])
        assert result.exit_code == 0, result.output
        found = load_set(str(tmp_path / file))
        assert found.pool.shape == found.reference.shape == (24, 1, 28, 28)
        assert found.pool.min() >= -1 and found.pool.max() > 0.5
        assert not torch.equal(found.pool, found.reference)


def test_public_records_are_of_both_kinds_and_can_be_read_as_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus_module, "open_corpus", open_sample)
    out = tmp_path / "public.npz"
    result = CliRunner().invoke(app, ["public", "-n", "1200", "-o", str(out)])
    assert result.exit_code == 0, result.output
    images, pool = read_reference(str(out), (1, 28, 28))
    assert pool is None and images.shape == (1200, 1, 28, 28)
    assert images.min() == -1 and (images.flatten(1).amax(1) > 0).float().mean() > 0.95
    assert len(images.unique(dim=0)) > 1000  # the sample has few readable digits and letters


def test_public_digits_come_with_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_module, "open_corpus", open_sample)
    out = tmp_path / "digits.npz"
    result = CliRunner().invoke(app, ["public", "--digits", "-n", "120", "-o", str(out)])
    assert result.exit_code == 0, result.output
    opened = open_dataset(out, image_shape=(1, 28, 28), label_column="labels")
    labels = [record.label for record in opened.records()]
    assert sorted(labels) == sorted("0123456789" * 12)
    plain = tmp_path / "digits.v2"
    result = CliRunner().invoke(app, ["public", "--digits", "-n", "120", "-o", str(plain)])
    assert result.output.split() == [f"{plain}.npz"] and Path(f"{plain}.npz").is_file()
    wrong = ["public", "--texts", "text-sample", "-o", str(tmp_path / "x.npz")]
    assert isinstance(CliRunner().invoke(app, wrong).exception, UsageError)
    both = ["public", "--digits", "--texts", "text-sample", "-o", str(tmp_path / "both")]
    assert isinstance(CliRunner().invoke(app, both).exception, UsageError)


def test_public_documents_are_those_of_training_and_none_comes_twice(tmp_path: Path):
    out = tmp_path / "public.jsonl"
    words = ["public", "--texts", "text-sample", "-n", "150", "-o", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    corpus = open_text_sample()
    of_training = {corpus.documents[i] for i in np.nonzero(corpus.split == 0)[0]}
    assert len(texts) == len(set(texts)) == 150 and set(texts) <= of_training
    result = CliRunner().invoke(app, ["public", "--texts", "poems", "-o", str(out)])
    assert "text-sample" in str(result.exception)


def test_a_library_is_made_and_gone_on_with(tmp_path: Path):
    tiny = tiny_bundle(tmp_path / "bundle")
    words = ["library", "-o", str(tmp_path / "l"), "--bundle", str(tmp_path / "bundle"),
             "--corpus", "sample", "--records", "4", "--steps", "1", "--rank", "2"]  # fmt: skip
    for tasks in ("1", "2"):
        result = CliRunner().invoke(app, [*words, "--tasks", tasks])
        assert result.exit_code == 0, result.output
        assert f"{tasks} public tasks" in result.output
    library = Library.load(tmp_path / "l", tiny)
    assert library.settings["train"]["rank"] == 2
    assert all(b.shape[2] == 2 for _, b in library.task(1)[1].values())
    other = CliRunner().invoke(app, [*words, "--steps", "2"])
    assert "other settings" in str(other.exception)


def test_both_stages_of_text_are_trained_by_the_command_line(tmp_path: Path):
    base, run = str(tmp_path / "base"), str(tmp_path / "run")
    for words in (
        ["base", "text-toy-base", "-o", base, "--steps", "2"],
        ["hyper", "text-toy", "-o", run, "--steps", "2", "--base", base],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert load_text_bundle(tmp_path / "run" / "bundle").name == "text-toy"


def test_digits_to_tune_on_are_of_faces_that_the_public_ones_are_not(monkeypatch, tmp_path: Path):
    splits: list[int] = []
    styles: list[Style | None] = []

    def drawn(corpus, split, count, rng, *, style):
        splits.append(split)
        styles.append(style)
        return torch.zeros(count, 1, 28, 28), torch.arange(count) % 10

    monkeypatch.setattr(corpus_module, "open_corpus", open_sample)
    monkeypatch.setattr("hyperdp.pretrain.digits.draw_digits", drawn)
    words = ["digits", "-n", "30", "--held-out", "20", "-o", str(tmp_path / "digits.npz")]
    for more, pool in (([], 0), (["--other-faces"], 1)):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        assert splits == [pool, 1] and styles == [None, None]
        splits.clear()
        styles.clear()
    result = CliRunner().invoke(app, [*words, "--other-faces", "--one-style"])
    assert result.exit_code == 0, result.output
    assert styles[0] is styles[1] is not None  # what is held out is of the same source
    data = load_set(str(tmp_path / "digits.npz"))
    assert (len(data.pool), len(data.reference)) == (30, 20)
