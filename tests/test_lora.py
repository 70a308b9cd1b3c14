"""Batched adapters against one-by-one adapters, against merged weights and against PEFT itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperdp.errors import UsageError
from hyperdp.lora import (
    adapters,
    attach_peft,
    describe_sites,
    load_peft,
    merged,
    pick,
    save_peft,
)
from tests.worlds import tiny_family, tiny_hypernetwork

GROUPS, PER_GROUP = 3, 2


@pytest.fixture
def world():
    family = tiny_family()
    hypernetwork = tiny_hypernetwork(family)
    torch.manual_seed(5)
    weights = hypernetwork(torch.randn(GROUPS, 8) * 0.3, torch.tensor([0.001, 0.01, 0.1]))
    x = torch.randn(GROUPS * PER_GROUP, 1, 28, 28)
    t = torch.rand(GROUPS * PER_GROUP) * 1000
    return family, weights, x, t


def _batched(family, weights, x, t):
    with torch.no_grad(), adapters(family.model, weights):
        return family.model(x, t).sample


def test_batched_equals_one_by_one(world):
    family, weights, x, t = world
    together = _batched(family, weights, x, t)
    for g in range(GROUPS):
        part = slice(g * PER_GROUP, (g + 1) * PER_GROUP)
        alone = _batched(family, pick(weights, g), x[part], t[part])
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-5)


def test_batched_equals_weights_merged_by_hand(world):
    family, weights, x, t = world
    together = _batched(family, weights, x, t)
    g = 1
    model = copy.deepcopy(family.model)
    modules = dict(model.named_modules())
    for name, (a, b) in weights.items():
        delta = torch.einsum("or,ri->oi", b[g], a[0].flatten(1))
        modules[name].weight.data += delta.view_as(modules[name].weight)
    part = slice(g * PER_GROUP, (g + 1) * PER_GROUP)
    with torch.no_grad():
        torch.testing.assert_close(
            together[part], model(x[part], t[part]).sample, rtol=0, atol=1e-5
        )


def test_merged_computes_the_same_and_leaves_no_trace(world):
    family, weights, x, t = world
    before = [(name, p, p.clone()) for name, p in family.model.named_parameters()]
    for g in range(GROUPS):
        one = pick(weights, g)
        with torch.no_grad(), merged(family.model, one):
            quick = family.model(x, t).sample
        torch.testing.assert_close(quick, _batched(family, one, x, t), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError), merged(family.model, pick(weights, 0)):
        raise RuntimeError
    after = list(family.model.named_parameters())
    for (name, param, value), (name_after, param_after) in zip(before, after, strict=True):
        assert name == name_after  # in the same order
        assert param is param_after
        assert torch.equal(value, param_after)
    with merged(family.model, {}):
        assert all(p is q for (_, p, _), q in zip(before, family.model.parameters(), strict=True))
    with pytest.raises(UsageError, match="pick"), merged(family.model, weights):
        pass


def test_an_a_for_each_group_equals_a_shared_one(world):
    family, weights, x, t = world
    own = {n: (a.expand(GROUPS, *a.shape[1:]).contiguous(), b) for n, (a, b) in weights.items()}
    torch.testing.assert_close(
        _batched(family, own, x, t), _batched(family, weights, x, t), rtol=0, atol=1e-5
    )


def test_adapters_change_the_model_and_leave_no_trace(world):
    family, weights, x, t = world
    with torch.no_grad():
        before = family.model(x, t).sample
    assert (before - _batched(family, weights, x, t)).abs().max() > 1e-2
    with torch.no_grad():
        assert torch.equal(family.model(x, t).sample, before)


def test_hooks_go_when_the_forward_pass_fails(world):
    family, weights, _x, t = world
    with pytest.raises(RuntimeError), adapters(family.model, weights):
        family.model(torch.randn(2, 5, 28, 28), t[:2])
    assert all(len(m._forward_hooks) == 0 for m in family.model.modules())


def test_peft_reads_what_we_write_and_computes_the_same(world, tmp_path: Path):
    family, weights, x, t = world
    g = 2
    part = slice(g * PER_GROUP, (g + 1) * PER_GROUP)
    save_peft(pick(weights, g), tmp_path / "adapter", base_name="tiny")
    attached = attach_peft(copy.deepcopy(family.model), tmp_path / "adapter")
    with torch.no_grad():
        by_peft = attached(x[part], t[part]).sample
    torch.testing.assert_close(_batched(family, weights, x, t)[part], by_peft, rtol=0, atol=1e-5)
    adapted = {
        name
        for name, module in attached.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert adapted == set(family.sites())


def test_peft_round_trip_is_exact(world, tmp_path: Path):
    _, weights, _, _ = world
    save_peft(pick(weights, 0), tmp_path, base_name="tiny")
    again = load_peft(tmp_path)
    assert set(again) == set(weights)
    for name, (a, b) in again.items():
        assert torch.equal(a, weights[name][0][:1])
        assert torch.equal(b, weights[name][1][:1])


def test_every_record_its_own_group_gives_per_example_gradients():
    family = tiny_family()
    sites = describe_sites(family.model, family.sites())
    torch.manual_seed(3)
    a = {s.name: torch.randn(2, *s.a_shape) * 0.1 for s in sites}
    b = {s.name: torch.randn(s.out_features, 2) * 0.1 for s in sites}
    x, t = torch.randn(4, 1, 28, 28), torch.rand(4) * 1000
    own = {
        n: (
            a[n].expand(4, *a[n].shape).clone().requires_grad_(),
            b[n].expand(4, *b[n].shape).clone().requires_grad_(),
        )
        for n in a
    }
    with adapters(family.model, own):
        family.model(x, t).sample.square().mean((1, 2, 3)).sum().backward()
    for i in range(4):
        alone = {
            n: (a[n][None].clone().requires_grad_(), b[n][None].clone().requires_grad_()) for n in a
        }
        with adapters(family.model, alone):
            family.model(x[i : i + 1], t[i : i + 1]).sample.square().mean().backward()
        for n in a:
            for batched, single in zip(own[n], alone[n], strict=True):
                scale = single.grad.norm().clamp(min=1e-8)
                assert (batched.grad[i] - single.grad[0]).norm() / scale < 1e-4


def test_a_module_that_takes_no_lora_is_refused():
    with pytest.raises(UsageError, match="no such module"):
        describe_sites(nn.Sequential(nn.Linear(2, 2)), ["7"])
    with pytest.raises(UsageError, match="LayerNorm"):
        describe_sites(nn.Sequential(nn.LayerNorm(2)), ["0"])


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="PEFT directory"):
        load_peft(tmp_path)
