"""The flow-matching family: its loss by hand, its sampler repeatable, its sites adaptable."""

from __future__ import annotations

import torch
from torch import nn

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
