"""What all base models with a stock scheduler share: loss, sampling, saving."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hyperdp.compute import device_of
from hyperdp.draws import normal
from hyperdp.family import Progress, plain_attention
from hyperdp.latents import Latents
from hyperdp.noising import Noising


class Denoiser:
    """A network, its scheduler, and the space that it works in.

    Subclasses say how the network is asked (`predict`) and where LoRA goes (`sites`).

    Args:
        model: the network, of a diffusers class.
        scheduler: any diffusers scheduler that the network can be sampled with.
        latents: pixels, or an autoencoder's latents.
    """

    name: str
    part: ClassVar[str] = "unet"
    lora_part: ClassVar[str] = ""
    needs_pool: ClassVar[bool] = False

    def __init__(self, model: nn.Module, scheduler: Any, latents: Latents) -> None:
        self.model, self.scheduler, self.latents = model, scheduler, latents
        self.noising = Noising(scheduler)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a record."""
        return self.latents.image_shape

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the noise of one record."""
        return self.latents.shape

    def predict(self, network: nn.Module, noisy: Tensor, t: Tensor) -> Tensor:
        """The network's answer, float32 [B, c, h, w]; a learned variance is left out."""
        raise NotImplementedError

    def sites(self) -> list[str]:
        """Names of the modules that take LoRA weights, in the order of the model."""
        raise NotImplementedError

    def prepare_training(self) -> None:
        """See `plain_attention`."""
        plain_attention(self.model)

    def to(self, device: torch.device) -> None:
        """Moves every network of the base."""
        self.model.to(device)
        self.latents.to(device)

    def save(self, folder: Path) -> None:
        """Writes the network, `scheduler/` and, if there is one, `vae/`."""
        model: Any = self.model
        model.save_pretrained(folder / self.part, safe_serialization=True)
        self.scheduler.save_pretrained(folder / "scheduler")
        self.latents.save(folder)

    def loss(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        """The loss that the network was trained with.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].
            rng: CPU generator of times, noise and latents.

        Returns:
            float32 [B], mean squared error over the numbers of a record's latents.
        """
        return self._drawn_loss(images, rng)

    def adapter_loss(self, images: Tensor, pool: Tensor, rng: torch.Generator | None) -> Tensor:
        """The same loss of records of G datasets, [G, b, C, H, W] → [G·b]; `pool` is not needed."""
        return self.loss(images.flatten(0, 1), rng)

    def loss_at(self, images: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The same loss at given times `s` [B] in (0, 1) and noise [B, c, h, w]."""
        device = device_of(self.model)
        images, s, noise = images.to(device), s.to(device), noise.to(device)
        return self._loss(self.latents.encode(images), s, noise)

    def _drawn_loss(self, images: Tensor, rng: torch.Generator | None, **asked: Any) -> Tensor:
        if rng is None and self.latents.vae is not None:
            raise ValueError("latents are drawn by a generator: give one")
        s = self.noising.times(len(images), rng, images.device)
        noise = normal((len(images), *self.noise_shape), rng, images.device)
        device = device_of(self.model)
        clean = self.latents.encode(images.to(device), rng)
        return self._loss(clean, s.to(device), noise.to(device), **asked)

    def _loss(self, clean: Tensor, s: Tensor, noise: Tensor, **asked: Any) -> Tensor:
        noisy, t, target = self.noising.at(clean, s, noise)
        answer = self.predict(self.model, noisy, t, **asked).float()
        return (answer - target).square().mean((1, 2, 3))

    @torch.no_grad()
    def response(self, model: nn.Module) -> Tensor:
        """What a network answers to fixed public noise; tells whether two are the same.

        Args:
            model: the base, with or without an adapter in it.
        """
        noise = torch.randn(2, *self.noise_shape, generator=torch.Generator().manual_seed(0))
        device = device_of(model)
        times = torch.tensor([300, 900], device=device)
        return self.predict(model, noise.to(device), times).cpu()

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        seed: int,
        steps: int = 24,
        batch_size: int = 100,
        model: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draws images with the stock scheduler.

        Args:
            count: number of images.
            seed: of the starting noise and of the scheduler's own, drawn on the CPU; public.
            steps: of the scheduler.
            batch_size: images at once; part of the result's identity bit for bit.
            model: the base with an adapter in it; the base itself when None.
            progress: called with (images done, count).

        Returns:
            float32 [count, C, H, W] in [-1, 1].
        """
        network = self.model if model is None else model
        rng = torch.Generator().manual_seed(seed)
        device = next(network.parameters()).device
        batches = []
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            noise = torch.randn((size, *self.noise_shape), generator=rng).to(device)
            batches.append(self._draw(network, noise, steps, rng).clamp(-1, 1).float().cpu())
            if progress is not None:
                progress(start + size, count)
        return torch.cat(batches) if batches else torch.empty(0, *self.image_shape)

    def _draw(self, network: nn.Module, x: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        """Images of one batch of starting noise [b, c, h, w]."""
        scheduler = copy.deepcopy(self.scheduler)  # it counts its steps
        scheduler.set_timesteps(steps)
        extra = {"generator": rng} if self._draws_noise(scheduler) else {}
        scaled = not self.noising.flow
        x = x * scheduler.init_noise_sigma if scaled else x
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if scaled else x
            answer = self.predict(network, seen, t.expand(len(x)).to(x.device))
            x = scheduler.step(answer.float(), t, x, **extra).prev_sample
        return self.latents.decode(x)

    @staticmethod
    def _draws_noise(scheduler: Any) -> bool:
        return "generator" in inspect.signature(scheduler.step).parameters
