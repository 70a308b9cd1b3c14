"""One step of hypernetwork training: the losses of a worker's share of the tasks."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperdp.family import Family
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.conditioning import Conditioning
from hyperdp.pretrain.fitting import fit
from hyperdp.pretrain.world import World

if TYPE_CHECKING:
    from hyperdp.pretrain.hyper import HyperConfig


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
        # Hooks belong to a module: each worker needs modules of its own, over the same weights.
        self.bases = [base, *(twin(base) for _ in range(workers - 1))]
        self.plain = [twin(base) for _ in range(workers)] if config.base_weight > 0 else []
        self.hooks = [ExitStack() for _ in range(workers)]

    def foretell(self, rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        """Foretelling alone: its loss and the parts of it."""
        count = self.config.foretell_tasks // self.config.loop.workers
        drawn = self.conditioning.draw(count, rng, worker)
        return drawn.foretold, drawn.figures

    def __call__(self, rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        """The base model's loss under the adapters, with what the recipe adds to it."""
        c, own = self.config, self.bases[worker]
        drawn = self.conditioning.draw(c.tasks // c.loop.workers, rng, worker)
        queries = fit(drawn.unseen[:, : c.queries], own.image_shape)
        pool = fit(drawn.others, own.image_shape) if own.needs_pool else queries
        weights = self.hyper(drawn.mean, drawn.noise_std)
        self.hooks[worker].enter_context(adapters(own.model, weights))
        flow = own.adapter_loss(queries, pool, rng).mean()
        if not c.gradient_checkpointing:
            self.after(worker)  # else activations are computed once more, with the adapters
        loss = flow + c.foretell_weight * drawn.foretold
        figures = {"flow": float(flow.detach()), **drawn.figures}
        if c.base_weight > 0:
            drawn_plain = self.world.records(c.base_records // c.loop.workers, 0, rng)
            images = fit(drawn_plain, own.image_shape).to(queries.device)
            plain = self.plain[worker].loss(images, rng).mean()
            loss = loss + c.base_weight * plain
            figures["base"] = float(plain.detach())
        return loss, figures

    def after(self, worker: int) -> None:
        """Takes the adapters out of the worker's base."""
        self.hooks[worker].close()


def twin(family: Family) -> Family:
    """The same base with a network of its own: its weights are shared, its hooks are not."""
    other = copy.copy(family)
    other.model = copy.deepcopy(family.model, {id(p): p for p in family.model.parameters()})
    return other
