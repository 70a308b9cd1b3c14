"""The public stage on the shipped sample: corpus, styles, tasks, loop, and all of it, small."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.morphology import skeletonize
from torch import nn

from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import DataError, UsageError
from hyperdp.family import UNetFlow
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain import faces
from hyperdp.pretrain.average import average_runs
from hyperdp.pretrain.base import BaseConfig, train_base
from hyperdp.pretrain.checkpoint import load_average
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.faces import PRIVATE_SCRIPTS, RESERVED_SCRIPTS
from hyperdp.pretrain.hyper import HyperConfig, train_hyper
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.readable import readable
from hyperdp.pretrain.recipe import open_recipe_corpus, read_recipe
from hyperdp.pretrain.rows import RowSampler, records
from hyperdp.pretrain.style import Style, _scanned, draw, draw_style, plain_style
from hyperdp.pretrain.task_pool import TaskPool
from hyperdp.pretrain.tasks import TaskMix, TaskSampler
from hyperdp.pretrain.twins import twin
from hyperdp.pretrain.values import build
from hyperdp.pretrain.world import GlyphWorld
from tests.worlds import tiny_family


@pytest.fixture(scope="module")
def corpus():
    return open_sample()


def test_the_sample_holds_no_private_and_no_reserved_script(corpus):
    from fontTools.unicodedata import script

    found = {script(c) for c in corpus.names["char"]} | set(corpus.names["script"])
    assert not found & (PRIVATE_SCRIPTS | RESERVED_SCRIPTS)
    assert all(name.startswith("Noto") for name in corpus.names["family"])


def test_excluded_files_cover_every_private_and_reserved_font():
    root = faces.FONT_ROOT / "noto"
    if not root.is_dir():
        pytest.skip("the fonts are not installed (make fonts)")
    from fontTools.ttLib import TTFont
    from fontTools.unicodedata import script

    for path in sorted(root.glob("*-Regular.ttf")):
        with TTFont(path, lazy=True) as font:
            scripts = [script(chr(c)) for c in font.getBestCmap() or {}]
        banned = sum(s in PRIVATE_SCRIPTS | RESERVED_SCRIPTS for s in scripts)
        if banned > len(scripts) / 3:
            assert faces.EXCLUDED_FILES.search(path.stem), path.stem


def test_missing_fonts_say_how_to_get_them(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(faces, "FONT_ROOT", tmp_path)
    with pytest.raises(DataError, match="make fonts"):
        corpus_module.render()


def test_corpus_round_trip(corpus, tmp_path: Path):
    corpus_module.save(corpus, tmp_path)
    again = corpus_module.load(tmp_path)
    assert again.names == corpus.names
    assert np.array_equal(again.ink, corpus.ink)
    assert np.array_equal(again.split, corpus.split)


def test_plain_style_is_the_glyph_format(corpus):
    """Box 20 pixels and centre of mass in the middle: the format of `hyperdp.glyphs.normalise`."""
    from hyperdp.glyphs import normalise

    rows = np.arange(0, len(corpus), 37)
    images = draw(torch.from_numpy(corpus.ink[rows]), torch.from_numpy(corpus.skeleton[rows]),
                  plain_style(len(rows)), torch.Generator())  # fmt: skip
    by_pillow = np.stack([normalise(corpus.ink[r]) for r in rows])
    assert images.shape == by_pillow.shape
    difference = (images.numpy() - by_pillow) / 2
    assert (
        np.sqrt((difference**2).mean((1, 2, 3))).mean() < 0.1
    )  # two resamplers, sub-pixel centring in one
    ink = (images.numpy() + 1) / 2
    centre = (ink.sum(2) * np.arange(28)).sum((1, 2)) / ink.sum((1, 2, 3))
    assert np.abs(centre - 13.5).max() < 1.0


def test_styles_reach_the_records(corpus):
    rows = torch.arange(0, 400, 10)
    ink, skeleton = torch.from_numpy(corpus.ink[rows]), torch.from_numpy(corpus.skeleton[rows])

    def mass(**change: float) -> float:
        fields = {
            f.name: getattr(plain_style(len(rows)), f.name) for f in dataclasses.fields(Style)
        }
        style = Style(**{**fields, **{k: torch.full((len(rows),), v) for k, v in change.items()}})
        images = draw(ink, skeleton, style, torch.Generator().manual_seed(0))
        assert images.abs().max() <= 1 + 1e-5
        return float((images + 1).mean())

    assert mass(pen=1.0, width_mean=7.0) > 1.3 * mass(pen=1.0, width_mean=2.5)
    assert mass(bold_mean=0.5) > mass() > mass(bold_mean=-0.5)


def test_a_coarse_scan_has_lost_what_is_finer_than_its_pixels(corpus):
    rows = torch.arange(0, 400, 10)
    ink, skeleton = torch.from_numpy(corpus.ink[rows]), torch.from_numpy(corpus.skeleton[rows])

    def drawn(resolution: float) -> torch.Tensor:
        plain = plain_style(len(rows))
        style = dataclasses.replace(plain, resolution=torch.full((len(rows),), resolution))
        return draw(ink, skeleton, style, torch.Generator().manual_seed(0))

    def above(images: torch.Tensor, side: int) -> float:
        """Share of the power at frequencies that `side` pixels cannot show."""
        power = torch.fft.fft2(images[:, 0]).abs().square()
        high = (torch.fft.fftfreq(28).abs() * 28) > side / 2
        return float(power[:, high[:, None] | high[None]].sum() / power.sum())

    noise = torch.rand(3, 1, 28, 28) * 2 - 1
    assert torch.equal(_scanned(noise, torch.full((3,), 28.0)), noise)
    assert above(drawn(11.0), 14) < 0.1 * above(drawn(28.0), 14)
    assert above(drawn(11.0), 14) < above(drawn(16.0), 14)


def test_other_styles_stay_what_they_were_where_none_is_coarse():
    before, mixed = (
        draw_style(400, torch.Generator().manual_seed(0), coarse=coarse) for coarse in (0.0, 0.3)
    )
    changed = mixed.resolution < 28
    assert 0.2 < float(changed.float().mean()) < 0.4
    for field in dataclasses.fields(Style):
        one, other = getattr(before, field.name), getattr(mixed, field.name)
        assert torch.equal(one[~changed], other[~changed])
    assert (before.resolution == 28).all()


def test_a_seed_draws_the_same_records(corpus):
    def once(seed: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return TaskSampler(corpus, 0, TaskMix()).draw(4, 6, rng)

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    assert torch.isfinite(once(1)).all()


def test_a_glyph_is_readable_when_other_families_draw_its_character_alike():
    """Forty families draw a bar for "1" and a ring for "0"; another has them swapped."""
    grid = np.stack(np.meshgrid(np.arange(48), np.arange(48)), -1) - 23.5
    radius = np.hypot(grid[..., 0], grid[..., 1])
    bar = (np.abs(grid[..., 0]) < 3) & (np.abs(grid[..., 1]) < 18)
    ring = np.abs(radius - 15) < 3
    drawn = [(bar, ring)] * 40 + [(ring, bar)]
    ink = np.stack([part for pair in drawn for part in pair]).astype(np.uint8) * 255
    skeleton = np.stack([skeletonize(part > 0) for part in ink]).astype(np.uint8) * 255
    count = len(ink)
    zero, no = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=bool)
    corpus = corpus_module.Corpus(
        ink=ink, skeleton=skeleton, script=zero, face=zero, weight=zero.astype(np.int16),
        family=np.repeat(np.arange(41, dtype=np.int32), 2),
        char=np.tile(np.array([1, 0], dtype=np.int32), 41),
        slant=no, serif=no, condensed=no, split=zero.astype(np.int8), names={},
    )  # fmt: skip
    kept = readable(corpus, np.arange(count))
    assert kept.tolist() == [True] * 80 + [False] * 2
    one_family = dataclasses.replace(corpus, family=zero)
    assert not readable(one_family, np.arange(count)).any()  # nobody else to ask
    assert readable(corpus, np.arange(0)).shape == (0,)


def test_tasks_of_digits_take_readable_glyphs_as_often_as_the_mix_says(corpus):
    always, never = (
        TaskSampler(corpus, 0, TaskMix(readable=share), min_pool=4) for share in (1.0, 0.0)
    )
    digits = set(always.digits) & set(always.readable)
    assert digits
    some = next(c for c in sorted(digits) if len(always.readable[c]) < len(always.chars[c]))
    for sampler, rows in ((always, always.readable[some]), (never, never.chars[some])):
        sampler.digits, sampler.cases = [some], [[some], [some]]
        sampler.chars = {some: sampler.chars[some]}
        drawn = [sampler._char_group(np.random.default_rng(seed)) for seed in range(40)]
        assert set(np.concatenate(drawn)) == set(rows)


def test_splits_share_no_script_outside_latin(corpus):
    train, held_out = (set(corpus.script[corpus.split == s]) for s in (0, 1))
    assert held_out
    assert not train & held_out
    sampler = RowSampler(corpus, 1)
    drawn = sampler.draw(200, torch.Generator().manual_seed(0))
    assert set(corpus.script[drawn]) <= held_out


def test_pool_renews_itself(corpus):
    rng = torch.Generator().manual_seed(0)
    pool = TaskPool(TaskSampler(corpus, 0, TaskMix()), size=6, records=5, fresh=2)
    images, content = pool.draw(3, rng)
    assert images.shape == (3, 5, 1, 28, 28)
    assert content.shape == (3, 5)
    assert content.max() < pool.sampler.content_classes
    before = pool.images.clone()
    pool.draw(3, rng)
    changed = (pool.images != before).flatten(1).any(1)
    assert changed.sum() == 2


def test_styles_are_drawn_within_bounds():
    style = draw_style(500, torch.Generator().manual_seed(0))
    assert style.width_mean.min() > 1
    assert set(style.pen.tolist()) == {0.0, 1.0}
    assert 0.3 < float(style.pen.mean()) < 0.5


def _quadratic(folder: Path, steps: int) -> tuple[nn.Linear, Loop]:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def step(rng: torch.Generator, worker: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(8, 3, generator=rng)
        return (module(x)[:, 0] - x.sum(1)).square().mean(), {}

    return module, Loop(
        LoopConfig(steps=steps, lr=0.05, warmup=3, checkpoint_every=7), module, step, folder
    )


def test_a_killed_run_resumed_equals_an_unbroken_one(tmp_path: Path):
    unbroken, loop = _quadratic(tmp_path / "a", 21)
    loop.run("a")

    class KilledError(Exception):
        pass

    _, first = _quadratic(tmp_path / "b", 21)
    honest = first.step_fn

    def dies(rng: torch.Generator, worker: int) -> tuple[torch.Tensor, dict[str, float]]:
        if first.done == 17:  # after the checkpoint of step 14
            raise KilledError
        return honest(rng, worker)

    first.step_fn = dies
    with pytest.raises(KilledError):
        first.run("b")
    resumed, second = _quadratic(tmp_path / "b", 21)
    assert second.done == 14
    second.run("b")
    assert torch.equal(resumed.weight, unbroken.weight)
    assert torch.equal(resumed.bias, unbroken.bias)


def test_a_run_begins_with_the_averaged_weights_of_another(tmp_path: Path):
    _, loop = _quadratic(tmp_path, 21)
    loop.run("first")
    module = nn.Linear(*reversed(loop.module.weight.shape))
    load_average(tmp_path, module)
    assert torch.equal(module.weight, loop.average["weight"])
    assert torch.equal(module.bias, loop.average["bias"])
    with pytest.raises(UsageError, match=r"missing or of another size there: weight"):
        load_average(tmp_path, nn.Linear(7, 3))
    with pytest.raises(UsageError, match="the folder of a training run"):
        load_average(tmp_path / "none", module)


def test_a_part_of_the_module_may_learn_slower(tmp_path: Path):
    module = nn.ModuleDict({"fast": nn.Linear(2, 1), "base": nn.Linear(2, 1)})
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    config = LoopConfig(steps=1, lr=0.1, warmup=1)

    def step(rng: torch.Generator, worker: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.ones(1, 2)
        return (module["fast"](x) + module["base"](x)).sum(), {}

    loop = Loop(config, module, step, tmp_path, lr_scales={"base.": 0.25})
    loop.run("scaled")
    moved = {n: (loop.average[n] - before[n]).abs().max() for n in before}
    for part in ("weight", "bias"):  # Adam's first step is the learning rate, whatever the gradient
        torch.testing.assert_close(moved[f"base.{part}"], 0.25 * moved[f"fast.{part}"])


def test_workers_add_up_to_one_step(tmp_path: Path):
    """Two workers with half a batch each leave the gradient of the whole batch."""
    module, data = nn.Linear(3, 1), torch.randn(8, 3)
    halves = (data[:4], data[4:])

    def step(rng: torch.Generator, worker: int) -> tuple[torch.Tensor, dict[str, float]]:
        return module(halves[worker]).square().mean(), {}

    two = Loop(LoopConfig(steps=1, lr=0.0, warmup=1, workers=2, clip=1e9), module, step, tmp_path)
    two.run("two")
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(data).square().mean().backward()
    for grad, p in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-5, atol=1e-6)


def test_the_loop_learns_and_stops_on_nan(tmp_path: Path):
    module, loop = _quadratic(tmp_path / "a", 150)
    loop.run("a")
    assert (module.weight - 1).abs().max() < 0.1
    _, broken = _quadratic(tmp_path / "c", 5)
    broken.step_fn = lambda rng, worker: (module.weight.sum() * float("nan"), {})
    broken.params = dict(module.named_parameters())
    with pytest.raises(UsageError, match="step 0"):
        broken.run("c")


def test_recipes_refuse_what_they_do_not_know(tmp_path: Path):
    with pytest.raises(UsageError, match="Shipped recipes"):
        read_recipe("nothing", "base")
    with pytest.raises(UsageError, match="another kind"):
        read_recipe("glyphs", "base")
    (tmp_path / "r.toml").write_text("kind = ")
    with pytest.raises(UsageError, match="valid TOML"):
        read_recipe(str(tmp_path / "r.toml"), "base")
    with pytest.raises(UsageError, match="epochs"):
        build(LoopConfig, {"steps": 1, "epochs": 2})
    with pytest.raises(UsageError, match="steps"):
        build(LoopConfig, {})
    with pytest.raises(UsageError, match="sample"):
        open_recipe_corpus({"corpus": "cifar"})


@pytest.mark.parametrize(
    ("name", "kind", "cls"), [("glyphs-base", "base", BaseConfig), ("glyphs", "hyper", HyperConfig)]
)
def test_shipped_recipes_are_valid(name: str, kind: str, cls: type):
    build(cls, read_recipe(name, kind))


def test_the_whole_public_stage_learns_and_writes_a_bundle(tmp_path: Path):
    values = read_recipe("glyphs-tiny-base", "base")
    corpus = open_recipe_corpus(values)
    base_config = build(BaseConfig, values)
    base_config = dataclasses.replace(
        base_config, loop=dataclasses.replace(base_config.loop, steps=50)
    )
    family = train_base(base_config, tmp_path / "base", GlyphWorld(corpus))
    rng = torch.Generator().manual_seed(3)
    images = records(corpus, RowSampler(corpus, 1).draw(64, rng), rng)
    with torch.no_grad():
        assert family.loss(images, rng).mean() < 0.6  # an untrained base is above 2

    again = dataclasses.replace(
        base_config,
        start=str(tmp_path / "base"),
        loop=dataclasses.replace(base_config.loop, steps=1, lr=0.0),
    )
    assert _same_weights(
        train_base(again, tmp_path / "again", GlyphWorld(corpus)), family, atol=0.0
    )

    values = read_recipe("glyphs-tiny", "hyper")
    open_recipe_corpus(values)
    config = build(HyperConfig, {**values, "base": str(tmp_path / "base")})
    short = dataclasses.replace(config.loop, steps=12, validate_every=6, checkpoint_every=6)
    bundle = train_hyper(
        dataclasses.replace(config, loop=short, pool=10), tmp_path / "hyper", GlyphWorld(corpus)
    )
    assert load_bundle(tmp_path / "hyper" / "bundle").hash == bundle.hash
    log = (tmp_path / "hyper" / "log.jsonl").read_text()
    assert all(f"val_{name}" in log for name in ("base", "public_mean", "other_task", "hyper"))
    assert bundle.public_mean.norm() <= config.clip_norm
    assert _same_weights(bundle.base, family, atol=2e-3)  # frozen; the bundle keeps half precision

    joint = dataclasses.replace(
        config,
        loop=dataclasses.replace(short, workers=2, lr=0.05, steps=4),
        pool=10,
        base_weight=0.5,
        foretell_steps=2,
    )
    learned = train_hyper(joint, tmp_path / "joint", GlyphWorld(corpus))
    assert not _same_weights(learned.base, family, atol=2e-3)
    resumed = train_hyper(joint, tmp_path / "joint", GlyphWorld(corpus))
    assert resumed.hash == learned.hash
    further = dataclasses.replace(
        joint, start=str(tmp_path / "joint"), foretell_steps=0,
        loop=dataclasses.replace(short, steps=1, lr=0.0),
    )  # fmt: skip
    same = train_hyper(further, tmp_path / "further", GlyphWorld(corpus))
    for p, q in zip(same.hypernetwork.parameters(), learned.hypernetwork.parameters(), strict=True):
        assert torch.equal(p, q)
    told, began = (json.loads((b.path / "training.json").read_bytes()) for b in (same, learned))
    assert told["start"] == began
    assert "start" not in began

    shipped = dataclasses.replace(further, start=str(learned.path))
    same = train_hyper(shipped, tmp_path / "from-bundle", GlyphWorld(corpus))
    for part in ("hypernetwork", "encoder"):
        for p, q in zip(
            getattr(same, part).parameters(), getattr(learned, part).parameters(), strict=True
        ):
            assert torch.equal(p, q)
    assert json.loads((same.path / "training.json").read_bytes())["start"] == began
    check_average(tmp_path, joint, further, learned, corpus)

    other = dataclasses.replace(shipped, hypernetwork={**shipped.hypernetwork, "width": 32})
    with pytest.raises(UsageError, match=r"the hypernetwork of .* sizes"):
        train_hyper(other, tmp_path / "other-sizes", GlyphWorld(corpus))
    files = {str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


def check_average(
    tmp_path: Path,
    joint: HyperConfig,
    further: HyperConfig,
    learned: Bundle,
    corpus: corpus_module.Corpus,
):
    """`further` is a recipe that begins where it is told and moves nothing."""
    moved = dataclasses.replace(
        joint, start=str(learned.path), base=str(learned.path), foretell_steps=0,
        loop=dataclasses.replace(joint.loop, seed=9),
    )  # fmt: skip
    moved_on = train_hyper(moved, tmp_path / "moved", GlyphWorld(corpus))
    average_runs(learned.path, tmp_path / "moved", share=0.25, out=tmp_path / "average")
    from_average = dataclasses.replace(
        further, start=str(tmp_path / "average"), base=str(tmp_path / "average")
    )
    mean = train_hyper(from_average, tmp_path / "from-average", GlyphWorld(corpus))
    for part in ("hypernetwork", "encoder"):
        for p, q, r in zip(
            *(getattr(b, part).parameters() for b in (mean, learned, moved_on)), strict=True
        ):
            torch.testing.assert_close(p, 0.75 * q + 0.25 * r, atol=2e-3, rtol=2e-3)
    for p, q, r in zip(
        *(b.base.model.parameters() for b in (mean, learned, moved_on)), strict=True
    ):
        torch.testing.assert_close(p, 0.75 * q + 0.25 * r, atol=2e-3, rtol=2e-3)
    assert not _same_weights(moved_on.base, learned.base, atol=2e-3)
    told = json.loads((mean.path / "training.json").read_bytes())["start"]
    assert told["average"] == {learned.hash[:8]: 0.75, moved_on.hash[:8]: 0.25}
    with pytest.raises(UsageError, match="between 0 and 1"):
        average_runs(learned.path, tmp_path / "moved", share=1.5, out=tmp_path / "x")
    with pytest.raises(UsageError, match="folder of a training run"):
        average_runs(learned.path, tmp_path / "nowhere", share=0.5, out=tmp_path / "x")

    narrow = dataclasses.replace(
        further, start="", hypernetwork={**joint.hypernetwork, "width": 32}
    )
    train_hyper(narrow, tmp_path / "narrow", GlyphWorld(corpus))
    with pytest.raises(UsageError, match="missing or of another size: average/hypernetwork"):
        average_runs(learned.path, tmp_path / "narrow", share=0.5, out=tmp_path / "x")


def _same_weights(one: UNetFlow, two: UNetFlow, atol: float) -> bool:
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return all(torch.allclose(p, q, atol=atol, rtol=1e-3) for p, q in pairs)


def test_twins_share_weights_and_no_hooks():
    family = tiny_family()
    other = twin(family)
    assert all(
        p is q for p, q in zip(family.model.parameters(), other.model.parameters(), strict=True)
    )
    site = family.sites()[0]
    family.model.get_submodule(site).register_forward_hook(lambda module, args, out: out * 0)
    x, s = torch.randn(2, 1, 28, 28), torch.full((2,), 500.0)
    assert not torch.equal(family.model(x, s).sample, other.model(x, s).sample)
