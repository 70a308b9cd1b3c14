"""The labelled benchmark: its cells, its settings, its rows, and that a kill loses one cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyperdp.bundle import load_bundle
from hyperdp.errors import DataError, UsageError
from hyperdp.eval import class_learners, labelled, rivals
from hyperdp.eval.cells import Cell
from hyperdp.eval.earlier import base_name
from hyperdp.eval.labelled import LabelledSet, labelled_caption, run_labelled
from hyperdp.eval.labelled_recipe import LabelledConfig, labelled_cells, read_labelled_recipe
from hyperdp.eval.results import RESULTS, append_rows, read_rows
from hyperdp.eval.study import SamplingConfig, release_once
from hyperdp.eval.world import load_set
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.digits import draw_digits
from hyperdp.pretrain.style import plain_style
from hyperdp.private.classifier.training import Speed
from hyperdp.private.emit import adapter_weights
from hyperdp.private.reweight import ReweightConfig
from tests.worlds import tiny_bundle


def write_public(path: Path, count: int = 100) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for key in ("pool", "reference"):
        labels = np.arange(count, dtype=np.int64) % 10
        images = rng.integers(0, 40, (count, 1, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[0, 2 * label + 4 : 2 * label + 6] = 255  # a bar whose height tells the class
        arrays |= {key: images, f"{key}_labels": labels}
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> LabelledConfig:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    tiny_bundle(tmp_path / "bundle")
    return LabelledConfig(
        bench="test",
        private_sets=["digits"],
        n=[200, 5000],
        epsilon=[4.0],
        delta=1e-4,
        seeds=[0],
        methods=[
            "public_only",
            "nonprivate",
            "dpsgd",
            "dpsgd_from_public",
            "dpsgd/bare",
            "dpsgd_lora",
            "hyper",
            "reweighted",
            "reweighted_and_public",
        ],
        lora={"steps": 1, "rank": 2},
        bundle=str(tmp_path / "bundle"),
        public=str(write_public(tmp_path / "public.npz")),
        classifier_steps=8,
        images_per_class=10,
        sampling=SamplingConfig(steps=2, batch_size=10, bf16=False),
        dpsgd={"steps": 2, "multiplicity": 1, "flip": False},
        network={"stem_stride": 2, "widths": [8], "strides": [2], "blocks": 1, "stem_width": 8},
        variants={"bare": {"multiplicity": 0, "ema": 0.0, "network": {"group_norm": False}}},
    )


def test_cells_vary_with_what_a_method_depends_on_and_no_more(config):
    many = replace(config, epsilon=[1.0, 3.0], seeds=[0, 1], n=[100, 200, 5000])
    cells = list(labelled_cells(many, {"digits": 898}))
    assert len(set(cells)) == len(cells)
    counts = {m: sum(c.method == m for c in cells) for m in many.methods}
    assert counts == {
        "public_only": 2, "nonprivate": 4, "dpsgd": 8, "dpsgd_from_public": 8, "dpsgd/bare": 8,
        "dpsgd_lora": 8, "hyper": 8, "reweighted": 8,
        "reweighted_and_public": 8,
    }  # fmt: skip
    assert {c.n for c in cells} == {None, 100, 200}  # 5,000 are not there


def test_a_variant_changes_its_own_values_alone(config):
    shape = {"n": 200, "epsilon": 1.0, "image_shape": (1, 28, 28), "classes": 10}
    plain, bare = config.classifier("dpsgd", **shape), config.classifier("dpsgd/bare", **shape)
    assert plain.batch_size == 50
    assert plain.network.group_norm
    assert bare == replace(
        plain, multiplicity=0, ema=0.0, network=replace(plain.network, group_norm=False)
    )
    warm = replace(config, from_public={"lr": 0.25})
    assert warm.classifier("dpsgd", **shape) == plain
    assert warm.classifier("dpsgd_from_public", **shape) == replace(plain, lr=0.25)
    assert warm.classifier("dpsgd_from_public/bare", **shape) == replace(bare, lr=0.25)
    with pytest.raises(UsageError, match="pretrain digits"):
        replace(config, methods=["dpsgd_from_public/bare"], public="")
    with pytest.raises(UsageError, match="magic"):
        replace(config, methods=["magic"])
    with pytest.raises(UsageError, match="pretrain digits"):
        replace(config, public="")


def test_a_cell_may_have_settings_of_its_own(config):
    shape = {"image_shape": (1, 28, 28), "classes": 10}
    given = replace(
        config,
        at=[
            {"method": "dpsgd", "epsilon": 8.0, "lr": 4.0},
            {"method": "dpsgd", "epsilon": 8.0, "n": 100, "lr": 2.0, "steps": 7},
            {"method": "dpsgd_from_public", "n": 100, "lr": 0.5},
        ],
    )

    def of(method, n, epsilon):
        return given.classifier(method, n=n, epsilon=epsilon, **shape)

    plain = config.classifier("dpsgd", n=200, epsilon=1.0, **shape)
    assert of("dpsgd", 200, 1.0) == plain
    assert of("dpsgd", 200, 8.0) == replace(plain, lr=4.0)
    small = config.classifier("dpsgd", n=100, epsilon=1.0, **shape)
    assert of("dpsgd", 100, 8.0) == replace(small, lr=2.0, steps=7)
    assert of("dpsgd_from_public", 100, 8.0) == replace(small, lr=0.5)
    for wrong in ({"method": "hyper", "n": 1}, {"method": "dpsgd", "lr": 1.0}):
        with pytest.raises(UsageError, match="epsilon or an n"):
            replace(config, at=[wrong])


@pytest.mark.slow
def test_a_killed_run_goes_on_and_every_method_is_measured(config, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    honest = LabelledSet.measure
    left = 3

    class KilledError(Exception):
        pass

    def dies(self, cell, progress):
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        return honest(self, cell, progress)

    monkeypatch.setattr(LabelledSet, "measure", dies)
    with pytest.raises(KilledError):
        run_labelled(config, out, speed=Speed(microbatch=25))
    before = read_rows(out)
    assert {r.method for r in before} == {"public_only", "nonprivate", "dpsgd"}
    left = 100
    rows = run_labelled(config, out, speed=Speed(microbatch=25))
    assert rows[: len(before)] == before
    assert {r.method for r in rows} == set(config.methods)
    classes = {f"accuracy_{c}" for c in range(10)}
    assert {r.metric for r in rows} == {"accuracy", "worst_class_accuracy", *classes}
    assert all(0 <= r.value <= 1 for r in rows)
    nets = {r.base for r in rows if r.method in {"dpsgd", "dpsgd_from_public", "dpsgd/bare"}}
    assert len(nets) == 2  # settings told apart
    left = 0
    assert run_labelled(config, out) == rows
    missing = replace(config, seeds=[0, 1])
    assert run_labelled(missing, out, measure=False) == rows
    left = 100  # another setting is another row
    changed = replace(config, methods=["dpsgd"], dpsgd={**config.dpsgd, "lr": 0.5})
    assert run_labelled(changed, out)[0].base not in {r.base for r in rows}


def test_the_images_of_an_adapter_are_labelled_with_its_class(config, monkeypatch):
    world = LabelledSet(config, "digits", Speed())
    asked = []

    def drawn(bundle, weights, sampling, *, seed, progress=None):
        asked.append(float(sum(b.sum() for _, b in weights.values())))
        return torch.full((sampling.count, 1, 28, 28), float(len(asked)))

    monkeypatch.setattr(labelled, "draw_images", drawn)
    images, labels = world.data.records(200, seed=0)
    budget = labelled.PrivacyBudget(epsilon=8.0, delta=1e-4)
    nothing = lambda done, total: None  # noqa: E731
    adapters = world._adapters("hyper", images, labels, budget, nothing)
    made, of = world._draw(adapters, 0, nothing)
    assert len(set(asked)) == 10  # ten adapters, no two the same
    assert torch.equal(made[:, 0, 0, 0].long() - 1, of)
    assert torch.equal(of.bincount(), torch.full((10,), 10))


def test_both_reweighted_classifiers_are_of_one_release(config, tmp_path, monkeypatch):
    released = []

    def spy(bundle, images, budget, **more):
        released.append(len(images))
        return release_once(bundle, images, budget, **more)

    monkeypatch.setattr(labelled, "release_once", spy)
    names = ["reweighted", "reweighted_and_public", "hyper"]
    config = replace(config, methods=names, n=[100, 200], seeds=[0], images_per_class=2)
    adapt = labelled.adapt_on_public
    monkeypatch.setattr(
        labelled, "adapt_on_public",
        lambda *given, classes, progress: adapt(
            *given, ReweightConfig(steps=1), classes=classes, progress=progress
        ),
    )  # fmt: skip
    run_labelled(config, tmp_path / "rows.jsonl")
    assert released == [100, 200, 100, 200]  # two methods of one release each, and hyper's own


def test_public_labels_reach_the_one_method_that_reads_them(config, tmp_path, monkeypatch):
    given = []

    def spy(bundle, mean, level, public, *, classes, progress):
        given.append(classes)
        return adapter_weights(bundle, mean, level)

    monkeypatch.setattr(labelled, "adapt_on_public", spy)
    names = ["reweighted", "reweighted_by_class", "reweighted_by_class_and_public"]
    config = replace(config, methods=names, n=[100], seeds=[0], images_per_class=2)
    rows = run_labelled(config, tmp_path / "rows.jsonl")
    assert {row.method for row in rows} == set(names)
    assert len(given) == 2 and given[0] is None  # the last two are of one release
    public = np.load(config.public)
    assert given[1].tolist() == public["pool_labels"].tolist()


def test_public_images_are_half_of_what_is_learned_from(config):
    drawn = torch.ones(6, 1, 28, 28), torch.arange(6)
    public = torch.zeros(20, 1, 28, 28), torch.arange(20)
    for pair in ((drawn, public), (public, drawn)):
        images, labels = labelled.beside(*pair)
        assert len(images) == len(labels) == 20 + 3 * 6
        assert torch.equal(labels[images[:, 0, 0, 0] == 1], torch.arange(6).repeat(3))
        assert torch.equal(labels[images[:, 0, 0, 0] == 0], torch.arange(20))


def test_accuracy_is_over_the_reference_and_names_the_worst_class(config):
    world = LabelledSet(config, "digits", Speed())
    right = world.data.reference_labels
    assert set(world.accuracy(lambda images: right).values()) == {1.0}
    spoilt = torch.where(right == 7, 0, right)
    found = world.accuracy(lambda images: spoilt)
    assert found["worst_class_accuracy"] == found["accuracy_7"] == 0
    assert found["accuracy_3"] == 1
    assert found["accuracy"] == pytest.approx(float((right != 7).float().mean()))


def test_class_fits_see_their_own_class_alone_and_a_public_size(config, monkeypatch):
    seen = []

    def spy(records, *, config, budget, ledger, dataset, pace, progress, **rest):
        assert pace.microbatch == 8  # no blanks beyond what an expected batch of 5 needs
        seen.append((len(list(records)), config, budget, ledger.path, dataset))
        progress(config.steps, config.steps, 0.0)
        return SimpleNamespace(weights={"site": (torch.zeros(1, 2, 3), torch.zeros(1, 4, 2))})

    monkeypatch.setattr(rivals, "fit", spy)
    world, told = LabelledSet(config, "digits", Speed()), []
    images, labels = world.data.records(200, seed=0)
    labels = torch.where(labels == 9, 8, labels)  # a class that nobody is in
    budget = labelled.PrivacyBudget(epsilon=8.0, delta=1e-4)
    made = world._adapters("dpsgd_lora", images, labels, budget, lambda *step: told.append(step))
    assert len(made) == 10
    assert [count for count, *_ in seen] == torch.bincount(labels, minlength=10).tolist()
    assert seen[9][0] == 0  # is trained all the same: that it is empty is private
    assert {(config.size, config.expected_batch) for _, config, *_ in seen} == {(20, 5)}
    assert {spent for _, _, spent, *_ in seen} == {budget}  # each the whole: they are parallel
    assert len({path for *_, path, _ in seen}) == len({name for *_, name in seen}) == 10
    assert told[-1] == (10, 10)
    for other in ({"adjacency": "replace-one"}, {"unit": "user"}):
        with pytest.raises(UsageError, match="add up"):
            world._adapters("dpsgd_lora", images, labels, replace(budget, **other), print)
    with pytest.raises(UsageError, match="size"):
        class_learners.class_config({"size": 3}, n=10, classes=2)


def test_a_variant_of_class_fits_has_its_own_values_and_its_own_rows(config):
    tuned = replace(
        config, lora={"steps": 4, "share": 0.5}, variants={"quick": {"steps": 2, "lr": 0.1}},
        methods=["dpsgd_lora", "dpsgd_lora/quick"],
    )  # fmt: skip
    cell = {"n": 100, "epsilon": 1.0}
    assert tuned.lora_values("dpsgd_lora", **cell) == {"steps": 4, "share": 0.5}
    quick = {"steps": 2, "share": 0.5, "lr": 0.1}
    assert tuned.lora_values("dpsgd_lora/quick", **cell) == quick
    at = replace(tuned, at=[{"method": "dpsgd_lora", "epsilon": 1.0, "lr": 0.3, "steps": 9}])
    assert at.lora_values("dpsgd_lora", **cell) == {"steps": 9, "share": 0.5, "lr": 0.3}
    assert at.lora_values("dpsgd_lora", n=100, epsilon=3.0) == {"steps": 4, "share": 0.5}
    assert at.lora_values("dpsgd_lora/quick", **cell) == quick  # variants win
    bases = [
        labelled.cell_base(
            tuned, Cell(private_set="digits", method=m, n=200, epsilon=8.0, seed=0), lambda: "b"
        )
        for m in tuned.methods
    ]
    assert len({*bases}) == 2 and all(base.startswith("b-") for base in bases)
    with pytest.raises(UsageError, match="dpsgd_lora/quick"):
        replace(tuned, methods=["dpsgd_lora/slow"])


def test_the_public_control_learns_the_public_task(config, tmp_path):
    public = replace(
        config, private_sets=[config.public], n=[100], classifier_steps=60, methods=["public_only"]
    )
    rows = run_labelled(public, tmp_path / "rows.jsonl")
    assert rows[0].value > 0.9
    assert load_set(config.public).pool_labels.tolist()[:3] == [0, 1, 2]


def test_sets_without_labels_and_bad_recipes_are_refused(config, tmp_path):
    path = tmp_path / "plain.npz"
    np.savez(path, pool=np.zeros((4, 1, 28, 28), np.uint8), reference=np.zeros((4, 1, 28, 28)))
    with pytest.raises(DataError, match="with labels"):
        LabelledSet(config, str(path), Speed())
    with pytest.raises(DataError, match="labelled public"):
        _ = LabelledSet(replace(config, public=str(path)), "digits", Speed()).public
    for text in ("bench = 1", "bench = ", "x = 1"):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(UsageError, match="Correct the file"):
            read_labelled_recipe(str(tmp_path / "r.toml"))
    with pytest.raises(UsageError, match="labelled-quick"):
        read_labelled_recipe("nothing")


@pytest.mark.parametrize(
    "name",
    [
        "labelled-quick",
        "labelled-full",
        "classifier-ablation",
        "tune-classifier",
        "tune-classifier-eps1",
        "tune-from-public",
        "tune-labelled-lora",
    ],
)
def test_shipped_recipes_are_whole(name):
    recipe = read_labelled_recipe(name)
    assert read_labelled_recipe(name, ["digits"]).private_sets == ["digits"]
    assert recipe.seeds
    if name.startswith("labelled"):
        assert {"hyper", "dpsgd", "dpsgd_lora", "nonprivate", "public_only"} <= set(recipe.methods)
        assert recipe.epsilon == [1.0, 3.0, 8.0]
        assert recipe.seeds == [0, 1, 2]


def test_public_digits_are_balanced_and_shown_as_labelled():
    corpus = open_sample()
    images, labels = draw_digits(corpus, 0, 200, torch.Generator().manual_seed(0))
    assert images.shape == (200, 1, 28, 28)
    assert torch.equal(labels.bincount(), torch.full((10,), 20))
    means = torch.stack([images[labels == d].mean(0) for d in range(10)])
    more, truth = draw_digits(corpus, 0, 300, torch.Generator().manual_seed(1))
    nearest = torch.cdist(more.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == truth).float().mean() > 0.4  # chance is 0.1
    thin, thick = (
        replace(plain_style(1), pen=torch.ones(1), width_mean=torch.full((1,), width))
        for width in (2.2, 7.0)
    )
    for style, share in ((thin, 0.0), (thick, 1.0)):
        own, _ = draw_digits(corpus, 0, 60, torch.Generator().manual_seed(2), style=style)
        lighter = own.mean((1, 2, 3)) > images.mean()
        assert abs(float(lighter.float().mean()) - share) < 0.25
    nameless = replace(corpus, names={**corpus.names, "char": ["?"] * len(corpus.names["char"])})
    with pytest.raises(DataError, match="digit 0"):
        draw_digits(nameless, 0, 10, torch.Generator())


def test_the_table_of_a_bundle_that_was_replaced_says_so(tmp_path: Path):
    config = read_labelled_recipe("labelled-quick")
    stored = run_labelled(config, RESULTS / "labelled-quick.jsonl", measure=False)
    [old] = {row.base[: len("glyphs-00000000")] for row in stored if row.base.startswith("glyphs-")}
    others = [row for row in stored if not row.base.startswith("glyphs-")]
    gone = [
        replace(row, base=row.base.replace(old, "glyphs-00000000"))
        for row in stored
        if row not in others
    ]
    out = tmp_path / "rows.jsonl"
    append_rows(out, [*others, *gone])
    assert set(run_labelled(config, out, measure=False)) == {*others, *gone}
    present = base_name(load_bundle("glyphs"))
    assert labelled_caption(config, out) == (
        f"Measured with the bundle glyphs-00000000; not yet again with {present}.\n\n"
    )
    now = replace(gone[0], base=gone[0].base.replace("glyphs-00000000", present))
    append_rows(out, [now])
    assert set(run_labelled(config, out, measure=False)) == {*others, now}
    assert labelled_caption(config, out) == ""
    assert labelled_caption(replace(config, methods=["dpsgd"]), out) == ""
