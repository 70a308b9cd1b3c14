"""One step of hypernetwork training: the losses of a worker's share of the tasks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperdp.draws import chosen
from hyperdp.family import Family
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.conditioning import Conditioning
from hyperdp.pretrain.feed import Feed, feed_seed, unpack
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.loop_config import shared_out
from hyperdp.pretrain.twins import twin
from hyperdp.pretrain.world import World

if TYPE_CHECKING:
    from hyperdp.pretrain.hyper import HyperConfig

PLAIN_POOL = 512  # draws of plain records that are kept
PLAIN_USES = 8  # of each, on average


class HyperStep:
    """The step functions of both loops, see `hyperdp.pretrain.loop.Step`.

    Args:
        config: the recipe.
        base: the base model, where the networks compute.
        hyper: ρ.
        conditioning: draws tasks and embeds them.
        world: what the base's own loss is taken on.
    """

    def __init__(
        self,
        config: HyperConfig,
        base: Family,
        hyper: Hypernetwork,
        conditioning: Conditioning,
        world: World,
    ) -> None:
        self.config, self.hyper, self.conditioning = config, hyper, conditioning
        self.world = world
        workers = config.loop.workers
        self.tasks = shared_out(config.tasks, workers, "tasks")
        self.foretold_tasks = shared_out(config.foretell_tasks, workers, "foretell_tasks")
        # Hooks belong to a module: each worker needs modules of its own, over the same weights.
        self.bases = [base, *(twin(base) for _ in range(workers - 1))]
        self.plain = [twin(base) for _ in range(workers)] if config.base_weight > 0 else []
        self.hooks = [ExitStack() for _ in range(workers)]
        self.feeds = self._feeds() if config.feeders and self.plain else []

    def _feeds(self) -> list[Feed]:
        """Where the base's own records come from, a share each; a few are replaced a step."""
        count = self._plain_count() // PLAIN_USES or 1

        def some(rng: torch.Generator) -> tuple[Tensor]:
            return (self.world.records(count, 0, rng),)

        device = next(self.hyper.parameters()).device
        return [
            Feed(
                some,
                seed=feed_seed(self.config.loop.seed, worker, kind=1),
                size=PLAIN_POOL,
                fresh=1,
                feeders=2,
                device=device,
            )
            for worker in range(len(self.plain))
        ]

    def _plain_records(self, worker: int, rng: torch.Generator | None) -> Tensor:
        """Records that the base's own loss is taken on, float32 [N, C, H, W]."""
        count = self._plain_count()
        if not self.feeds:
            if rng is None:
                raise ValueError("these records are drawn by the processor: give a generator")
            return self.world.records(count, 0, rng)
        [pool] = self.feeds[worker].pool()
        records = pool.flatten(0, 1)
        return unpack(records[chosen(count, len(records), rng, records.device)])

    def _plain_count(self) -> int:
        return shared_out(self.config.base_records, self.config.loop.workers, "base_records")

    def refill(self, worker: int) -> None:
        """Brings new records into a worker's pools."""
        self.conditioning.refill(worker)
        if self.feeds:
            self.feeds[worker].refill()

    def foretell(
        self, rng: torch.Generator | None, worker: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Foretelling alone: its loss and the parts of it."""
        drawn = self.conditioning.draw(self.foretold_tasks, rng, worker)
        return drawn.foretold, drawn.figures

    def __call__(
        self, rng: torch.Generator | None, worker: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The base model's loss under the adapters, with what the recipe adds to it."""
        c, own = self.config, self.bases[worker]
        drawn = self.conditioning.draw(self.tasks, rng, worker)
        queries = fit(drawn.unseen[:, : c.queries], own.image_shape)
        pool = fit(drawn.others, own.image_shape) if own.needs_pool else queries
        weights = self.hyper(drawn.mean, drawn.noise_std)
        self.hooks[worker].enter_context(adapters(own.model, weights))
        flow = own.adapter_loss(queries, pool, rng).mean()
        if not c.gradient_checkpointing:
            self.after(worker)  # else activations are computed once more, with the adapters
        loss = flow + c.foretell_weight * drawn.foretold
        figures = {"flow": flow.detach(), **drawn.figures}
        if c.base_weight > 0:
            records = self._plain_records(worker, rng)
            images = fit(records, own.image_shape).to(queries.device)
            plain = self.plain[worker].loss(images, rng).mean()
            loss = loss + c.base_weight * plain
            figures["base"] = plain.detach()
        return loss, figures

    def state(self) -> Tensor:
        """See `Sampler`: of the tasks' pools, and of what the base's own records come from."""
        parts = [self.conditioning.state()]
        if self.feeds:
            parts.append(torch.stack([feed.state() for feed in self.feeds]))
        return torch.cat(parts, 1)

    def restore(self, state: Tensor) -> None:
        """See `Sampler`."""
        own = len(self.conditioning.pools[0].state())
        self.conditioning.restore(state[:, :own])
        for feed, part in zip(self.feeds, state[:, own:], strict=False):
            feed.restore(part)

    def after(self, worker: int) -> None:
        """Takes the adapters out of the worker's base."""
        self.hooks[worker].close()
