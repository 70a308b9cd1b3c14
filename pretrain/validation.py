"""The validation line of hypernetwork training, with the two controls beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperdp.encoder import Encoder, clip
from hyperdp.family import Family
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.world import World


class Validation:
    """The validation line: loss on held-out tasks under ρ(z) and under the two controls.

    Args:
        world: public data; its held-out split gives the tasks.
        base: the frozen base model.
        encoder: φ.
        hyper: ρ.
        mix: how often each kind of task is drawn.
        support: records behind each mean embedding.
        clip_norm: C.
        lowest_noise: level that a public mean is given.
        tasks: T.
        queries: records of each task that the loss is taken on.
        noise_std: std of the noise in the means.
    """

    def __init__(
        self,
        world: World,
        base: Family,
        encoder: Encoder,
        hyper: Hypernetwork,
        *,
        mix: Mapping[str, float],
        support: int,
        clip_norm: float,
        lowest_noise: float,
        tasks: int = 32,
        queries: int = 8,
        noise_std: float = 0.015,
    ) -> None:
        self.base, self.encoder, self.hyper = base, encoder, hyper
        self.support, self.clip_norm, self.lowest_noise = support, clip_norm, lowest_noise
        self.queries, self.noise_std = queries, noise_std
        rng = torch.Generator().manual_seed(7)
        sampler = world.tasks(1, {**mix, "everything": 0.0})
        self.images = sampler.draw(tasks, support + queries, rng, unseen=queries)
        self.marginal = world.records(2048, 0, rng)

    @property
    def device(self) -> torch.device:
        """Where the networks are now."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def public_mean(self) -> Tensor:
        """Mean clipped embedding of the training corpus, float32 [k]."""
        parts = [
            clip(self._embed(part), self.clip_norm) for part in torch.split(self.marginal, 256)
        ]
        return torch.cat(parts).mean(0)

    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings before clipping of small grey records, float32 [B, k], on the CPU."""
        found: Tensor = self.encoder(fit(images, self.base.image_shape).to(self.device))
        return found.float().cpu()

    @torch.no_grad()
    def task_means(self) -> Tensor:
        """Mean clipped embedding of each validation task, float32 [T, k]."""
        support = self.images[:, : self.support]
        return torch.stack([clip(self._embed(task), self.clip_norm).mean(0) for task in support])

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Figures `val_base`, `val_public_mean`, `val_other_task`, `val_hyper`."""
        tasks = len(self.images)
        queries = self.images[:, self.support :].flatten(0, 1)
        device = self.device
        means = self.task_means()
        rng = torch.Generator().manual_seed(8)
        noisy = means + self.noise_std * torch.randn(means.shape, generator=rng)
        level = torch.full((tasks,), self.noise_std)
        public = self.public_mean().expand(tasks, -1)
        s = torch.sigmoid(torch.randn(len(queries), generator=rng))
        noise = torch.randn((len(queries), *self.base.noise_shape), generator=rng)

        def loss(mean: Tensor | None, noise_level: Tensor) -> float:
            values = []
            for start in range(0, tasks, 8):
                part = slice(start * self.queries, (start + 8) * self.queries)
                weights = (
                    {}
                    if mean is None
                    else self.hyper(
                        mean[start : start + 8].to(device),
                        noise_level[start : start + 8].to(device),
                    )
                )
                with adapters(self.base.model, weights):
                    images = fit(queries[part], self.base.image_shape).to(device)
                    losses = self.base.loss_at(images, s[part].to(device), noise[part].to(device))
                    values.append(losses.mean())
            return float(torch.stack(values).mean())

        return {
            "val_base": loss(None, level),
            "val_public_mean": loss(public, torch.full((tasks,), self.lowest_noise)),
            "val_other_task": loss(noisy.roll(1, 0), level),
            "val_hyper": loss(noisy, level),
        }
