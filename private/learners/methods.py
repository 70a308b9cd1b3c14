"""The private learners by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError
from hyperdp.private.emit import adapter_weights
from hyperdp.private.learners.anadp import Anadp, AnadpOptions
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.learners.dpsgd import DpSgd, FfaLora, Optimizer
from hyperdp.private.learners.prism import Prism
from hyperdp.private.learners.projected import Projected, PublicSubspace
from hyperdp.private.learners.starting import site_names
from hyperdp.private.learners.step_rule import StepRule
from hyperdp.text_bundle import TextBundle

_PUBLIC_TASKS = 512  # whose adapters span the public subspace


def make_rule(config: FitConfig, bundle: Bundle | TextBundle) -> StepRule:
    """The step rule that a configuration names.

    Raises:
        UsageError: there is none of that name.
    """
    if config.method not in METHODS:
        raise UsageError(
            expected=f"a method: {', '.join(METHODS)}",
            found=repr(config.method),
            todo="Choose one of them.",
        )
    return METHODS[config.method](config, bundle)


def public_subspace(bundle: Bundle | TextBundle, names: list[str], dims: int) -> PublicSubspace:
    """The leading directions of the adapters that ρ emits, over means around the public one.

    The bundle carries no public tasks, so theirs stand in: means in random directions about the
    public mean, as far from it as the bundle's held-out public task is. ρ emits lora_B through a
    bottleneck, so that all of its adapters lie in that many directions at most.

    Args:
        bundle: public.
        names: LoRA sites.
        dims: p.
    """
    rng = torch.Generator().manual_seed(0)  # of public directions; it protects nothing
    centre, other = bundle.public_mean, bundle.other_task_mean
    directions = torch.randn(_PUBLIC_TASKS, len(centre), generator=rng)
    directions *= (other - centre).norm() / directions.norm(dim=1, keepdim=True)
    means = torch.cat([centre[None], other[None], centre + directions])
    std = torch.full((len(means),), 5e-4)  # the lowest level that ρ has seen
    emitted = adapter_weights(bundle, means, std)
    return PublicSubspace.of({name: emitted[name] for name in names}, dims)


def _optimizer(config: FitConfig) -> Optimizer:
    return Optimizer(kind=config.optimizer, b_lr_ratio=config.b_lr_ratio)


METHODS: dict[str, Callable[[FitConfig, Bundle | TextBundle], StepRule]] = {
    "dpsgd": lambda config, _: DpSgd(_optimizer(config)),
    "ffa": lambda config, _: FfaLora(_optimizer(config)),
    "projected": lambda config, bundle: Projected(
        public_subspace(bundle, site_names(config, bundle), config.dims), _optimizer(config)
    ),
    "prism": lambda config, _: Prism(),
    "anadp": lambda config, _: Anadp(AnadpOptions(optimizer=_optimizer(config))),
}
