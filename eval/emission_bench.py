"""`hyperdp bench emission`: an adapter for all attention sites of the Stable Diffusion 1.5 layout.

The UNet is built on the meta device: its shapes without its weights, which no timing here needs.
The hypernetwork is real, with random weights, and the PEFT directory is written to disk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from hyperdp.eval.engine_rows import Figure, write_engine_rows
from hyperdp.eval.results import Row
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites, pick, save_peft
from hyperdp.stable_diffusion import attention_sites

BENCH = "emission"
MOST_SECONDS, MOST_PARAMETERS = 1.0, 80_000_000
SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@dataclass(frozen=True, kw_only=True)
class EmissionConfig:
    """What is timed: k, the rank, and how often."""

    embed_dim: int = 64
    rank: int = 4
    repeats: int = 5


def sd15_unet() -> nn.Module:
    """The UNet of Stable Diffusion 1.5 on the meta device."""
    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(**SD15_UNET)
    return unet


def sd15_hypernetwork(config: EmissionConfig) -> Hypernetwork:
    """A hypernetwork for all its attention sites, with random weights."""
    unet = sd15_unet()
    sites = describe_sites(unet, attention_sites(unet))
    torch.manual_seed(0)
    hyper = Hypernetwork(
        HypernetworkConfig(embed_dim=config.embed_dim, rank=config.rank), sites
    ).eval()
    nn.init.normal_(hyper.head.weight, std=0.02)
    return hyper


def run_emission(config: EmissionConfig, path: Path) -> list[Row]:
    """Times emission and appends the rows.

    Returns:
        `seconds` from z to an adapter, and to an adapter on disk (medians, of the clock);
        `parameters` of the hypernetwork; `adapter_numbers`.
    """
    begin = time.monotonic()
    hyper = sd15_hypernetwork(config)
    mean = torch.randn(1, config.embed_dim, generator=torch.Generator().manual_seed(0)) * 0.1
    level = torch.full((1,), 0.01)
    emitted, written, numbers = [], [], 0
    for turn in range(config.repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            weights = pick(hyper(mean, level), 0)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            save_peft(weights, Path(folder), base_name="sd15", pipeline_part="unet")
            end = time.perf_counter()
        numbers = sum(a.numel() + b.numel() for a, b in weights.values())
        if turn:
            emitted.append(middle - start)
            written.append(end - start)
    size = f"r={config.rank} k={config.embed_dim}"
    parameters = sum(p.numel() for p in hyper.parameters())
    figures: list[Figure] = [
        ("seconds", f"adapter {size}", None, statistics.median(emitted)),
        ("seconds", f"adapter on disk {size}", None, statistics.median(written)),
        ("parameters", f"hypernetwork {size}", None, float(parameters)),
        ("adapter_numbers", f"adapter {size}", None, float(numbers)),
    ]
    return write_engine_rows(
        path, figures, bench=BENCH, base="stable-diffusion-1.5 layout", private_set="none",
        begin=begin,
    )  # fmt: skip
