"""What ρ will meet: tasks drawn, their support embedded, noise of a random level added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperdp.draws import chosen, normal, uniform
from hyperdp.encoder import Encoder, clip
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.pretrain.feed import Feed, feed_seed, unpack
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.foretell import Foretell
from hyperdp.pretrain.task_pool import TaskPool
from hyperdp.pretrain.world import Tasks

if TYPE_CHECKING:
    from hyperdp.pretrain.hyper import HyperConfig


class FedTaskPool:
    """`TaskPool` whose tasks other processes draw, on the device: see `Feed`."""

    def __init__(
        self,
        sampler: Tasks,
        *,
        seed: int,
        size: int,
        records: int,
        fresh: int,
        feeders: int,
        device: torch.device,
    ) -> None:
        self.size, self.records, self.device = size, records, device

        def one(rng: torch.Generator) -> tuple[Tensor, Tensor]:
            images, content = sampler.draw_labelled(1, records, rng)
            return images[0], content[0]

        self.feed = Feed(one, seed=seed, size=size, fresh=fresh, feeders=feeders, device=device)

    def refill(self) -> None:
        """See `Feed.refill`."""
        self.feed.refill()

    def draw(self, count: int, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """See `TaskPool.draw`; on the device."""
        images, content = self.feed.pool()
        which = chosen(count, self.size, rng, self.device)[:, None]
        order = uniform((count, self.records), rng, self.device).argsort(1)
        return unpack(images[which, order]), content[which, order]

    def state(self) -> Tensor:
        """See `Feed.state`."""
        return self.feed.state()

    def restore(self, state: Tensor) -> None:
        """See `Feed.restore`."""
        self.feed.restore(state)


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Some tasks of one step.

    Attributes:
        mean: float32 [G, k], noisy. noise_std: float32 [G].
        unseen: float32 [G, N, c, h, w], records that are not in the mean, as the corpus has them.
        others: float32 [G, M, c, h, w], further records of the same tasks.
        foretold: the foretelling loss, a scalar; figures: its parts.
    """

    mean: Tensor
    noise_std: Tensor
    unseen: Tensor
    others: Tensor
    foretold: Tensor
    figures: dict[str, Tensor]


class Conditioning:
    """Draws tasks, embeds their support and adds noise of a random level: z as ρ will meet it."""

    def __init__(
        self,
        config: HyperConfig,
        sampler: Tasks,
        encoder: Encoder,
        hyper: Hypernetwork,
        foretell: Foretell,
    ) -> None:
        self.config, self.encoder, self.hyper, self.foretell = config, encoder, hyper, foretell
        workers = config.loop.workers
        sizes = {"size": config.pool // workers, "fresh": max(1, config.fresh // workers)}
        records = config.support + max(config.queries, 32)
        self.pools: Sequence[TaskPool | FedTaskPool]
        if config.feeders:
            device, each = next(hyper.parameters()).device, -(-config.feeders // workers)
            self.pools = [
                FedTaskPool(
                    sampler,
                    seed=feed_seed(config.loop.seed, worker),
                    records=records,
                    feeders=each,
                    device=device,
                    **sizes,
                )
                for worker in range(workers)
            ]
        else:
            self.pools = [TaskPool(sampler, records=records, **sizes) for _ in range(workers)]

    def refill(self, worker: int) -> None:
        """Replaces some tasks of the worker's own pool."""
        self.pools[worker].refill()

    def draw(self, tasks: int, rng: torch.Generator | None, worker: int) -> Conditioned:
        """Conditions `tasks` tasks out of the worker's own pool."""
        c = self.config
        device = next(self.hyper.parameters()).device
        images, content = (part.to(device) for part in self.pools[worker].draw(tasks, rng))
        support, unseen = images[:, : c.support], images[:, c.support :]
        low, high = math.log(c.noise_low), math.log(c.noise_high)
        noise_std = torch.exp(uniform((tasks,), rng, device) * (high - low) + low)  # [G]
        mean, embeddings = self._embed(support)
        mean = mean + noise_std[:, None] * normal(mean.shape, rng, device)
        code = self.hyper.code(mean, noise_std)
        cells, of_content = self.foretell.set_loss(code, unseen, content[:, c.support :])
        shown = content[:, : min(c.support, c.support_grad)].flatten()
        record = self.foretell.record_loss(embeddings, shown)
        losses = {"cells": cells, "content": of_content, "record": record}
        return Conditioned(
            mean=mean,
            noise_std=noise_std,
            unseen=unseen,
            others=torch.cat([support, unseen[:, c.queries :]], 1),
            foretold=cells + of_content + record,
            figures={name: loss.detach() for name, loss in losses.items()},
        )

    def state(self) -> Tensor:
        """What the pools hold, int64 [workers, n]; zeros for those of other processes."""
        return torch.stack([pool.state() for pool in self.pools])

    def restore(self, state: Tensor) -> None:
        """Takes the pools back to a state."""
        for pool, own in zip(self.pools, state, strict=True):
            pool.restore(own)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[G, K, C, H, W] → mean clipped embedding [G, k]; embeddings that carry gradients."""
        c = self.config
        groups, count = images.shape[:2]
        grad = min(c.support_grad, count)
        shape = self.encoder.config.image_shape
        first = clip(self.encoder(fit(images[:, :grad].flatten(0, 1), shape)).float(), c.clip_norm)
        with torch.no_grad():
            after = fit(images[:, grad:].flatten(0, 1), shape)
            rest = clip(self.encoder(after).float(), c.clip_norm)
        both = torch.cat([first.view(groups, grad, -1), rest.view(groups, count - grad, -1)], 1)
        return both.mean(1), first
