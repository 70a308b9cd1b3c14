"""Base-model families behind one small interface: loss, sampling, LoRA sites.

A family wraps stock `diffusers` classes and adds no weights of its own, so that a base saved here
loads with `diffusers` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from hyperdp.compute import device_of
from hyperdp.draws import normal, uniform
from hyperdp.noising import Noising

Progress = Callable[[int, int], None]
HIGH_TIMES = 0.5  # share of an adapter's training times that fall where content is decided


class Family(Protocol):
    """What the rest of hyperdp needs to know of a base model.

    Images may lie on any device: times and noise are drawn where the images are, so that those on
    the CPU have the same ones whatever computes; losses are where the network is, and what is
    sampled is on the CPU.

    Attributes:
        name: a key of `hyperdp.families.FAMILIES`.
        part: the folder of the network within the base's own: `unet` or `transformer`.
        lora_part: what the network is called in the stock pipeline whose `load_lora_weights` reads
            adapters, or "" where there is none.
        needs_pool: whether `adapter_loss` looks at its pool.
        model: the network that takes LoRA weights.
        scheduler: the diffusers scheduler that it is sampled with.
    """

    name: str
    part: ClassVar[str]
    lora_part: ClassVar[str]
    needs_pool: ClassVar[bool]
    model: nn.Module
    scheduler: Any

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a record."""

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the noise of one record: the image's, or that of its latents."""

    def prepare_training(self) -> None:
        """Readies the base for training adapters or its own weights."""

    def to(self, device: torch.device) -> None:
        """Moves every network of the base."""

    def loss(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        """Per-record training loss, float32 [B]."""

    def adapter_loss(self, images: Tensor, pool: Tensor, rng: torch.Generator | None) -> Tensor:
        """Per-record loss that adapters are trained with, [G, b, …] and [G, K, …] → [G·b]."""

    def loss_at(self, images: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The training loss at given times [B] in (0, 1) and noise [B, c, h, w], float32 [B]."""

    def response(self, model: nn.Module) -> Tensor:
        """What a network, with or without an adapter, answers to fixed public noise."""

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
        """Images float32 [count, C, H, W] in [-1, 1]."""

    def sites(self) -> list[str]:
        """Names of the modules that take LoRA weights, in the order of the model."""

    def save(self, folder: Path) -> None:
        """Writes model and scheduler with `save_pretrained`."""


def plain_attention(model: nn.Module) -> None:
    """Trades the attention kernel for one with a cheaper backward pass on CPU.

    The weights and, up to rounding, the function stay; sampling keeps the stock kernel, so that
    its images are bit for bit what `diffusers` alone draws.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def residual_sites(model: nn.Module) -> list[str]:
    """Convolutions and time projections of residual blocks, and attention projections."""
    names = []
    for name, module in model.named_modules():
        inside = ".resnets." in name or ".attentions." in name
        if inside and isinstance(module, nn.Conv2d | nn.Linear):
            names.append(name)
    return names


class UNetFlow:
    """An unconditional `UNet2DModel` trained by flow matching (Lipman et al. 2023, 2210.02747).

    x_s = (1 - s) x_0 + s ε, the model predicts v = ε - x_0 at timestep T s; s is logit-normal
    in training (Esser et al. 2024, arXiv 2403.03206). It is sampled with
    `FlowMatchEulerDiscreteScheduler`.
    """

    name = "unet-flow"
    part: ClassVar[str] = "unet"
    lora_part: ClassVar[str] = ""
    needs_pool: ClassVar[bool] = True

    def __init__(self, model: UNet2DModel, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.model: nn.Module = model
        self.scheduler = scheduler
        self.steps = Noising(scheduler).steps  # T
        config: Any = model.config
        size = int(config.sample_size)
        self.image_shape = (int(config.in_channels), size, size)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, H, W): it works in pixels."""
        return self.image_shape

    def prepare_training(self) -> None:
        """See `plain_attention`."""
        plain_attention(self.model)

    def to(self, device: torch.device) -> None:
        """Moves the network."""
        self.model.to(device)

    @classmethod
    def create(cls, **unet_config: Any) -> UNetFlow:
        """A freshly initialised base; `unet_config` goes to `UNet2DModel`."""
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        return cls(UNet2DModel(**unet_config), scheduler)

    @classmethod
    def load(cls, folder: Path) -> UNetFlow:
        """Loads `folder/unet` and `folder/scheduler`, weights as float32."""
        model = UNet2DModel.from_pretrained(
            folder / "unet", torch_dtype=torch.float32, use_safetensors=True
        )
        return cls(
            model.eval(), FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        )

    def save(self, folder: Path) -> None:
        """Writes `folder/unet` and `folder/scheduler`."""
        model: Any = self.model
        model.save_pretrained(folder / "unet", safe_serialization=True)
        self.scheduler.save_pretrained(folder / "scheduler")

    def loss(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        """Flow-matching loss of each record.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].
            rng: CPU generator of times and noise; None for the device's own.

        Returns:
            float32 [B], mean squared error over pixels.
        """
        s = torch.sigmoid(normal((len(images),), rng, images.device))  # [B]
        noise = normal(images.shape, rng, images.device)
        return self.loss_at(images, s, noise)

    def adapter_loss(self, images: Tensor, pool: Tensor, rng: torch.Generator | None) -> Tensor:
        """Flow-matching loss for training adapters: more of it where content is decided.

        Two glyphs are hard to tell apart only above s = 0.8, where the plain times hardly ever
        fall, so half of the times come from around 0.88. There the target is the posterior mean
        over records of the same dataset instead of the one record drawn, which has the same
        expectation and less variance (stable target field, Xu et al. 2023, arXiv 2302.00670).

        Args:
            images: float32 [G, b, C, H, W], records of G datasets.
            pool: float32 [G, K, C, H, W], records of the same datasets.
            rng: CPU generator of times and noise; None for the device's own.

        Returns:
            float32 [G·b].
        """
        groups, count = images.shape[:2]
        drawn_on, device = images.device, device_of(self.model)
        high = uniform((groups * count,), rng, drawn_on) < HIGH_TIMES
        gauss = normal((groups * count,), rng, drawn_on)
        s = torch.sigmoid(torch.where(high, 2.0 + 0.8 * gauss, gauss)).clamp(max=0.999)  # [G·b]
        noise = normal(images.shape, rng, drawn_on).flatten(0, 1)
        images, pool, s, noise = (part.to(device) for part in (images, pool, s, noise))
        w = s[:, None, None, None]
        noisy = (1 - w) * images.flatten(0, 1) + w * noise  # [G·b, C, H, W]
        with torch.autocast(device.type, enabled=False):  # distances need their digits
            target = (noisy - self._posterior_mean(noisy, s, images, pool)) / w
        velocity: Tensor = self.model(noisy, s * self.steps).sample.float()
        return (velocity - target).square().mean((1, 2, 3))

    @staticmethod
    def _posterior_mean(noisy: Tensor, s: Tensor, images: Tensor, pool: Tensor) -> Tensor:
        """E[x0 | x_s] over the drawn records and their pool, all alike probable beforehand."""
        groups, count = images.shape[:2]
        known = torch.cat([images, pool], 1).flatten(2)  # [G, b + K, P]
        level = s.view(groups, count, 1)
        x = noisy.view(groups, count, -1)
        # A record's own companions in `images` are records of its dataset too.
        square = (
            x.square().sum(2, keepdim=True)
            - 2 * (1 - level) * (x @ known.transpose(1, 2))
            + (1 - level).square() * known.square().sum(2)[:, None]
        )
        weight = torch.softmax(-square / (2 * level.square()), dim=2)  # [G, b, b + K]
        return (weight @ known).view_as(noisy)

    def loss_at(self, images: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The same loss at given times `s` [B] in (0, 1) and noise [B, C, H, W]."""
        device = device_of(self.model)
        images, noise, s = images.to(device), noise.to(device), s.to(device)
        w = s[:, None, None, None]
        noisy = (1 - w) * images + w * noise
        velocity: Tensor = self.model(noisy, s * self.steps).sample.float()  # [B, C, H, W]
        return (velocity - (noise - images)).square().mean((1, 2, 3))

    @torch.no_grad()
    def response(self, model: nn.Module) -> Tensor:
        """What a network answers to fixed public noise; tells whether two are the same.

        Args:
            model: the base, with or without an adapter in it.
        """
        noise = torch.randn(2, *self.image_shape, generator=torch.Generator().manual_seed(0))
        device = device_of(model)
        answer: Tensor = model(noise.to(device), torch.tensor([300.0, 900.0], device=device)).sample
        return answer.cpu()

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
            seed: of the starting noise, drawn on the CPU; public, it protects nothing.
            steps: Euler steps.
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
            x = torch.randn((min(batch_size, count - start), *self.image_shape), generator=rng).to(
                device
            )
            self.scheduler.set_timesteps(steps)
            for t in self.scheduler.timesteps:
                # The scheduler hands images back in the network's precision: bfloat16 would round
                # them at every step.
                velocity = network(x, t).sample.float()
                x = self.scheduler.step(velocity, t, x, return_dict=False)[0]
            batches.append(x.clamp(-1, 1).cpu())
            if progress is not None:
                progress(min(start + batch_size, count), count)
        return torch.cat(batches)

    def sites(self) -> list[str]:
        """See `residual_sites`."""
        return residual_sites(self.model)
