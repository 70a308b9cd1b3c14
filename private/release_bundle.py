"""What a release needs of a bundle: any object of this shape will do."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class BundleConfig(Protocol):
    """What a release needs to know of a bundle's configuration."""

    @property
    def embed_dim(self) -> int:
        """The number k of coordinates of an embedding."""

    @property
    def clip_norm(self) -> float:
        """The clip norm C, in the embedding's units."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a record's image."""


class ReleaseBundle(Protocol):
    """What a release needs of a bundle: a public encoder, and what names it."""

    @property
    def name(self) -> str:
        """Name of the bundle."""

    @property
    def hash(self) -> str:
        """SHA-256 of the bundle, hex."""

    @property
    def encoder(self) -> nn.Module:
        """Images float32 [B, C, H, W] in [-1, 1] → embeddings float32 [B, k]."""

    @property
    def config(self) -> BundleConfig:
        """See `BundleConfig`."""
