"""The flow-matching family: its loss by hand, its sampler repeatable, its sites adaptable."""

from __future__ import annotations

import torch
from torch import nn

from hyperdp.family import UNetFlow
from hyperdp.lora import describe_sites
from tests.worlds import tiny_family


def test_loss_is_the_flow_matching_loss():
    family = tiny_family()
    torch.manual_seed(0)
    x0, noise, s = (
        torch.randn(3, 1, 28, 28),
        torch.randn(3, 1, 28, 28),
        torch.tensor([0.1, 0.5, 0.9]),
    )
    with torch.no_grad():
        found = family.loss_at(x0, s, noise)
        for i in range(3):
            noisy = (1 - s[i]) * x0[i] + s[i] * noise[i]
            velocity = family.model(noisy[None], s[i : i + 1] * 1000).sample[0]
            by_hand = ((velocity - (noise[i] - x0[i])) ** 2).mean()
            torch.testing.assert_close(found[i], by_hand, rtol=1e-4, atol=1e-5)


def test_posterior_mean_is_bayes_over_the_known_records():
    torch.manual_seed(0)
    images, pool = (torch.rand(2, n, 1, 28, 28) * 2 - 1 for n in (3, 5))
    s, noise = torch.tensor([0.1, 0.5, 0.9, 0.99, 0.97, 0.3]), torch.randn(6, 1, 28, 28)
    w = s[:, None, None, None]
    noisy = (1 - w) * images.flatten(0, 1) + w * noise
    found = UNetFlow._posterior_mean(noisy, s, images, pool)
    for i in range(6):
        known = torch.cat([images[i // 3], pool[i // 3]]).double()
        scale, x = s[i].double(), noisy[i].double()
        log_p = torch.distributions.Normal((1 - scale) * known, scale).log_prob(x).sum((1, 2, 3))
        by_hand = (log_p.softmax(0)[:, None, None, None] * known).sum(0)
        torch.testing.assert_close(found[i].double(), by_hand, rtol=0, atol=1e-4)


def test_adapter_loss_is_least_for_the_posterior_velocity():
    """A model that answers the posterior velocity has no loss; one that answers zero has."""
    family = tiny_family()
    images, pool = torch.rand(1, 4, 1, 28, 28) * 2 - 1, torch.rand(1, 6, 1, 28, 28) * 2 - 1

    class Bayes(nn.Module):
        def forward(self, x, t):
            s = t / 1000
            mean = UNetFlow._posterior_mean(x, s, images, pool)
            return type("Output", (), {"sample": (x - mean) / s[:, None, None, None]})()

    family.model = Bayes()
    loss = family.adapter_loss(images, pool, torch.Generator().manual_seed(0))
    assert loss.shape == (4,)
    assert loss.max() < 1e-6


def test_a_perfect_velocity_field_samples_the_data():
    """With v = ε - x0 known exactly for one data point, Euler steps must end on that point."""
    family = tiny_family()
    target = torch.linspace(-0.9, 0.9, 784).view(1, 1, 28, 28)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            s = (t / 1000).view(-1, 1, 1, 1)
            return type("Output", (), {"sample": (x - target) / s})()

    images = family.sample(4, seed=0, steps=10, model=Oracle())
    torch.testing.assert_close(images, target.expand(4, -1, -1, -1), rtol=0, atol=1e-4)


def test_sampling_repeats_itself_and_differs_by_seed():
    family = tiny_family()
    first = family.sample(3, seed=1, steps=2, batch_size=2)
    assert torch.equal(first, family.sample(3, seed=1, steps=2, batch_size=2))
    assert not torch.equal(first, family.sample(3, seed=2, steps=2, batch_size=2))
    assert first.shape == (3, 1, 28, 28)
    assert first.abs().max() <= 1


def test_sites_are_adaptable_and_cover_residual_and_attention_blocks():
    family = tiny_family()
    sites = describe_sites(family.model, family.sites())
    names = " ".join(s.name for s in sites)
    assert all(part in names for part in ("conv1", "conv2", "time_emb_proj", "to_q", "to_out.0"))
    assert {s.kernel for s in sites} == {(), (1, 1), (3, 3)}
