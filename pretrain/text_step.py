"""One step of text hypernetwork training: the loss of a share's tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.compute import device_of
from hyperdp.encoder import clip
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.loop_config import shared_out
from hyperdp.pretrain.text_tasks import Rows, TextTaskSampler, Tokens
from hyperdp.pretrain.twins import twin
from hyperdp.text_family import CausalText

if TYPE_CHECKING:
    from hyperdp.pretrain.text_hyper import TextHyperConfig


class WordForetelling(nn.Module):
    """Foretells from the code which tokens unseen documents of the task have: a unigram model.

    It keeps the code from becoming the same for all tasks, and is thrown away after training.
    """

    def __init__(self, bottleneck: int, vocab_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(bottleneck, vocab_size)
        nn.init.zeros_(self.head.weight)

    def forward(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Nats a token.

        Args:
            code: float32 [G, bottleneck].
            tokens: int64 [G, b, L] of unseen documents.

        Returns:
            A scalar: the mean over documents of each document's mean.
        """
        chances = functional.log_softmax(self.head(code).float(), 1)  # [G, V]
        flat = tokens.flatten(1)  # [G, b·L]
        each = chances.gather(1, flat.clamp(min=0)).view(tokens.shape)
        there = tokens >= 0
        mean = (each * there).sum(2) / there.sum(2).clamp(min=1)
        return -mean.mean()


class TextStep:
    """The step function of the loop, see `hyperdp.pretrain.loop.Step`.

    Args:
        config: the recipe.
        base: the base model, frozen, where the networks compute.
        encoder: φ.
        hyper: ρ.
        words: see `WordForetelling`.
        tokens: int64 [N, L], all public documents.
        sampler: of training tasks.
        table: clipped embeddings of all documents [N, k], where φ stays as it is; else None.
    """

    def __init__(
        self,
        config: TextHyperConfig,
        base: CausalText,
        encoder: nn.Module,
        hyper: Hypernetwork,
        words: WordForetelling,
        tokens: Tokens,
        sampler: TextTaskSampler,
        table: Tensor | None,
    ) -> None:
        self.config, self.encoder, self.hyper, self.words = config, encoder, hyper, words
        self.tokens, self.sampler, self.table = tokens, sampler, table
        self.device = device_of(base.model)
        workers = config.loop.workers
        self.tasks = shared_out(config.tasks, workers, "tasks")
        # Hooks belong to a module: each share needs modules of its own, over the same weights.
        self.bases = [base, *(twin(base) for _ in range(workers - 1))]

    def __call__(self, rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The base's loss under the adapters, and that of foretelling beside it."""
        c, own = self.config, self.bases[worker]
        support, asked = self.sampler.draw_rows(self.tasks, c.support, c.queries, rng)
        queries = torch.from_numpy(self.tokens[asked]).to(self.device)  # [G, b, L]
        noise_std = self._noise_levels(rng).to(self.device)
        mean = self._embed(support)
        mean = mean + noise_std[:, None] * torch.randn(mean.shape, generator=rng).to(self.device)
        with adapters(own.model, self.hyper(mean, noise_std)):
            loss = own.loss(queries.flatten(0, 1)).mean()
        foretold = self.words(self.hyper.code(mean, noise_std), queries)
        figures = {"own": loss.detach(), "words": foretold.detach()}
        return loss + c.words_weight * foretold, figures

    def _noise_levels(self, rng: torch.Generator) -> Tensor:
        """Noise std of each task's mean, log-uniform, float32 [G]."""
        low, high = math.log(self.config.noise_low), math.log(self.config.noise_high)
        return torch.exp(torch.rand(self.tasks, generator=rng) * (high - low) + low)

    def _embed(self, rows: Rows) -> Tensor:
        """[G, K] → mean clipped embedding [G, k]; the first few carry gradients."""
        if self.table is not None:
            return self.table[torch.from_numpy(rows)].float().mean(1).to(self.device)
        c = self.config
        support = torch.from_numpy(self.tokens[rows]).to(self.device)  # [G, K, L]
        grad = min(c.support_grad, support.shape[1])
        first = clip(self.encoder(support[:, :grad].flatten(0, 1)).float(), c.clip_norm)
        with torch.no_grad():
            rest = clip(self.encoder(support[:, grad:].flatten(0, 1)).float(), c.clip_norm)
        both = [p.view(len(support), len(p) // len(support), p.shape[1]) for p in (first, rest)]
        return torch.cat(both, 1).mean(1)
