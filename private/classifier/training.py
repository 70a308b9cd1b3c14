"""DP-SGD as De et al. 2022 run it: the loop between reading the records and writing the weights.

Everything random here comes from the operating system. What each step reveals is `noisy_mean`
alone; weights, average and step size are functions of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperdp.private.classifier.augment import draw_views
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.classifier.gradients import (
    BOUND,
    Params,
    clip_to_steps,
    per_example_gradients,
    unflatten,
)
from hyperdp.private.classifier.network import WideResNet
from hyperdp.private.learners.normal import Normal, SystemNormal
from hyperdp.private.learners.poisson import PoissonSampler

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What changes how fast a run is, and never what it promises.

    Attributes:
        microbatch: examples whose gradients are held at once; a batch is added up from these.
        device: of the network.
    """

    microbatch: int = 64
    device: str = "cpu"


def noisy_mean(total: Tensor, *, noise_multiplier: float, divisor: float, normal: Normal) -> Tensor:
    """The released gradient: (sum + rounded Gaussian) / divisor.

    The sum is a vector of integers, so rounding the noise is rounding the noisy sum: it is
    post-processing of the Gaussian mechanism, and no low bits of a float are left to tell of it.

    Args:
        total: float64 [P], integers, in lattice steps.
        noise_multiplier: σ / C.
        divisor: a public number, the expected batch size.
        normal: standard normals.

    Returns:
        float64 [P], in units of C.
    """
    noise = normal(len(total)).to(total.device) * (noise_multiplier * BOUND)
    return (total + noise.round()) / (BOUND * divisor)


def filled(rows: Tensor, count: int) -> Tensor:
    """The rows and zeros after them, `count` in all.

    The gradients of a microbatch are always taken at one shape: at another one an example's own
    may differ in its last bits, and which shape it meets would depend on the other examples.
    """
    zeros = torch.zeros(count - len(rows), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    return torch.cat([rows, zeros])


def averaged(average: Params, params: Params, ema: float, step: int) -> dict[str, Tensor]:
    """The weight average after step t = 0, 1, …: decay min(μ, (1 + t) / (10 + t)); 0 follows."""
    decay = min(ema, (1 + step) / (10 + step))
    return {name: decay * average[name] + (1 - decay) * p for name, p in params.items()}


def train(
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    *,
    noise_multiplier: float,
    probability: float,
    start: Params | None = None,
    speed: Speed | None = None,
    normal: Normal | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """T steps of DP-SGD.

    Args:
        images: float32 [n, C, H, W] in [-1, 1], private.
        labels: int64 [n], private.
        config: see `ClassifierConfig`.
        noise_multiplier: σ / C.
        probability: q.
        start: public weights to begin with; fresh ones when None.
        speed: see `Speed`.
        normal: standard normals; the operating system's when None.
        progress: called with (steps done, T).

    Returns:
        The averaged weights, name → float32 on the CPU.
    """
    speed = speed or Speed()
    normal = normal or SystemNormal()
    sampler = PoissonSampler(probability)
    rng = torch.Generator().manual_seed(secrets.randbits(63))  # of the views alone
    model = fresh(config) if start is None else WideResNet(config.network)
    model.to(speed.device)
    first = dict(model.named_parameters()) if start is None else start
    params = {name: p.detach().to(speed.device, torch.float32) for name, p in first.items()}
    average: dict[str, Tensor] = dict(params)
    size = sum(p.numel() for p in params.values())
    for step in range(config.steps):
        total = torch.zeros(size, dtype=torch.float64, device=speed.device)
        batch = torch.from_numpy(sampler.draw(len(images)))
        for part in torch.split(batch, speed.microbatch):
            if len(part) == 0:  # torch.split gives one empty part of an empty batch
                continue
            views = draw_views(
                images[part].to(speed.device),
                multiplicity=config.multiplicity,
                pad=config.pad,
                flip=config.flip,
                rng=rng,
            )
            views, shown = filled(views, speed.microbatch), filled(labels[part], speed.microbatch)
            grads = per_example_gradients(model, params, views, shown.to(speed.device))
            steps = clip_to_steps(grads, config.clip_norm)[: len(part)]  # [b, P]
            total += steps.sum(0, dtype=torch.float64)
        mean = noisy_mean(
            total, noise_multiplier=noise_multiplier, divisor=config.batch_size, normal=normal
        )
        rate = config.lr * (1.0 if config.rescale else config.clip_norm)
        update = unflatten((rate * mean).float(), params)
        params = {name: p - update[name] for name, p in params.items()}
        average = averaged(average, params, config.ema, step)
        if progress is not None:
            progress(step + 1, config.steps)
    return {name: p.cpu() for name, p in average.items()}


def fresh(config: ClassifierConfig) -> WideResNet:
    """A network with new weights, from the operating system's randomness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(secrets.randbits(63))
        return WideResNet(config.network)
