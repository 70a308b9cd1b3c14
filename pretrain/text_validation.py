"""The validation line of text hypernetworks, with the two controls beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyperdp.encoder import clip
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.text_corpus import TextCorpus
from hyperdp.pretrain.text_tasks import TextRowSampler, TextTaskMix, TextTaskSampler, Tokens
from hyperdp.text_family import CausalText


class TextValidation:
    """Loss on held-out tasks under ρ(z) and under the two controls.

    Args:
        corpus: the public corpus; its validation split gives the tasks.
        tokens: int64 [N, L], its documents.
        base: the frozen base model.
        encoder: φ.
        hyper: ρ.
        mix: how often each kind of task is drawn.
        support: documents behind each mean embedding.
        clip_norm: C.
        lowest_noise: level that a public mean is given.
        tasks: T.
        queries: documents of each task that the loss is taken on.
        noise_std: std of the noise in the means.
    """

    def __init__(
        self,
        corpus: TextCorpus,
        tokens: Tokens,
        base: CausalText,
        encoder: nn.Module,
        hyper: Hypernetwork,
        *,
        mix: TextTaskMix,
        support: int,
        clip_norm: float,
        lowest_noise: float,
        tasks: int = 16,
        queries: int = 8,
        noise_std: float = 0.015,
    ) -> None:
        self.base, self.encoder, self.hyper = base, encoder, hyper
        self.clip_norm, self.lowest_noise, self.noise_std = clip_norm, lowest_noise, noise_std
        self._kept: dict[str, Tensor] = {}
        rng = torch.Generator().manual_seed(7)
        sampler = TextTaskSampler(corpus, tokens, 1, dataclasses.replace(mix, everything=0.0))
        self.support, self.asked = sampler.draw(tasks, support, queries, rng)
        self.marginal = torch.from_numpy(tokens[TextRowSampler(corpus, 0).draw(1024, rng)])

    @torch.no_grad()
    def public_mean(self) -> Tensor:
        """Mean clipped embedding of the training corpus, float32 [k]."""
        return self._once("marginal", lambda: self._mean(self.marginal))

    @torch.no_grad()
    def task_means(self) -> Tensor:
        """Mean clipped embedding of each validation task, float32 [T, k]."""
        return self._once("tasks", lambda: torch.stack([self._mean(t) for t in self.support]))

    def _mean(self, documents: Tensor) -> Tensor:
        parts = torch.split(documents, 64)
        return torch.cat([clip(self.encoder(p).float(), self.clip_norm) for p in parts]).mean(0)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """An encoder that is not trained embeds what stays the same once."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            return make()
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Figures `val_base`, `val_public_mean`, `val_other_task`, `val_hyper`, nats a token."""
        means = self.task_means()
        rng = torch.Generator().manual_seed(8)
        noisy = means + self.noise_std * torch.randn(means.shape, generator=rng)
        level = torch.full((len(means),), self.noise_std)
        public = self.public_mean().expand(len(means), -1)

        def loss(mean: Tensor | None, noise_level: Tensor) -> float:
            values = []
            for start in range(0, len(means), 4):
                part = slice(start, start + 4)
                weights = {} if mean is None else self.hyper(mean[part], noise_level[part])
                with adapters(self.base.model, weights):
                    values.append(self.base.loss(self.asked[part].flatten(0, 1)))
            return float(torch.cat(values).mean())

        return {
            "val_base": loss(None, level),
            "val_public_mean": loss(public, torch.full_like(level, self.lowest_noise)),
            "val_other_task": loss(noisy.roll(1, 0), level),
            "val_hyper": loss(noisy, level),
        }
