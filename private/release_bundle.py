"""What a release needs of a bundle: any object of this shape will do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


class ImageConfig(Protocol):
    """What a release needs to know of an image bundle's configuration."""

    @property
    def embed_dim(self) -> int:
        """The number k of coordinates of an embedding."""

    @property
    def clip_norm(self) -> float:
        """The clip norm C, in the embedding's units."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a record's image."""


@runtime_checkable
class TextConfig(Protocol):
    """What a release needs to know of a text bundle's configuration."""

    @property
    def embed_dim(self) -> int:
        """The number k of coordinates of an embedding."""

    @property
    def clip_norm(self) -> float:
        """The clip norm C, in the embedding's units."""

    @property
    def text_length(self) -> int:
        """The number L of tokens of a record."""

    @property
    def vocab_size(self) -> int:
        """The number V of token ids."""


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
        """Records → embeddings float32 [B, k].

        Images are float32 [B, C, H, W] in [-1, 1]; texts are int64 [B, L], negative after the end.
        """

    @property
    def config(self) -> ImageConfig | TextConfig:
        """Which of the two it is says what the records are."""
