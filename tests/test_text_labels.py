"""Labelled private documents, and what their adapters are worth to a classifier."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.cli._app import run
from hyperdp.errors import UsageError
from hyperdp.eval import text_labels, text_sets
from hyperdp.eval.cells import Cell
from hyperdp.eval.class_learners import fits_by_class
from hyperdp.eval.metrics.divergence import mauve
from hyperdp.eval.results import read_rows
from hyperdp.eval.text_classifier import classify, zero_shot_accuracy
from hyperdp.eval.text_labels import TextLabels, label_cells
from hyperdp.eval.text_recipe import (
    RECIPES,
    TextClassifierConfig,
    TextLabelsConfig,
    read_labels_recipe,
    read_text_recipe,
    text_recipe_path,
)
from hyperdp.eval.text_sets import load_labelled_set, load_text_set
from hyperdp.eval.text_split import LabelledTextSet, split_documents, with_labels
from hyperdp.eval.text_study import embed_documents, release_documents, to_tokens
from hyperdp.lora import Weights
from hyperdp.private.embed import embed_batch
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.text_bundle import TextBundle
from tests.text_world import TEXTS, text_bundle

HAM = [f"{text} {i}" for i in range(30) for text in TEXTS[:3]]
SPAM = [f"{text} {i}" for i in range(15) for text in TEXTS[4:]]
SETTINGS = "steps = 2\nbatch_size = 4\n"
RECIPE = """
kind = "text-labels"
bench = "toy-labels"
bundle = "{bundle}"
private_sets = ["toy"]
n = [60, 5000]
epsilon = [8.0]
delta = 1e-5
seeds = [0, 1]
per_class = 6
candidates = 2
public = "{public}"
[finetune]
rank = 2
bf16 = false
{settings}
[reweight]
{settings}
[dpsgd]
steps = 2
share = 0.5
[prism]
steps = 2
share = 0.5
start = "public-mean"
[hybrid_dpsgd]
steps = 2
share = 0.5
fraction = 0.5
[hybrid_prism]
steps = 2
share = 0.5
fraction = 0.75
"""

STEPPED = ("dpsgd", "prism", "hybrid_dpsgd", "hybrid_prism")
PRIVATE = ("hyper", "selected", "reweighted", *STEPPED)


def toy(edition: int = 1) -> LabelledTextSet:
    whole = split_documents("toy", "Toy mail.", HAM + SPAM)
    return with_labels(whole, {"ham": HAM, "spam": SPAM})


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setitem(text_sets.LABELLED_SETS, "toy", toy)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return text_bundle(tmp_path_factory.mktemp("labels") / "b")


@pytest.fixture
def recipe(tmp_path: Path, bundle: TextBundle) -> Path:
    public = tmp_path / "public.jsonl"
    texts = (f"{text} {i}" for i in range(20) for text in TEXTS)
    public.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE.format(bundle=bundle.path, public=public, settings=SETTINGS))
    return path


def silent(*_: object):
    return lambda done, count: None


def test_labels_leave_the_split_as_it_is_and_drop_what_has_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "npm" / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"
    for group in (*text_sets.MAIL_GROUPS, "unlisted-1"):
        (data / group).mkdir(parents=True)
        for i in range(20):
            raw = f"Subject: s\n\nnumber {i} {group}"
            (data / group / f"{i}.json").write_text(json.dumps({"text": raw}))
        for i in range(4):
            (data / group / f"both-{i}.json").write_text(json.dumps({"text": f"\n\nin both {i}"}))
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path))
    plain, found = load_text_set("spam-assassin"), load_labelled_set("spam-assassin")
    assert found.classes == ["ham", "spam"]
    for part, whole in ((found.pool, plain.pool), (found.reference, plain.reference)):
        assert part == [text for text in whole if "in both" not in text]
        assert ["spam-" in text for text in part] == [c == 1 for c in found.labels(part)]
    together = found.pool + found.reference
    assert len(together) == 80 and not any("unlisted-1" in text for text in together)
    with pytest.raises(UsageError, match="with labels"):
        load_labelled_set("fortunes-science")


def test_a_document_without_a_class_is_in_no_labelled_set():
    data = split_documents("x", "y", [f"text {i}" for i in range(40)])
    found = with_labels(data, {"b": ["text 3", "text 4"], "a": ["  text 5 ", "text 3"]})
    assert sorted(found.pool + found.reference) == ["text 4", "text 5"]
    assert found.labels(["text 4", "text 5"]) == [1, 0]


def test_likelihood_has_no_class_prior_and_shares_a_draw():
    truth = np.array([0, 0, 0, 1])
    right = np.array([[1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 0.0]])
    assert zero_shot_accuracy(right, truth) == 1
    assert zero_shot_accuracy(right[::-1], truth) == 0
    assert zero_shot_accuracy(np.ones((2, 4)), truth) == 0.5
    always_ham = np.array([[0.0] * 4, [1.0] * 4])
    assert zero_shot_accuracy(always_ham, truth) == 0.5  # though three of four are right
    one_wrong = right.copy()
    one_wrong[0, 2] = 3.0
    assert zero_shot_accuracy(one_wrong, truth) == pytest.approx((2 / 3 + 1) / 2)
    assert zero_shot_accuracy(np.ones((3, 3)), np.arange(3)) == pytest.approx(1 / 3)


def test_the_classifier_weighs_classes_alike_and_repeats_itself():
    texts = ["rain on the harbour"] * 40 + ["buy it now"] * 2
    labels = np.repeat([0, 1], [40, 2])
    config = TextClassifierConfig()
    asked = ["harbour rain tonight", "now or never", "boats"]
    found = classify(texts, labels, asked, config)
    assert found[:2].tolist() == [0, 1]
    assert (found == classify(texts, labels, asked, config)).all()
    pairs = ["now buy", "buy now"] * 3
    ordered = classify(pairs, np.array([0, 1] * 3), pairs[:2], TextClassifierConfig(words=2))
    assert ordered.tolist() == [0, 1]  # which single words cannot tell


def test_documents_are_embedded_by_the_encoder_of_the_bundle(bundle: TextBundle):
    tokens = to_tokens(bundle, HAM[:70])
    found = embed_documents(bundle, tokens)
    assert found.shape == (70, bundle.config.embed_dim)
    with torch.no_grad():
        assert np.allclose(found, bundle.encoder(tokens).numpy(), atol=1e-5)
    assert (found[64:] == embed_batch(bundle.encoder, tokens[64:].numpy())).all()


@pytest.mark.slow
def test_every_method_is_measured_once_and_a_release_serves_all_its_readings(
    bundle: TextBundle, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, fitted, wrote = [], [], []
    write = TextLabels._write

    def spy_write(self, weights, *, seed, many):
        wrote.append((weights, seed))
        return write(self, weights, seed=seed, many=many)

    def spy_release(own, tokens, budget, **more):
        made.append((len(tokens), budget.epsilon, more))
        return release_documents(own, tokens, budget, **more)

    def spy_fits(own, groups, **more):
        fitted.append(([len(g) for g in groups], more["config"], more["budget"].epsilon))
        return fits_by_class(own, groups, **more)

    monkeypatch.setattr(TextLabels, "_write", spy_write)
    monkeypatch.setattr(text_labels, "release_documents", spy_release)
    monkeypatch.setattr(text_labels, "fits_by_class", spy_fits)
    rows_at, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text("<!-- table:toy-labels -->\n<!-- /table:toy-labels -->\n")
    words = ["bench", str(recipe), "-o", str(rows_at), "--into", str(page)]
    assert run(words) == 0
    rows = read_rows(rows_at)
    wanted = {("base", None, None, 0)}
    wanted |= {(m, 60, None, s) for m in text_labels.REFERENCES for s in (0, 1)}
    wanted |= {(m, 60, 8.0, s) for m in PRIVATE for s in (0, 1)}
    assert {(r.method, r.n, r.epsilon, r.seed) for r in rows} == wanted
    for method, n, epsilon, seed in wanted:
        own = [r for r in rows if (r.method, r.n, r.epsilon, r.seed) == (method, n, epsilon, seed)]
        metrics = {"accuracy", "mauve"} | ({"accuracy_zero_shot"} if method != "real" else set())
        assert {r.metric for r in own} == metrics
        assert all(0 <= r.value <= 1 for r in own)
        assert {r.delta for r in own} == {None if epsilon is None else 1e-5}
    value = {(r.method, r.seed, r.metric): r.value for r in rows}
    assert value["base", 0, "accuracy_zero_shot"] == 0.5  # the same adapter for both
    pairs = list(zip(wrote[::2], wrote[1::2], strict=True))  # real writes nothing
    assert len(pairs) == len(wanted) - 2 and pairs[0] == (({}, 0), ({}, 1))
    for (ham, one), (spam, other) in pairs[1:]:
        assert one != other and ham.keys() == spam.keys()
        assert any(not torch.equal(ham[site][1], spam[site][1]) for site in ham)

    per_seed = [toy().labels(toy().documents(60, seed=seed)) for seed in (0, 1)]
    assert [(n, e) for n, e, _ in made] == [(60, 8.0)] * 2  # for all three readings together
    assert [more["labels"] for *_, more in made] == per_seed
    assert all(more["classes"] == ["ham", "spam"] for *_, more in made)
    assert [sizes for sizes, *_ in fitted] == [
        [60 - sum(lb), sum(lb)] for lb in per_seed for _ in STEPPED
    ]
    assert [config.method for _, config, _ in fitted] == ["dpsgd", "prism"] * 4
    shares = [getattr(config, "fraction", None) for _, config, _ in fitted]
    assert shares == [None, None, 0.5, 0.75] * 2
    assert {(config.size, config.expected_batch, e) for _, config, e in fitted} == {(30, 15, 8.0)}

    lines = rows_at.read_bytes().splitlines(keepends=True)
    rows_at.write_bytes(b"".join(lines[:-3]))  # the last cell is lost
    assert run(words) == 0 and len(made) == 2 and len(fitted) == 9
    before = page.read_text()
    assert "| toy | hyper | 60 | 8 |" in before
    mixed = rows_at.read_bytes().splitlines(keepends=True)[::-1]
    rows_at.write_bytes(b"".join(mixed))
    assert run([*words, "--table-only"]) == 0
    order = [line.split(" | ")[1] for line in page.read_text().splitlines()[4:-2]]
    assert order == list(text_labels.METHODS)


def test_other_settings_are_measured_anew_where_they_matter(bundle: TextBundle, recipe: Path):
    config = read_labels_recipe(recipe)

    def bases(settings: TextLabelsConfig, edition: int = 1) -> dict[str, str]:
        return {
            method: text_labels.row_base(settings, bundle, method, edition)
            for method in text_labels.METHODS
        }

    def changed(**values: object) -> set[str]:
        other = bases(dataclasses.replace(config, **values))
        return {method for method, base in bases(config).items() if other[method] != base}

    for method in text_labels.METHODS:  # of another split all rows are others
        assert bases(config)[method] != bases(config, edition=2)[method]

    assert changed(finetune=FinetuneConfig(steps=3)) == {"lora"}
    assert changed(finetune_trials=[{"steps": 3}]) == {"lora"}
    assert changed(dpsgd={"steps": 3}) == {"dpsgd"}
    assert changed(prism={"steps": 3}) == {"prism"}
    assert changed(hybrid_prism={"steps": 3, "fraction": 0.5}) == {"hybrid_prism"}
    assert changed(public="other.jsonl") == {"reweighted"}
    assert changed(per_class=7) == set(text_labels.METHODS)
    assert changed(seeds=[0, 1, 2]) == set()
    assert changed(candidates=5) == {"selected"}
    assert changed(delta=1e-6) == set(PRIVATE)


def test_selected_are_what_both_classes_wrote_by_the_release_itself(
    bundle: TextBundle, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(read_labels_recipe(recipe), candidates=3)
    bench, wrote, judged = TextLabels(config, bundle), [], []
    write = TextLabels._write

    def spy_write(self, weights, *, seed, many):
        wrote.append(write(self, weights, seed=seed, many=many))
        return wrote[-1]

    monkeypatch.setattr(TextLabels, "_write", spy_write)
    monkeypatch.setattr(
        TextLabels, "_worth", lambda self, data, groups: judged.append(groups) or {}
    )
    bench.figures(
        Cell(private_set="toy", method="selected", n=60, epsilon=8.0, seed=0), lambda *_: None
    )
    assert [len(texts) for texts in wrote] == [3 * config.per_class] * 2
    texts = wrote[0] + wrote[1]
    (z,) = (made.mean().double().numpy() for made in bench._releases.values())
    found = embed_documents(bundle, to_tokens(bundle, texts))
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True) / bundle.config.clip_norm, 1)
    side = found @ (z[1] - z[0])
    order = np.argsort(side)
    ham, spam = judged[0]
    for own, rows in ((ham, order[: config.per_class]), (spam, order[-config.per_class :])):
        assert sorted(own) == sorted(texts[row] for row in rows)


def test_real_documents_tell_the_classes_apart_and_so_do_adapters_that_learnt_them(
    bundle: TextBundle, recipe: Path
):
    config = dataclasses.replace(
        read_labels_recipe(recipe),
        finetune=FinetuneConfig(rank=8, steps=80, batch_size=16, lr=3e-2, ema=0.9, bf16=False),
    )
    bench = TextLabels(config, bundle)

    def figures(method: str) -> dict[str, float]:
        cell = Cell(private_set="toy", method=method, n=60, epsilon=None, seed=0)
        return bench.figures(cell, lambda done, count: None)

    real = figures("real")
    assert real["accuracy"] == 1
    assert figures("lora")["accuracy_zero_shot"] > 0.9
    # MAUVE is that of the classes' own documents, of no more than an adapter would write.
    data = toy()
    own = [[t for t in data.documents(60, seed=0) if data.label_of[t] == c][:6] for c in (0, 1)]
    held = [[t for t in data.reference if data.label_of[t] == c] for c in (0, 1)]
    by_hand = [
        mauve(*(embed_documents(bundle, to_tokens(bundle, part)) for part in pair))
        for pair in zip(own, held, strict=True)
    ]
    assert real["mauve"] == pytest.approx(sum(by_hand) / 2)


def test_noiseless_is_the_same_release_without_noise(bundle: TextBundle, recipe: Path):
    bench = TextLabels(read_labels_recipe(recipe), bundle)
    documents = toy().documents(60, seed=0)
    labels = np.array(toy().labels(documents))
    tokens = to_tokens(bundle, documents)

    def emitted(method: str, epsilon: float | None) -> list[Weights]:
        cell = Cell(private_set="toy", method=method, n=60, epsilon=epsilon, seed=0)
        return bench._weights(cell, tokens, labels, ["ham", "spam"], lambda *_: None)

    for c, found in enumerate(emitted("noiseless", None)):
        rows = embed_documents(bundle, tokens[torch.from_numpy(labels == c)])
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True) / bundle.config.clip_norm, 1)
        mean = torch.from_numpy(rows.mean(0)).float()[None]
        by_hand = bundle.hypernetwork(mean, torch.full((1,), 5e-4))
        noisy = emitted("hyper", 8.0)[c]
        assert any(not torch.equal(found[site][1], noisy[site][1]) for site in found)
        for site, (_, b) in found.items():
            assert torch.allclose(b, by_hand[site][1], atol=1e-6)


def test_a_recipe_names_what_is_wrong_with_it(recipe: Path):
    assert text_recipe_path(str(recipe)) == recipe
    with pytest.raises(UsageError, match="private sets"):
        read_labels_recipe(recipe, ["other"])
    text = recipe.read_text()
    for old, new in (
        ("seeds", "sead"),
        ("rank = 2", "rang = 2"),
        ("share = 0.5", "size = 9"),
        ("[finetune]", "[editions]\ntoy = 9\n[finetune]"),
    ):
        recipe.write_text(text.replace(old, new))
        with pytest.raises(UsageError, match=re.escape(new.split(" ")[0].split("\n")[0])):
            read_labels_recipe(recipe)


def test_the_shipped_recipe_gives_every_method_the_settings_of_the_unlabelled_table():
    config = read_labels_recipe(RECIPES / "text-labels.toml")
    rivals = read_text_recipe(RECIPES / "text-rivals.toml")
    assert set(config.private_sets) <= set(text_sets.LABELLED_SETS)
    assert {c.method for c in label_cells(config, {"spam-assassin": 5000})} == set(
        text_labels.METHODS
    )
    assert (config.finetune, config.public) == (rivals.finetune, rivals.public)
    assert all(trial in rivals.references() for trial in config.references())
    both = dataclasses.replace(rivals.reweight, batch_size=2 * rivals.reweight.batch_size)
    assert config.reweight == both
    for name, values in config.stepped.items():
        fit = text_labels.class_config(values, n=1024, classes=2)
        shared = rivals.hybrids[name] if name in rivals.hybrids else rivals.fits[name]
        assert fit == dataclasses.replace(shared, size=512, expected_batch=64)
    assert isinstance(config, TextLabelsConfig) and 2000 in config.n and 1.0 in config.epsilon
