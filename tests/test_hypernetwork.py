"""The hypernetwork: zero at the start, a function of each task alone, awake to all it is told."""

from __future__ import annotations

import torch

from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, describe_sites
from tests.worlds import tiny_family, tiny_hypernetwork


def test_delta_w_is_zero_at_the_start():
    family = tiny_family()
    hypernetwork = Hypernetwork(
        HypernetworkConfig(embed_dim=8, width=16, depth=1, bottleneck=8),
        describe_sites(family.model, family.sites()),
    )
    weights = hypernetwork(torch.randn(2, 8), torch.tensor([0.01, 0.1]))
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([10.0, 900.0])
    with torch.no_grad():
        before = family.model(x, t).sample
        with adapters(family.model, weights):
            assert torch.equal(family.model(x, t).sample, before)
    # ... and yet the heads have a gradient, so that it does not stay there.
    with adapters(family.model, weights):
        family.model(x, t).sample.square().mean().backward()
    assert hypernetwork.head.weight.grad.abs().max() > 0


def test_emitted_shapes_fit_the_sites():
    family = tiny_family()
    weights = tiny_hypernetwork(family)(torch.zeros(5, 8), torch.full((5,), 0.01))
    for site in describe_sites(family.model, family.sites()):
        a, b = weights[site.name]
        assert a.shape == (1, 3, *site.a_shape)
        assert b.shape == (5, site.out_features, 3)


def test_a_task_does_not_see_its_neighbours():
    hypernetwork = tiny_hypernetwork(tiny_family())
    mean, noise = torch.randn(4, 8), torch.tensor([0.001, 0.01, 0.1, 0.2])
    together = hypernetwork(mean, noise)
    alone = hypernetwork(mean[2:3], noise[2:3])
    for name in together:
        torch.testing.assert_close(together[name][1][2:3], alone[name][1], rtol=0, atol=1e-6)


def test_embedding_and_noise_level_both_reach_the_adapter():
    hypernetwork = tiny_hypernetwork(tiny_family())
    mean, noise = torch.randn(1, 8), torch.tensor([0.01])
    name = next(iter(hypernetwork(mean, noise)))
    b = hypernetwork(mean, noise)[name][1]
    assert (hypernetwork(mean + 0.5, noise)[name][1] - b).abs().max() > 1e-3
    assert (hypernetwork(mean, noise * 10)[name][1] - b).abs().max() > 1e-3
