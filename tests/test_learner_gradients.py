"""The per-example gradients against one backward pass an example, and against Opacus's hooks."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from hyperdp.errors import BundleError, UsageError
from hyperdp.lora import adapters, describe_sites
from hyperdp.private.finetune import fresh_adapter
from hyperdp.private.forms import Form
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.private.learners.starting import check_separate
from tests.worlds import tiny_family

B = 5


def awake(weights):
    """No factor zero, so that both have gradients."""
    rng = torch.Generator().manual_seed(9)
    return {
        n: (a.detach(), torch.randn(b.shape, generator=rng) * 0.1) for n, (a, b) in weights.items()
    }


def one_at_a_time(model, weights, loss_of):
    """[B, …] a site, by B separate passes; `loss_of(i)` is a number."""
    rows = []
    for i in range(B):
        leaves = {
            n: (a.clone().requires_grad_(), b.clone().requires_grad_())
            for n, (a, b) in weights.items()
        }
        with adapters(model, leaves):
            loss = loss_of(i)
        rows.append(torch.autograd.grad(loss, [p for pair in leaves.values() for p in pair]))
    joined = iter(torch.cat(column) for column in zip(*rows, strict=True))
    return {n: (next(joined), next(joined)) for n in weights}


def relative(found, wanted) -> float:
    return max(
        float((f - w).norm() / w.norm())
        for n in wanted
        for f, w in zip(found[n], wanted[n], strict=True)
    )


@pytest.fixture
def unet():
    family = tiny_family()
    family.model.requires_grad_(False)
    sites = describe_sites(family.model, family.sites())
    weights = awake(fresh_adapter(sites, 3, torch.Generator().manual_seed(0)))
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(B, 1, 28, 28, generator=rng) * 2 - 1
    s, noise = torch.rand(B, generator=rng), torch.randn(x.shape, generator=rng)
    return family, weights, x, s, noise


def test_they_equal_one_backward_pass_an_example_on_the_unet(unet):
    family, weights, x, s, noise = unet
    assert any(a.dim() == 5 for a, _ in weights.values())  # convolutions
    assert any(a.dim() == 3 for a, _ in weights.values())  # linear maps
    found = per_example_gradients(
        family.model, weights, lambda: family.loss_at(x, s, noise), examples=B
    )

    def loss(i):
        part = slice(i, i + 1)
        return family.loss_at(x[part], s[part], noise[part]).sum()

    assert relative(found, one_at_a_time(family.model, weights, loss)) < 1e-5


def test_several_draws_average_and_lora_a_can_be_left_out(unet):
    family, weights, x, s, noise = unet
    twice, times = x.repeat_interleave(2, 0), torch.stack([s, s.flip(0)], 1).flatten()
    noises = torch.stack([noise, -noise], 1).flatten(0, 1)

    def losses():
        return family.loss_at(twice, times, noises)

    found = per_example_gradients(family.model, weights, losses, examples=B)

    def loss(i):
        part = slice(2 * i, 2 * i + 2)
        return family.loss_at(twice[part], times[part], noises[part]).mean()

    assert relative(found, one_at_a_time(family.model, weights, loss)) < 1e-5
    without = per_example_gradients(family.model, weights, losses, examples=B, wrt_a=False)
    for name, (a, b) in without.items():
        assert a.shape == (B, 0)
        torch.testing.assert_close(b, found[name][1], rtol=1e-4, atol=1e-7)


def test_no_companion_changes_an_example_by_one_bit(unet):
    family, weights, x, s, noise = unet

    def grads(order, images):
        return per_example_gradients(
            family.model,
            weights,
            lambda: family.loss_at(images[order], s[order], noise[order]),
            examples=B,
        )

    plain = grads(torch.arange(B), x)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = grads(order, x)
    others = x.clone()
    others[2:] = torch.tensor([float("nan"), 1.0, 0.0]).view(3, 1, 1, 1)
    beside = grads(torch.arange(B), others)
    for name in plain:
        for k in (0, 1):
            assert torch.equal(permuted[name][k], plain[name][k][order])
            assert torch.equal(beside[name][k][:2], plain[name][k][:2])
    # What has no finite loss has no finite gradient, and is told from the rest.
    assert not any(torch.isfinite(pair[1][2]).all() for pair in beside.values())


def test_record_losses_depend_on_their_record_alone(unet):
    family, _, x, *_ = unet
    first = record_losses(family, x, 3, torch.Generator().manual_seed(4))
    other = x.clone()
    other[1:] = 0.5
    second = record_losses(family, other, 3, torch.Generator().manual_seed(4))
    assert first.shape == (3 * B,)
    assert torch.equal(first[:3], second[:3])
    assert not torch.equal(first[3:], second[3:])


def test_a_loss_averaged_over_the_batch_is_refused(unet):
    family, weights, x, s, noise = unet
    with pytest.raises(UsageError, match="a loss for each record"):
        per_example_gradients(
            family.model, weights, lambda: family.loss_at(x, s, noise).mean(), examples=B
        )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in n]
    return model, names


def test_they_equal_one_backward_pass_an_example_on_a_llama():
    model, names = llama()
    weights = awake(fresh_adapter(describe_sites(model, names), 2, torch.Generator()))
    tokens = torch.randint(50, (B, 9), generator=torch.Generator().manual_seed(3))

    def losses(part):
        logits = model(input_ids=tokens[part]).logits[:, :-1]
        each = functional.cross_entropy(
            logits.transpose(1, 2), tokens[part][:, 1:], reduction="none"
        )
        return each.mean(1)

    found = per_example_gradients(model, weights, lambda: losses(slice(None)), examples=B)
    wanted = one_at_a_time(model, weights, lambda i: losses(slice(i, i + 1)).sum())
    assert relative(found, wanted) < 1e-5


class Convolutional(nn.Module):
    """Convolutions of several kernels and strides, and a linear map. PEFT knows no dilation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.one = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.two = nn.Conv2d(8, 6, (3, 5), padding=(1, 2))
        self.three = nn.Conv2d(6, 4, 1)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        x = functional.silu(self.one(x))
        x = functional.silu(self.two(x))
        return self.out(functional.silu(self.three(x)).mean((2, 3)))


