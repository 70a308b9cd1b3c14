"""The wide residual network of De et al. 2022 (arXiv 2204.13650), and its small form for a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.errors import UsageError

_VARIANCE_FLOOR = 1e-4  # of fan_in · var, as in the paper's code


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network; the defaults are WRN-16-4 as written.

    Attributes:
        image_shape: [C, H, W] of an image.
        classes: L.
        stem_width: channels of the first convolution. stem_stride: its stride.
        widths: channels of each stage. strides: of the first convolution of each stage.
        blocks: residual blocks of a stage, of two convolutions each; (depth − 4) / 6.
        groups: of the group norm; the greatest divisor of both it and the channels is taken.
        group_norm: an ingredient; without it there is no normalisation of activations at all.
        weight_standardisation: an ingredient; without it plain convolutions.
        relu_before_norm: an ingredient, ReLU → norm → convolution; otherwise norm → ReLU.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    stem_width: int = 16
    stem_stride: int = 1
    widths: tuple[int, ...] = (64, 128, 256)
    strides: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    groups: int = 16
    group_norm: bool = True
    weight_standardisation: bool = True
    relu_before_norm: bool = True

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.strides):
            raise UsageError(
                expected="a stride for each stage",
                found=f"widths={self.widths}, strides={self.strides}",
                todo="Give both the same length.",
            )


def wide_resnet(
    depth: int, width: int, *, image_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> NetworkConfig:
    """WRN-depth-width as the paper writes it.

    Args:
        depth: 6 · blocks + 4, such as 16, 28 or 40.
        width: factor on the channels 16, 32, 64 of the stages.
        image_shape: [C, H, W].
        classes: L.

    Raises:
        UsageError: another depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UsageError(
            expected="depth = 6 · blocks + 4: 10, 16, 22, 28, 40 …",
            found=f"depth={depth}",
            todo="Take one of these.",
        )
    widths = (16 * width, 32 * width, 64 * width)
    return NetworkConfig(
        image_shape=image_shape, classes=classes, widths=widths, blocks=(depth - 4) // 6
    )


class WSConv2d(nn.Conv2d):
    """Convolution with scaled weight standardisation and gain (Brock et al. 2021, 2101.08692).

    ŵ = (w − mean) · gain / √max(fan_in · var, 10⁻⁴), over each output channel.
    """

    def __init__(self, channels: int, out: int, size: int, stride: int) -> None:
        super().__init__(channels, out, size, stride=stride, padding=size // 2)
        self.gain = nn.Parameter(torch.ones(out))

    def standardised(self) -> Tensor:
        """ŵ, float [out, in, h, w]."""
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        fan_in = self.weight[0].numel()
        scale = torch.rsqrt((fan_in * var).clamp(min=_VARIANCE_FLOOR))
        return (self.weight - mean) * scale * self.gain[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with ŵ: [B, in, H, W] → [B, out, H/s, W/s]."""
        return functional.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


class _Act(nn.Module):
    """ReLU and group norm, in the order that the configuration asks for."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        groups = math.gcd(config.groups, channels)
        self.norm = nn.GroupNorm(groups, channels) if config.group_norm else nn.Identity()
        self.relu_first = config.relu_before_norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        y = self.norm(functional.relu(x)) if self.relu_first else functional.relu(self.norm(x))
        return y


def _conv(config: NetworkConfig, channels: int, out: int, size: int, stride: int) -> nn.Conv2d:
    if config.weight_standardisation:
        conv: nn.Conv2d = WSConv2d(channels, out, size, stride)
    else:
        conv = nn.Conv2d(channels, out, size, stride=stride, padding=size // 2)
    # Fan-in scaling 1, as in the paper's code; torch's own default is a third of it.
    nn.init.normal_(conv.weight, std=(channels * size * size) ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class _Block(nn.Module):
    """Two of (act, convolution) beside a skip, which has both of its own at a stage's entry."""

    def __init__(
        self, config: NetworkConfig, channels: int, out: int, stride: int, *, entry: bool
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Act(config, channels),
            _conv(config, channels, out, 3, stride),
            _Act(config, out),
            _conv(config, out, out, 3, 1),
        )
        self.skip = (
            nn.Sequential(_Act(config, channels), _conv(config, channels, out, 1, stride))
            if entry
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.skip(x)
        return y


class WideResNet(nn.Module):
    """The network; an image's logits depend on that image alone (no batch norm, no dropout).

    Args:
        config: see `NetworkConfig`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _conv(config, config.image_shape[0], config.stem_width, 3, config.stem_stride)
        stages = []
        for (channels, out), stride in zip(
            pairwise((config.stem_width, *config.widths)), config.strides, strict=True
        ):
            stages += [_Block(config, channels, out, stride, entry=True)]
            stages += [_Block(config, out, out, 1, entry=False) for _ in range(config.blocks - 1)]
        self.stages = nn.Sequential(*stages)
        last = config.widths[-1] if config.widths else config.stem_width
        self.final = _Act(config, last)
        self.head = nn.Linear(last, config.classes)
        nn.init.normal_(self.head.weight, std=last**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: float32 [B, C, H, W] in [-1, 1] → [B, L]."""
        x = self.final(self.stages(self.stem(images)))  # [B, width, h, w]
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
