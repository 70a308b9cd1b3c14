"""Public images of one's own: the corpus on disk, tasks, styles, and the way to a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hyperdp.bundle import load_bundle
from hyperdp.cli._app import run
from hyperdp.cli.pretrain import app
from hyperdp.errors import UsageError
from hyperdp.forecast import load_forecast
from hyperdp.pretrain.guard import GuardConfig, make_guard
from hyperdp.pretrain.image_corpus import INDEX, ImageCorpus, open_images, write_images
from hyperdp.pretrain.image_tasks import ImageTaskMix, ImageTaskSampler, ImageWorld, in_style
from hyperdp.private.readers import open_dataset

SHAPE = (3, 16, 16)
LABELS = [f"label-{i}" for i in range(8)]


def records(each: int = 40, labels: list[str] = LABELS):
    """Flat squares; the first pixel is the record's number, the colour is its label's."""
    for i in range(each):
        for index, name in enumerate(labels):
            pixels = np.full(SHAPE, index / 10, np.float32)
            pixels[:, 0, 0] = ((i * len(labels) + index) % 251) / 127.5 - 1
            yield pixels, name


@pytest.fixture
def corpus(tmp_path: Path) -> ImageCorpus:
    return write_images(records(), tmp_path / "c", SHAPE, held_out=["label-3"], shard=37)


def test_what_is_written_comes_back_in_any_order(corpus: ImageCorpus, tmp_path: Path):
    again = open_images(tmp_path / "c")
    assert len(again) == len(corpus) == 320 and len(again.shards) == 9
    assert again.labels == LABELS and again.shape == SHAPE
    order = np.random.default_rng(0).permutation(320)
    images = again.images(order)
    numbers = ((images[:, 0, 0, 0] + 1) * 127.5).round().long().numpy()
    assert np.array_equal(numbers, order % 251)
    colour = ((again.label[order] / 10 + 1) * 127.5).round() / 127.5 - 1
    np.testing.assert_allclose(images[:, 1, 5, 5].numpy(), colour, atol=1e-6)


def test_whole_labels_are_held_out_and_some_never_enter(corpus: ImageCorpus, tmp_path: Path):
    held = {corpus.labels[i] for i in np.unique(corpus.label[corpus.split == 1])}
    assert held == {"label-3"}
    train = {corpus.labels[i] for i in np.unique(corpus.label[corpus.split == 0])}
    assert not train & held
    chosen = write_images(
        records(), tmp_path / "d", SHAPE, held_out=["label-1", "label-2"], left_out=["label-7"]
    )
    assert "label-7" not in chosen.labels and len(chosen) == 280
    named = [chosen.labels[i] for i in np.unique(chosen.label[chosen.split == 1])]
    assert named == ["label-1", "label-2"]
    for count, kept in ((9, 3), (17, 3), (18, 3), (30, 5), (8, 0)):
        many = [f"label-{i:02d}" for i in range(count)]
        by_rule = write_images(records(30, many), tmp_path / f"of-{count}", SHAPE)
        held = np.unique(by_rule.label[by_rule.split == 1])
        assert len(held) == (kept or count)  # a sixth, three at least; of few labels, of each some
        assert bool(kept) == (not {*held} & {*by_rule.label[by_rule.split == 0]})
    plain = write_images(((p, None) for p, _ in records(60)), tmp_path / "e", SHAPE)
    assert (plain.label == -1).all() and int(plain.split.sum()) == 80


def test_copies_of_an_image_are_all_in_one_split(tmp_path: Path):
    once = [pixels for pixels, _ in records(30)]
    made = write_images(
        ((p, None) for p in [*once, *once[::-1], *once[::2]]), tmp_path / "c", SHAPE
    )
    count = len(once)
    first, mirrored, some = np.split(made.split, [count, 2 * count])
    assert (first == mirrored[::-1]).all() and (first[::2] == some).all()
    assert int(first.sum()) == count // 6


@pytest.mark.parametrize(
    ("given", "found"),
    [({"left_out": ["absent"]}, "absent"), ({"held_out": LABELS[:1], "each": 20}, "20")],
)
def test_nothing_is_left_of_a_corpus_that_cannot_be(given: dict, found: str, tmp_path: Path):
    each = given.pop("each", 40)
    with pytest.raises(UsageError, match=found):
        write_images(records(each), tmp_path / "c", SHAPE, **given)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="new"):
        write_images(records(), tmp_path / "c", SHAPE)


def test_a_corpus_of_other_pixels_is_another(corpus: ImageCorpus, tmp_path: Path):
    same = write_images(records(), tmp_path / "d", SHAPE, held_out=["label-3"], shard=37)
    assert same.digest == corpus.digest
    dark = write_images(((-p, name) for p, name in records()), tmp_path / "e", SHAPE,
                        held_out=["label-3"], shard=37)  # fmt: skip
    assert np.array_equal(dark.label, corpus.label) and dark.digest != corpus.digest
    index = tmp_path / "d" / INDEX
    told = json.loads(index.read_text())
    del told["sha256"]  # as a corpus was before
    index.write_text(json.dumps(told))
    assert open_images(tmp_path / "d").digest == corpus.digest


def test_a_damaged_corpus_is_refused(corpus: ImageCorpus, tmp_path: Path):
    folder = tmp_path / "c"
    index = folder / INDEX
    whole = index.read_text()
    for bad in ("{", "[]", json.dumps({**json.loads(whole), "shape": [3, 16, 17]}), "{}"):
        index.write_text(bad)
        with pytest.raises(UsageError, match="pretrain images"):
            open_images(folder)
    index.write_text(whole)
    (folder / "pixels-00003.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError):
        open_images(folder)


def test_tasks_are_of_their_labels_and_repeat_nothing_while_the_pool_lasts(corpus: ImageCorpus):
    only = {"label": 0.0, "group": 0.0, "cluster": 0.0, "everything": 0.0, "mixture": 0.0}
    rng = torch.Generator().manual_seed(0)
    one = ImageTaskSampler(corpus, 0, ImageTaskMix(**{**only, "label": 1.0, "style": 0.0}))
    images, shown = one.draw_labelled(6, 40, rng)
    assert images.shape == (6, 40, *SHAPE) and one.content_classes == 9
    assert all(len(task.unique()) == 1 for task in shown)
    assert len(shown[:, 0].unique()) > 2
    numbers = ((images[:, :, 0, 0, 0] + 1) * 127.5).round()
    assert all(len(task.unique()) == 40 for task in numbers)
    few = ImageTaskSampler(corpus, 0, ImageTaskMix(**{**only, "group": 1.0, "style": 0.0}))
    groups = [len(task.unique()) for task in few.draw_labelled(8, 60, rng)[1]]
    assert min(groups) >= 2 and max(groups) <= 7
    seen = ImageTaskSampler(corpus, 1, ImageTaskMix()).draw_labelled(6, 20, rng)[1]
    assert {corpus.labels[i] for i in seen.unique()} == {"label-3"}
    clusters = ImageTaskSampler(corpus, 0, ImageTaskMix(**{**only, "cluster": 1.0}))
    assert clusters.clusters and not one.clusters
    again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    assert torch.equal(few.draw(2, 9, again[0]), few.draw(2, 9, again[1]))


def test_labels_that_nothing_has_are_the_last_class(tmp_path: Path):
    plain = write_images(((p, None) for p, _ in records(60)), tmp_path / "e", SHAPE)
    sampler = ImageTaskSampler(plain, 0, ImageTaskMix())
    _, shown = sampler.draw_labelled(2, 5, torch.Generator().manual_seed(0))
    assert sampler.content_classes == 1 and (shown == 0).all()


def test_a_style_is_one_for_its_task_and_keeps_the_range():
    images = torch.rand(5, *SHAPE) * 2 - 1
    images[1] = images[0]
    for seed in range(20):
        styled = in_style(images, np.random.default_rng(seed))
        assert styled.shape == images.shape and styled.abs().max() <= 1
        assert torch.equal(styled[0], styled[1]) and not torch.equal(styled[0], styled[2])
        assert not torch.equal(styled, images)
    grey = in_style(images[:, :1], np.random.default_rng(0))
    assert grey.shape == (5, 1, 16, 16)


def test_hues_turn_about_grey():
    from hyperdp.pretrain.image_tasks import _turn

    for hue, saturation in ((0.7, 1.0), (2.0, 0.5)):
        turn = _turn(hue, saturation)
        torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3))
    turn = _turn(0.7, 1.0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-6, rtol=0)
    red = torch.tensor([1.0, 0, 0])
    third = _turn(2 * torch.pi / 3, 1.0) @ red
    assert torch.allclose(third.sort().values, red.sort().values, atol=1e-6)  # another pure colour
    assert not torch.allclose(third, red, atol=0.1)


def test_records_are_of_their_split_and_even_over_labels(tmp_path: Path):
    uneven = [*records(10), *records(400, LABELS[:1])]
    corpus = write_images(uneven, tmp_path / "c", SHAPE, held_out=["label-0"])
    drawn = ImageWorld(corpus).records(400, 1, torch.Generator().manual_seed(0))
    assert drawn.shape == (400, *SHAPE)
    assert (drawn[:, 1, 5, 5].abs() < 0.01).all()  # all of label 0
    more = write_images(uneven, tmp_path / "d", SHAPE, held_out=["label-1", *LABELS[2:8]])
    colours = ImageWorld(more).records(700, 1, torch.Generator().manual_seed(0))[:, 1, 5, 5]
    assert len(colours.unique()) == 7


BASE = """
kind = "base"
corpus = "{corpus}"
batch_size = 8
[loop]
steps = 2
lr = 1e-3
[model]
sample_size = 16
in_channels = 3
out_channels = 3
layers_per_block = 1
block_out_channels = [8, 16]
norm_num_groups = 4
attention_head_dim = 8
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
"""
HYPER = """
kind = "hyper"
name = "own"
corpus = "{corpus}"
base = "{base}"
tasks = 2
queries = 2
support = 12
support_grad = 4
pool = 4
fresh = 1
cells = 16
foretell_steps = 1
foretell_tasks = 2
[mix]
style = 0.3
[loop]
steps = 2
lr = 1e-3
[encoder]
embed_dim = 8
widths = [8, 16]
hidden = 16
[hypernetwork]
rank = 2
basis = 4
width = 8
depth = 1
bottleneck = 8
"""


def test_what_is_left_out_and_labels_of_few_images_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    for name in LABELS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.full((9, 9, 3), i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / LABELS[0] / "broken.png").write_bytes(b"no image")
    words = ["pretrain", "images", str(tmp_path / "photos"), "--size", "8", "--skip-unreadable"]
    assert run([*words, "-o", str(tmp_path / "flat")]) == 0
    told = capsys.readouterr()
    assert "1 that cannot be read" in told.out and "warning" not in told.err
    assert run([*words, "-o", str(tmp_path / "c"), "--label-column", "folder"]) == 0
    told = capsys.readouterr()
    assert "200 images to train on, 40 held out, 8 labels" in told.out
    assert "of the labels held out 0 have the 24 images" in told.err
    assert "of the labels to train on" not in told.err


def _check_public_and_private(
    words: list[str], gather: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was released is public nowhere, but for what lies in a folder that does not enter."""
    photos = folder / "photos"
    capsys.readouterr()
    assert run(words) == 0
    assert "gathered as public" not in capsys.readouterr().err
    assert run([*gather[:4], str(folder / "again"), *gather[5:]]) == 0
    (folder / "other" / "label-8").mkdir(parents=True)
    for source, never in ((photos / "label-0", "label-8"), (photos, "label-7")):
        odd = ["pretrain", "images", str(folder / "other"), str(source), "-o", str(folder / "odd"),
               "--label-column", "folder", "--leave-out", never]  # fmt: skip
        assert run(odd) == 2
        assert "of which a private release was made" in capsys.readouterr().err
    (folder / "other" / "deep").mkdir()
    (folder / "other" / "deep" / "link").symlink_to(photos / "label-0")
    linking = ["pretrain", "images", str(folder / "linking"), "-o", str(folder / "odd"),
               "--label-column", "folder"]  # fmt: skip
    (folder / "linking").mkdir()
    (folder / "linking" / "label-1").symlink_to(folder / "other")
    assert run(linking) == 2
    assert "of which a private release was made" in capsys.readouterr().err
    assert run([*linking, "--leave-out", "label-1"]) == 2  # not for that: nothing is left
    assert "of which a private release was made" not in capsys.readouterr().err
    other = [words[0], str(photos / "label-4"), *words[2:-1], str(folder / "known")]
    assert run(other) == 0
    assert "gathered as public" in capsys.readouterr().err
    assert run([*gather[:4], str(photos / "corpus"), *gather[5:]]) == 2
    assert "outside of the data" in capsys.readouterr().err


