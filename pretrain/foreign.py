"""Foreign data for the guard to know: images out of formulas, none of them a picture of anything.

A density of public tasks alone does not tell foreign data, whose means fall among those of single
characters; a contrast does (outlier exposure, Hendrycks et al. 2019, arXiv 1812.04606).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

KINDS = ("white", "fractal", "grating", "shape", "silhouette", "flat", "steps")


def draw_foreign(shape: tuple[int, int, int], records: int, rng: torch.Generator) -> Tensor:
    """One foreign dataset: images of one random kind, with random contrast and brightness.

    Kinds: white noise; noise of spectrum 1/f^a, which photographs have (Field 1987); gratings; one
    or two filled shapes, textured or plain; silhouettes, as pictures of objects have them; flat
    grey; steps of grey.

    Args:
        shape: (C, H, W) of a record.
        records: of the dataset.
        rng: CPU generator.

    Returns:
        float32 [records, C, H, W] in [-1, 1].
    """
    _, height, width = shape

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return torch.rand(*(size or (1,)), generator=rng) * (high - low) + low

    kind = KINDS[int(torch.randint(len(KINDS), (1,), generator=rng))]
    ys, xs = (torch.linspace(-1, 1, n) for n in (height, width))
    grid_y, grid_x = ys[None, :, None], xs[None, None, :]
    if kind == "white":
        images = torch.randn(records, height, width, generator=rng)
        if float(uniform(0, 1)) < 0.5:
            images = torch.rand(records, height, width, generator=rng) * 3.4 - 1.7
    elif kind == "fractal":
        images = _fractal(records, height, width, float(uniform(0.5, 2.5)), rng)
    elif kind == "grating":
        angle, cycles = uniform(0, math.pi, records, 1, 1), uniform(1, 8, records, 1, 1)
        phase = uniform(0, 2 * math.pi, records, 1, 1)
        along = grid_x * torch.cos(angle) + grid_y * torch.sin(angle)
        images = 1.4 * torch.sin(math.pi * cycles * along + phase)
    elif kind in {"shape", "silhouette"}:
        draw = _shapes if kind == "shape" else _silhouettes
        images = draw(records, grid_y, grid_x, rng)
        if float(uniform(0, 1)) < 0.6:
            texture = _fractal(records, height, width, float(uniform(0.5, 2)), rng)
            images = images + float(uniform(0.1, 0.8)) * texture * (images > 0)
        return images.clamp(-1, 1)[:, None].expand(-1, *shape).contiguous()
    elif kind == "flat":
        images = uniform(-1, 1, records, 1, 1).expand(records, height, width) * 1.0
        images = images + float(uniform(0, 0.2)) * torch.randn(images.shape, generator=rng)
    else:
        coarse = torch.randn(records, 1, *(int(n) for n in (2, 2)), generator=rng)
        if float(uniform(0, 1)) < 0.5:
            coarse = torch.randn(records, 1, 5, 5, generator=rng)
        images = functional.interpolate(coarse, (height, width), mode="nearest")[:, 0] * 1.5
    bright = float(uniform(-0.6, 0.6)) + uniform(-0.2, 0.2, records, 1, 1)
    finished = images * float(uniform(0.15, 0.9)) + bright
    return finished.clamp(-1, 1)[:, None].expand(-1, *shape).contiguous()


def _fractal(
    records: int, height: int, width: int, exponent: float, rng: torch.Generator
) -> Tensor:
    """Gaussian noise of amplitude spectrum 1/f^exponent, std 1: float32 [records, H, W]."""
    frequency = torch.sqrt(
        torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2
    )
    frequency[0, 0] = math.inf
    white = torch.randn(records, height, width, generator=rng)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-exponent, s=(height, width))
    scaled: Tensor = field / field.std((1, 2), keepdim=True).clamp(min=1e-6)
    return scaled


def _shapes(records: int, grid_y: Tensor, grid_x: Tensor, rng: torch.Generator) -> Tensor:
    """A filled superellipse on black, often with a part cut out or added: [records, H, W]."""
    spread = 0.1 + 0.3 * torch.rand(1, generator=rng)

    def one(centre: float, low: float, high: float) -> Tensor:
        size = low + (high - low) * torch.rand(records, 2, 1, 1, generator=rng)
        size = size.mean(0, keepdim=True) * (1 - spread) + size * spread
        place = centre * (2 * torch.rand(records, 2, 1, 1, generator=rng) - 1)
        power = 2 + 6 * torch.rand(1, generator=rng)
        radius = ((grid_y - place[:, 0]) / size[:, 0]).abs() ** power
        radius = radius + ((grid_x - place[:, 1]) / size[:, 1]).abs() ** power
        return (radius < 1).float()

    body = one(0.1, 0.3, 1.0)
    part = one(0.6, 0.15, 0.8)
    choice = float(torch.rand(1, generator=rng))
    mask = body if choice < 0.3 else (body - part).clamp(min=0) if choice < 0.65 else (body + part)
    grey = 0.1 + 0.9 * torch.rand(records, 1, 1, generator=rng)
    images: Tensor = mask.clamp(max=1) * (grey + 1) - 1
    return images


def _silhouettes(records: int, grid_y: Tensor, grid_x: Tensor, rng: torch.Generator) -> Tensor:
    """A filled outline r(θ) of few random waves on black, lit from a side: [records, H, W].

    The outline is one of the dataset, from which each record deviates; half of the datasets are
    mirrored left to right, as clothes, vessels and faces are.
    """
    waves = 7
    fall = 1 / (1 + torch.arange(waves)) ** float(torch.rand(1, generator=rng) + 0.5)
    own = 0.05 + 0.6 * float(torch.rand(1, generator=rng))

    def coefficients() -> Tensor:
        shared = torch.randn(1, waves, generator=rng)
        return (shared + own * torch.randn(records, waves, generator=rng)) * fall

    angle = torch.atan2(grid_x, grid_y)  # 0 is down, so that ±θ are mirror images
    turn = angle[..., None] * (1 + torch.arange(waves))  # [1, H, W, waves]
    bend = torch.einsum("nk,bhwk->nhw", coefficients(), torch.cos(turn))
    if float(torch.rand(1, generator=rng)) < 0.5:
        bend = bend + torch.einsum("nk,bhwk->nhw", coefficients(), torch.sin(turn))
    bend = bend / bend.flatten(1).std(1)[:, None, None].clamp(min=1e-3)
    size = 0.4 + 0.5 * torch.rand(1, generator=rng)
    stretch = torch.exp(0.5 * torch.randn(1, generator=rng)) ** 0.5
    radius = torch.sqrt((grid_y * stretch) ** 2 + (grid_x / stretch) ** 2)
    depth = 0.1 + 0.4 * torch.rand(1, generator=rng)
    inside = (radius < size * torch.exp(depth * bend)).float()
    low = torch.rand(records, 1, 1, generator=rng)
    light = (
        (
            grid_y * torch.randn(records, 1, 1, generator=rng)
            + grid_x * torch.randn(records, 1, 1, generator=rng)
        )
        * 0.3
        * torch.rand(1, generator=rng)
    )
    grey = (0.15 + 0.85 * low + light).clamp(0.05, 1)
    images: Tensor = inside * 2 * grey - 1
    return images
