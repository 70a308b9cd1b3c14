"""A small world for tests: base, encoder and hypernetwork of toy size, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from hyperdp.bundle import Bundle, BundleConfig, save_bundle
from hyperdp.encoder import Encoder, EncoderConfig
from hyperdp.family import UNetFlow
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites

TINY_UNET = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def tiny_family(seed: int = 0) -> UNetFlow:
    torch.manual_seed(seed)
    family = UNetFlow.create(**TINY_UNET)
    family.model.eval().requires_grad_(False)
    return family


def tiny_hypernetwork(family: UNetFlow, embed_dim: int = 8, *, awake: bool = True) -> Hypernetwork:
    """A hypernetwork whose heads are not zero any more, so that its adapters do something."""
    torch.manual_seed(1)
    sites = describe_sites(family.model, family.sites())
    config = HypernetworkConfig(
        embed_dim=embed_dim, rank=3, basis=8, width=16, depth=1, bottleneck=8
    )
    hypernetwork = Hypernetwork(config, sites)
    if awake:
        torch.nn.init.normal_(hypernetwork.head.weight, std=0.3)
    return hypernetwork.eval().requires_grad_(False)


def tiny_encoder(embed_dim: int = 8) -> Encoder:
    torch.manual_seed(2)
    config = EncoderConfig(image_shape=(1, 28, 28), embed_dim=embed_dim, widths=(8, 16), hidden=16)
    return Encoder(config).eval().requires_grad_(False)


def tiny_bundle(folder: Path, embed_dim: int = 8, *, name: str = "tiny") -> Bundle:
    family = tiny_family()
    encoder, hypernetwork = tiny_encoder(embed_dim), tiny_hypernetwork(family, embed_dim)
    config = BundleConfig(
        name=name,
        family=family.name,
        embed_dim=embed_dim,
        clip_norm=1.0,
        image_shape=(1, 28, 28),
        sites=family.sites(),
        encoder={
            "image_shape": [1, 28, 28],
            "embed_dim": embed_dim,
            "widths": [8, 16],
            "hidden": 16,
        },
        hypernetwork={
            "embed_dim": embed_dim, "rank": 3, "basis": 8, "width": 16, "depth": 1, "bottleneck": 8,
        },
        public_mean=[0.1] * embed_dim,
        other_task_mean=[-0.1] * embed_dim,
        sampling_steps=3,
    )  # fmt: skip
    return save_bundle(
        folder,
        config,
        encoder=encoder,
        hypernetwork=hypernetwork,
        base=family,
        training={"recipe": "a test"},
    )
