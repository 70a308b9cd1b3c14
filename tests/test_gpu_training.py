"""What training on a GPU stands on; the parts that need none are tested without one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperdp.bundle import load_bundle
from hyperdp.draws import chosen, normal, uniform
from hyperdp.errors import UsageError
from hyperdp.family import UNetFlow
from hyperdp.graph import GraphedShare
from hyperdp.hypernetwork import DIRECT_STD, Hypernetwork, HypernetworkConfig
from hyperdp.lora import LoraSite
from hyperdp.narrow_norms import NarrowGroupNorm, narrow_norms
from hyperdp.pretrain.checkpoint import CHECKPOINT
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.feed import Feed, feed_seed, unpack
from hyperdp.pretrain.hyper import HyperConfig, train_hyper
from hyperdp.pretrain.hyper_step import HyperStep
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.provenance import commit
from hyperdp.pretrain.task_pool import TaskPool
from hyperdp.pretrain.tasks import TaskMix, TaskSampler
from hyperdp.pretrain.world import GlyphWorld
from tests.worlds import TINY_UNET

CPU = torch.device("cpu")
SITE = LoraSite(name="s", in_features=3, out_features=5, kernel=())


def _draw(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    images = torch.rand(1, 4, 4, generator=rng) * 2 - 1
    return images, torch.randint(100, (3,), generator=rng)


def _feed(feeders: int = 1, fresh: int = 2) -> Feed:
    return Feed(_draw, seed=5, size=6, fresh=fresh, feeders=feeders, device=CPU)


def test_a_fed_pool_holds_the_draws_of_its_seed_and_only_the_latest():
    feed = _feed(feeders=2)
    with pytest.raises(RuntimeError, match="refill"):
        feed.pool()
    for _ in range(3):  # 6 at first, then 2 and 2 more than the first two
        feed.refill()
    assert feed.state().tolist() == [12]
    images, content = feed.pool()
    for number in range(6, 12):
        expected = _draw(torch.Generator().manual_seed(5 + number))
        assert torch.equal(content[number % 6], expected[1])
        assert (unpack(images[number % 6]) - expected[0]).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("fresh", [2, 4])  # 4 does not divide the pool
def test_a_fed_pool_goes_on_from_its_state_and_never_moves(fresh: int):
    with pytest.raises(ValueError, match="7 fresh draws in a pool of 6"):
        _feed(fresh=7)
    whole, broken = _feed(fresh=fresh), _feed(fresh=fresh)
    whole.refill()
    where = [part.data_ptr() for part in whole.pool()]
    whole.refill()
    broken.restore(whole.state())
    for _ in range(2):
        whole.refill()
        broken.refill()
    assert [part.data_ptr() for part in whole.pool()] == where  # a graph reads it there
    assert torch.equal(broken.state(), whole.state())
    for one, other in zip(whole.pool(), broken.pool(), strict=True):
        assert torch.equal(one, other)


def test_no_two_feeds_share_a_seed():
    seeds = {
        feed_seed(run, worker, kind) for run in (0, 1, 7) for worker in (0, 1) for kind in (0, 1)
    }
    assert len(seeds) == 12
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) >= 2**32


def test_numbers_come_from_the_generator_or_from_the_device():
    rng = torch.Generator().manual_seed(1)
    first = normal((3, 2), rng, CPU), uniform((4,), rng, CPU), chosen(3, 9, rng, CPU)
    rng.manual_seed(1)
    assert torch.equal(normal((3, 2), rng, CPU), first[0])
    assert torch.equal(first[0], torch.randn(3, 2, generator=rng.manual_seed(1)))
    torch.manual_seed(4)
    own = normal((1000,), None, CPU), uniform((1000,), None, CPU)
    torch.manual_seed(4)
    assert torch.equal(normal((1000,), None, CPU), own[0])
    assert abs(float(own[0].mean())) < 0.15
    assert abs(float(own[0].std()) - 1) < 0.15
    assert 0 <= float(own[1].min()) < 0.05
    assert 0.95 < float(own[1].max()) < 1
    for numbers in (first[2], chosen(3, 9, None, CPU)):
        assert len(set(numbers.tolist())) == 3 and set(numbers.tolist()) <= set(range(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_narrow_norm_is_a_group_norm_in_the_precision_of_its_input(dtype):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU())
    norm = model[1]
    assert isinstance(norm, nn.GroupNorm)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 5, 5, dtype=dtype)
    expected = norm(x.float())
    keys = list(model.state_dict())
    narrow_norms(model)
    assert isinstance(model[1], NarrowGroupNorm)
    assert list(model.state_dict()) == keys
    with torch.autocast("cpu", torch.bfloat16):
        found = model[1](x)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.03)


def test_direct_heads_read_every_coordinate_by_what_its_noise_leaves():
    config = HypernetworkConfig(
        embed_dim=6, rank=2, basis=3, width=8, depth=1, bottleneck=4, direct=True
    )
    hyper = Hypernetwork(config, [SITE])
    mean = torch.randn(5, 6)
    for noise_std in (1e-4, 0.05, 0.2):
        level = torch.full((5,), noise_std)
        code = hyper.code(mean, level)
        assert code.shape == (5, config.code_size) == (5, 10)
        # Wiener's gain for a coordinate of std s under noise: s² / (s² + noise²), on z · √k.
        noise = noise_std * math.sqrt(6)
        gain = DIRECT_STD**2 / (DIRECT_STD**2 + noise**2)
        assert torch.allclose(code[:, 4:], gain * mean * math.sqrt(6) / DIRECT_STD, atol=1e-5)
    without = dataclasses.replace(config, direct=False)
    plain = Hypernetwork(without, [SITE])
    assert plain.code(mean, level).shape == (5, 4)
    assert set(hyper.state_dict()) - set(plain.state_dict()) == {"log_std", "slope"}


def test_a_blind_hypernetwork_does_not_see_the_noise_level():
    config = HypernetworkConfig(
        embed_dim=6, rank=2, basis=3, width=8, depth=1, bottleneck=4, direct=True, blind=True
    )
    hyper, mean = Hypernetwork(config, [SITE]), torch.randn(2, 6)
    low, high = (hyper.code(mean, torch.full((2,), level)) for level in (1e-4, 0.2))
    assert torch.equal(low, high)
    hyper.config = dataclasses.replace(config, blind=False)
    assert not torch.equal(hyper.code(mean, torch.full((2,), 1e-4)), low)


def _config(base: Path, **changes: object) -> HyperConfig:
    loop = LoopConfig(steps=4, lr=2e-3, warmup=1, validate_every=1000, checkpoint_every=2)
    config = HyperConfig(
        name="t", base=str(base), loop=loop, tasks=2, queries=2, support=6, support_grad=3, pool=4,
        fresh=1, feeders=1, cells=4, foretell_steps=1, foretell_tasks=2,
        encoder={"embed_dim": 8, "widths": [8], "hidden": 8},
        hypernetwork={"rank": 2, "basis": 4, "width": 16, "depth": 1, "bottleneck": 8,
                      "direct": True},
        base_weight=0.3, base_records=8, trunk_lr=0.5, encoder_lr=0.5,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    UNetFlow.create(**TINY_UNET).save(tmp_path / "base")
    return tmp_path / "base"


def test_training_on_fed_tasks_goes_on_bit_for_bit(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
):
    world = GlyphWorld(open_sample())
    bundle = train_hyper(_config(base), tmp_path / "whole", world)
    assert bundle.hypernetwork.config.direct
    step, calls = HyperStep.__call__, []

    def killed(self: HyperStep, rng: torch.Generator | None, worker: int):
        calls.append(worker)
        if len(calls) == 4:  # in the fourth step, two steps after the checkpoint of the second
            raise KeyboardInterrupt
        return step(self, rng, worker)

    with monkeypatch.context() as patch:
        patch.setattr(HyperStep, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            train_hyper(_config(base), tmp_path / "broken", world)
    assert not (tmp_path / "broken" / "bundle").exists()
    train_hyper(_config(base), tmp_path / "broken", world)
    whole, broken = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert whole["sampler"].shape == (1, 2)  # tasks, and the base's own records
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.slow
def test_parts_of_a_start_are_taken_and_the_others_are_fresh(tmp_path: Path, base: Path):
    world = GlyphWorld(open_sample())
    first = train_hyper(_config(base), tmp_path / "first", world)
    still = LoopConfig(steps=1, lr=0.0, warmup=0, validate_every=1000)
    smaller = {"rank": 2, "basis": 4, "width": 16, "depth": 1, "bottleneck": 4, "direct": True}
    for start in (tmp_path / "first" / "bundle", tmp_path / "first"):
        again = _config(
            base, loop=still, start=str(start), foretell_steps=0, hypernetwork=smaller,
            start_parts=["encoder.", "hypernetwork.a.", "hypernetwork.head.bias"],
        )  # fmt: skip
        second = train_hyper(again, tmp_path / f"second-{start.name}", world)
        a, b = first.hypernetwork.state_dict(), second.hypernetwork.state_dict()
        assert torch.allclose(a["a.0"], b["a.0"], atol=1e-3)
        assert torch.allclose(a["head.bias"], b["head.bias"], atol=1e-3)
        assert not torch.equal(a["u.0"], b["u.0"])
        assert b["head.weight"].abs().max() == 0
        with pytest.raises(UsageError, match=r"of another size|of another size there|start_parts"):
            train_hyper(
                dataclasses.replace(again, start_parts=["hypernetwork.head."]),
                tmp_path / f"third-{start.name}",
                world,
            )
        with pytest.raises(UsageError, match="encodre"):
            train_hyper(
                dataclasses.replace(again, start_parts=["encoder.", "encodre."]),
                tmp_path / f"fourth-{start.name}",
                world,
            )


def test_a_graph_is_refused_where_there_can_be_none(tmp_path: Path, base: Path):
    graph = LoopConfig(steps=1, graph=True)
    world = GlyphWorld(open_sample())
    with pytest.raises(UsageError, match="feeders"):
        train_hyper(_config(base, loop=graph, feeders=0), tmp_path / "a", world)
    with pytest.raises(UsageError, match="another recipe"):
        Loop(graph, nn.Linear(2, 2), lambda rng, worker: (torch.zeros(()), {}), tmp_path / "c")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="on a GPU"):
            train_hyper(_config(base, loop=graph, foretell_steps=0), tmp_path / "b", world)


def test_what_the_processor_draws_needs_its_generator():
    pool = TaskPool(TaskSampler(open_sample(), 0, TaskMix()), size=2, records=2, fresh=1)
    with pytest.raises(ValueError, match="feeders"):
        pool.draw(1, None)


def test_a_copy_of_the_tree_says_which_commit_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYPERDP_COMMIT", "0123abc")
    assert commit() == "0123abc"


@pytest.mark.gpu
def test_a_graph_leaves_the_gradients_of_the_same_step():
    device = torch.device("cuda")
    torch.manual_seed(0)
    layer = nn.Linear(7, 3).to(device)
    x = torch.randn(5, 7, device=device)

    def share() -> Tensor:
        return layer(x).square().mean()

    graphed = GraphedShare(share, layer.parameters())
    graphed()
    for _ in range(2):  # what it reads may change in place, and gradients do not add up
        x.copy_(torch.randn(5, 7, device=device))
        graphed()
        found = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        expected = torch.autograd.grad(share(), list(layer.parameters()))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_a_graph_trains(tmp_path: Path, base: Path):
    loop = LoopConfig(steps=4, lr=2e-3, warmup=1, validate_every=4, graph=True, bf16=True)
    bundle = train_hyper(
        _config(base, loop=loop, foretell_steps=0), tmp_path / "g", GlyphWorld(open_sample())
    )
    assert load_bundle(bundle.path).hypernetwork.head.weight.abs().max() > 0
