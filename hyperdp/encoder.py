"""The encoder φ: one record → one embedding, without a look at another record of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the encoder.

    Attributes:
        image_shape: (C, H, W) of a record.
        embed_dim: k.
        widths: channels of the convolution stages; each halves the image.
        hidden: width of the layer before the embedding.
    """

    image_shape: tuple[int, int, int]
    embed_dim: int
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 256


class Encoder(nn.Module):
    """Convolutions with group norm (per record), a flatten that keeps place, two linear layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.image_shape
        layers: list[nn.Module] = []
        for stage in config.widths:
            layers += [
                nn.Conv2d(channels, stage, 3, stride=2, padding=1),
                nn.GroupNorm(8, stage),
                nn.SiLU(),
                nn.Conv2d(stage, stage, 3, padding=1),
                nn.GroupNorm(8, stage),
                nn.SiLU(),
            ]  # fmt: skip
            channels, height, width = stage, (height + 1) // 2, (width + 1) // 2
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * height * width, config.hidden)
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds records.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].

        Returns:
            float32 [B, k], before clipping; norms are of the order of 1.
        """
        features = self.norm(functional.silu(self.hidden(self.trunk(images).flatten(1))))
        embeddings: Tensor = self.head(features) * (2.0 / math.sqrt(self.config.embed_dim))
        return embeddings


def clip(embeddings: Tensor, clip_norm: float) -> Tensor:
    """Clip to e · min(1, C / ‖e‖), float32 [..., k]: training's twin of the lattice clip."""
    norms = embeddings.norm(dim=-1, keepdim=True)
    scale = clip_norm / norms.clamp(min=torch.finfo(torch.float32).tiny)
    clipped: Tensor = embeddings * scale.clamp(max=1.0)
    return clipped