def test_they_equal_opacus_hooks_on_peft_s_own_lora():
    base = Convolutional().requires_grad_(False)
    names = ["one", "two", "three", "out"]
    weights = awake(fresh_adapter(describe_sites(base, names), 2, torch.Generator()))
    rng = torch.Generator().manual_seed(2)
    x, y = torch.randn(B, 3, 12, 12, generator=rng), torch.randint(5, (B,), generator=rng)
    found = per_example_gradients(
        base, weights, lambda: functional.cross_entropy(base(x), y, reduction="none"), examples=B
    )

    config = LoraConfig(r=2, lora_alpha=2, target_modules=names)
    attached = get_peft_model(Convolutional(), config).train()  # the hooks sleep in eval mode
    parameters = dict(attached.named_parameters())
    for name, (a, b) in weights.items():
        for factor, value in (("A", a[0]), ("B", b[0])):
            parameter = parameters[f"base_model.model.{name}.lora_{factor}.default.weight"]
            parameter.data = value.reshape(parameter.shape).clone()
    hooked = GradSampleModule(attached, loss_reduction="sum")
    functional.cross_entropy(hooked(x), y, reduction="sum").backward()
    samples = {n.removeprefix("_module."): p.grad_sample for n, p in hooked.named_parameters()
               if p.requires_grad}  # fmt: skip
    wanted = {
        name: tuple(
            samples[f"base_model.model.{name}.lora_{factor}.default.weight"].reshape(shape.shape)
            for factor, shape in zip("AB", found[name], strict=True)
        )
        for name in names
    }
    assert relative(found, wanted) < 1e-5


FORM = Form(noun="image", shape=(1, 28, 28))


@pytest.mark.parametrize("microbatch", [1, 3, 8])
def test_a_base_without_batch_statistics_is_taken(unet, microbatch):
    family, weights = tiny_family(), unet[1]
    family.model.requires_grad_(False)
    asleep = {n: (a, torch.zeros_like(b)) for n, (a, b) in weights.items()}
    for adapter in (weights, asleep):
        check_separate(family, adapter, FORM, microbatch=microbatch)


@pytest.mark.parametrize("microbatch", [1, 8])
@pytest.mark.parametrize(
    "mixed",
    [
        lambda losses: losses * losses.detach().mean(),
        lambda losses: losses * (1 + 0 * losses.sum()),  # nothing, unless one is not finite
    ],
)
def test_a_base_in_which_a_record_changes_another_s_gradient_is_refused(unet, microbatch, mixed):
    family = tiny_family()
    family.model.requires_grad_(False)
    own = family.adapter_loss
    family.adapter_loss = lambda *words: mixed(own(*words))
    with pytest.raises(BundleError, match="its own record"):
        check_separate(family, unet[1], FORM, microbatch=microbatch)
