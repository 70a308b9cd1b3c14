"""The space that a base model works in: pixels, or the latents of a frozen `AutoencoderKL`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class Latents:
    """Images to latents and back; without an autoencoder both are the same.

    Args:
        vae: a frozen `AutoencoderKL`, or None.
        channels, size: of what the network sees.
    """

    def __init__(self, vae: Any | None, channels: int, size: int) -> None:
        # Never trained, yet not marked so: kernels, and so the last bit, depend on that mark, which
        # the stock pipeline does not set.
        self.vae = None if vae is None else vae.eval()
        self.shape = (channels, size, size)
        if vae is None:
            self.image_shape = self.shape
            return
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_shape = (int(vae.config.in_channels), size * factor, size * factor)

    @classmethod
    def load(cls, folder: Path, channels: int, size: int) -> Latents:
        """With the autoencoder in `folder/vae`, float32, if there is one."""
        if not (folder / "vae").is_dir():
            return cls(None, channels, size)
        vae = AutoencoderKL.from_pretrained(
            folder / "vae", torch_dtype=torch.float32, use_safetensors=True
        )
        return cls(vae, channels, size)

    @classmethod
    def of(cls, model: Any, folder: Path | None) -> Latents:
        """The space of an unconditional network; pixels where no folder is named."""
        channels, size = int(model.config.in_channels), int(model.config.sample_size)
        return cls(None, channels, size) if folder is None else cls.load(folder, channels, size)

    @torch.no_grad()
    def encode(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents of images.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].
            rng: CPU generator of a draw from the posterior; its mode when None.

        Returns:
            float32 [B, c, h, w], scaled as the network was trained on them.
        """
        if self.vae is None:
            return images
        posterior = self.vae.encode(images).latent_dist
        drawn: Tensor = posterior.mode() if rng is None else posterior.sample(generator=rng)
        scaled: Tensor = drawn * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """float32 [B, C, H, W] of latents, about [-1, 1]."""
        if self.vae is None:
            return latents
        images: Tensor = self.vae.decode(1 / self.vae.config.scaling_factor * latents).sample
        return images

    def to(self, device: torch.device) -> None:
        """Moves the autoencoder."""
        if self.vae is not None:
            self.vae.to(device)

    def save(self, folder: Path) -> None:
        """Writes `folder/vae`, if there is an autoencoder."""
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae", safe_serialization=True)
