"""Unconditional bases of diffusers with any scheduler: UNet2D, and DiT without its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor, nn

from hyperdp.denoiser import Denoiser
from hyperdp.family import residual_sites
from hyperdp.latents import Latents
from hyperdp.schedulers import load_scheduler


class UNetDiffusion(Denoiser):
    """An unconditional `UNet2DModel` with a discrete-time scheduler, as `DDPMPipeline` holds it."""

    name = "unet-diffusion"

    @classmethod
    def create(cls, **unet_config: Any) -> UNetDiffusion:
        """A freshly initialised base; `unet_config` goes to `UNet2DModel`."""
        return cls._of(UNet2DModel(**unet_config), DDIMScheduler())

    @classmethod
    def load(cls, folder: Path) -> UNetDiffusion:
        """Loads `folder/unet`, `folder/scheduler` and, if there is one, `folder/vae`."""
        model = UNet2DModel.from_pretrained(
            folder / "unet", torch_dtype=torch.float32, use_safetensors=True
        )
        return cls._of(model.eval(), load_scheduler(folder), folder)

    @classmethod
    def _of(cls, model: Any, scheduler: Any, folder: Path | None = None) -> UNetDiffusion:
        return cls(model, scheduler, Latents.of(model, folder))

    def predict(self, network: nn.Module, noisy: Tensor, t: Tensor) -> Tensor:
        """The network's answer, float32 [B, C, H, W]."""
        answer: Tensor = network(noisy, t).sample
        return answer[:, : noisy.shape[1]]  # what follows is a learned variance

    def sites(self) -> list[str]:
        """See `residual_sites`."""
        return residual_sites(self.model)


class DiT(Denoiser):
    """A `DiTTransformer2DModel` (Peebles & Xie 2023, arXiv 2212.09748), always asked without class.

    In pixels, or in the latents of `folder/vae`; trained by whatever process its scheduler has.
    """

    name = "dit"
    part: ClassVar[str] = "transformer"

    @classmethod
    def create(cls, **dit_config: Any) -> DiT:
        """A freshly initialised base in pixels; `dit_config` goes to `DiTTransformer2DModel`."""
        one_class = {"num_embeds_ada_norm": 1, **dit_config}
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        return cls._of(DiTTransformer2DModel(**one_class), scheduler, None)

    @classmethod
    def load(cls, folder: Path) -> DiT:
        """Loads `folder/transformer`, `folder/scheduler` and, if there is one, `folder/vae`."""
        model = DiTTransformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32, use_safetensors=True
        )
        return cls._of(model.eval(), load_scheduler(folder), folder)

    @classmethod
    def _of(cls, model: Any, scheduler: Any, folder: Path | None) -> DiT:
        return cls(model, scheduler, Latents.of(model, folder))

    def predict(self, network: nn.Module, noisy: Tensor, t: Tensor) -> Tensor:
        """The network's answer to the class that stands for none, float32 [B, c, h, w]."""
        config: Any = self.model.config
        none = torch.full((len(noisy),), int(config.num_embeds_ada_norm), device=noisy.device)
        answer: Tensor = network(noisy, timestep=t, class_labels=none).sample
        return answer[:, : noisy.shape[1]]  # what follows is a learned variance

    def sites(self) -> list[str]:
        """Attention projections and the two linear layers of each block's MLP."""
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and (".attn1." in name or ".ff.net." in name)
        ]
