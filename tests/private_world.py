"""A small private world for tests: an encoder, a bundle of it, and records that nobody owns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyperdp.private.records import Record

SHAPE = (1, 12, 12)
DIM = 8


@pytest.fixture(autouse=True)
def own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own config folder, hence its own keys and anchors."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))


@dataclass(frozen=True)
class TinyConfig:
    embed_dim: int = DIM
    clip_norm: float = 1.0
    image_shape: tuple[int, int, int] = SHAPE


def tiny_encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.Conv2d(6, 12, 3),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, DIM),
    )


@dataclass
class TinyBundle:
    name: str = "tiny"
    hash: str = "ab" * 32
    encoder: nn.Module = field(default_factory=tiny_encoder)
    config: TinyConfig = TinyConfig()


def images(n: int, seed: int = 0) -> np.ndarray:
    """float32 [n, C, H, W]"""
    return np.random.default_rng(seed).uniform(-1, 1, (n, *SHAPE)).astype(np.float32)


def records(n: int, *, classes: int = 0, users: int = 0, seed: int = 0) -> list[Record]:
    return [
        Record(
            image=image,
            label=str(i % classes) if classes else None,
            unit=f"user-{i % users}" if users else None,
        )
        for i, image in enumerate(images(n, seed))
    ]