def test_from_a_folder_of_ones_own_to_a_private_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As a user goes: images, base, hypernetwork, then a private folder of the same kind."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    rng = np.random.default_rng(0)
    for name in LABELS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    corpus = tmp_path / "corpus"
    gather = ["pretrain", "images", str(tmp_path / "photos"), "-o", str(corpus), "--size", "16",
             "--label-column", "folder", "--leave-out", "label-0",
             "--held-out", "label-1,label-2,label-3"]  # fmt: skip
    assert run(gather) == 0
    private = open_dataset(tmp_path / "photos" / "label-4", image_shape=SHAPE)
    one = next(private.records()).image
    rows = np.arange(len(open_images(corpus)), dtype=np.int64)
    assert (open_images(corpus).images(rows) - torch.from_numpy(one)).abs().amax(
        (1, 2, 3)
    ).min() < 0.01
    assert run(gather) == 2  # it is there already

    base, hyper = tmp_path / "base.toml", tmp_path / "hyper.toml"
    base.write_text(BASE.format(corpus=corpus))
    hyper.write_text(HYPER.format(corpus=corpus, base=tmp_path / "base"))
    for kind, recipe in (("base", base), ("hyper", hyper)):
        done = CliRunner().invoke(app, [kind, str(recipe), "-o", str(tmp_path / kind)])
        assert done.exit_code == 0, done.output
    bundle = load_bundle(tmp_path / "hyper" / "bundle")
    assert bundle.config.image_shape == SHAPE
    told = json.loads((bundle.path / "training.json").read_bytes())
    assert told["corpus"] == open_images(corpus).digest
    know = ["pretrain", "forecast", str(bundle.path), "--no-guard", "--tasks", "9", "--levels", "2",
            "--lora-steps", "2", "-n", "8", "-n", "16", "--work", str(tmp_path / "w")]  # fmt: skip
    assert run([*know, "--corpus", "sample"]) == 2  # not what it was trained on
    assert run([*know, "--corpus", str(corpus), "--like", "print"]) == 2
    assert run([*know, "--corpus", str(corpus)]) == 0
    assert load_forecast(bundle.path, bundle.hash).table("loss").units == [8, 16]
    asked = GuardConfig(reference=9, calibration=9, foreign=9, records=12)
    guard = make_guard(bundle, ImageWorld(open_images(corpus)), asked)
    assert guard.calibration.shape == (9, bundle.config.embed_dim)
    assert told["recipe"]["mix"]["style"] == 0.3 and told["recipe"]["mix"]["label"] == 0.40
    words = ["private", str(tmp_path / "photos" / "label-0"), "--bundle", str(bundle.path),
             "--epsilon", "8", "--delta", "1e-5", "-o", str(tmp_path / "out")]  # fmt: skip
    _check_public_and_private(words, gather, tmp_path, capsys)

    hyper.write_text(HYPER.format(corpus=corpus, base=tmp_path / "base").replace("style", "chars"))
    assert run(["pretrain", "hyper", str(hyper), "-o", str(tmp_path / "wrong")]) == 2
    hyper.write_text(HYPER.format(corpus=tmp_path / "none", base=tmp_path / "base"))
    assert run(["pretrain", "hyper", str(hyper), "-o", str(tmp_path / "wrong")]) == 2
