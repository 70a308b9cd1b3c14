"""Styles: how a public glyph is drawn. A style belongs to a task, its spread to the records.

A style either keeps the ink of the font or redraws its medial axis with a round pen, then bends it
(affine and smooth elastic deformation, Simard et al. 2003), and brings it to the glyph format of
`hyperdp.glyphs`: longer side of the ink box 20 pixels, centre of mass at the centre of 28×28.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from hyperdp.glyphs import CANVAS, IMAGE_BOX, IMAGE_SIZE

_ELASTIC_GRID = 4  # smooth: whole strokes bend, as a hand bends them, and edges do not tremble
_BLUR_TAPS = 15
_COARSE = (9.0, 11.0, 13.0, 16.0, 20.0)  # pixels a side, of 28


@dataclass(frozen=True, kw_only=True)
class Style:
    """One style per row; every field is float32 [G]; lengths are pixels of the 48×48 canvas.

    Attributes:
        pen: probability that a record is drawn by the pen rather than with the font's ink.
        width_mean, width_std: stroke width of the pen.
        bold_mean, bold_std: threshold shift of the ink, > 0 makes strokes heavier.
        rotation_mean, rotation_std: radians. shear_mean, shear_std: horizontal shear, tangent.
        aspect_mean, aspect_std: log of width over height.
        elastic: std of the elastic displacement.
        hardness: slope of the ink's edge; low is soft.
        gain: contrast of the finished image about half ink; scans and sharp resamplers are crisp.
        resolution: pixels a side that the finished image is brought to and enlarged from again, as
            coarse scans are; `IMAGE_SIZE` leaves it as it is.
    """

    pen: Tensor
    width_mean: Tensor
    width_std: Tensor
    bold_mean: Tensor
    bold_std: Tensor
    rotation_mean: Tensor
    rotation_std: Tensor
    shear_mean: Tensor
    shear_std: Tensor
    aspect_mean: Tensor
    aspect_std: Tensor
    elastic: Tensor
    hardness: Tensor
    gain: Tensor
    resolution: Tensor

    def row(self, index: Tensor) -> Style:
        """The styles at `index` (int64 [N])."""
        return Style(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def plain_style(count: int) -> Style:
    """The font's ink as it is, `count` times."""
    zero = torch.zeros(count)
    values = {f.name: zero for f in fields(Style)}
    return Style(
        **{
            **values,
            "hardness": torch.full((count,), 6.0),
            "gain": torch.ones(count),
            "width_mean": torch.full((count,), 4.0),
            "resolution": torch.full((count,), float(IMAGE_SIZE)),
        }
    )


def draw_style(
    count: int, rng: torch.Generator, *, plain: float = 0.35, pen: float = 0.4, coarse: float = 0.0
) -> Style:
    """Draws task styles: plain ink, pen, or bent ink (the rest).

    Args:
        count: G.
        rng: CPU generator.
        plain: probability of unchanged ink.
        pen: probability of the pen.
        coarse: probability of a coarse scan of whatever it is.

    Returns:
        Style with fields [G].
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=rng) * (high - low) + low

    def normal(std: float) -> Tensor:
        return torch.randn(count, generator=rng) * std

    kind = torch.rand(count, generator=rng)
    is_plain, is_pen = kind < plain, (kind >= plain) & (kind < plain + pen)
    bent = ~is_plain
    free = torch.where(is_pen, 1.0, 0.6)
    values = {
        "pen": is_pen.float(),
        "width_mean": uniform(2.2, 7.0),
        "width_std": uniform(0.1, 1.2),
        "bold_mean": normal(0.25) * bent,
        "bold_std": uniform(0.0, 0.15) * bent,
        "rotation_mean": normal(0.06) * bent,
        "rotation_std": uniform(0.0, 0.2) * bent * free,
        "shear_mean": normal(0.2) * bent * free,
        "shear_std": uniform(0.0, 0.3) * bent * free,
        "aspect_mean": normal(0.12) * bent,
        "aspect_std": uniform(0.0, 0.25) * bent * free,
        "elastic": uniform(0.0, 4.0) * bent * free,
        "hardness": torch.where(is_plain, 6.0, uniform(3.0, 10.0)),
        "gain": torch.where(is_plain, uniform(1.0, 2.2), uniform(1.0, 4.0)),
        "resolution": torch.full((count,), float(IMAGE_SIZE)),
    }
    if coarse > 0:  # drawn last and only then, so that other styles stay what they are
        is_coarse = torch.rand(count, generator=rng) < coarse
        chosen = torch.tensor(_COARSE)[torch.randint(len(_COARSE), (count,), generator=rng)]
        values["resolution"] = torch.where(is_coarse, chosen, values["resolution"])
        values["gain"] = torch.where(is_coarse, uniform(1.0, 1.8), values["gain"])
    return Style(**values)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one sigma per image: [N, H, W], [N] → [N, H, W]."""
    half = _BLUR_TAPS // 2
    taps = torch.arange(-half, half + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [N, taps]
    n = len(images)
    x = functional.conv2d(images[None], kernel[:, None, :, None], padding=(half, 0), groups=n)
    return functional.conv2d(x, kernel[:, None, None, :], padding=(0, half), groups=n)[0]


def _pen(skeleton: Tensor, width: Tensor, hardness: Tensor) -> Tensor:
    """Draws a medial axis with a round pen: the blurred line is cut at its value `width`/2 away."""
    sigma = width / 2
    edge = math.exp(-0.5) / (sigma * math.sqrt(2 * math.pi))
    ratio = _blur(skeleton, sigma) / edge[:, None, None]
    return _edge(ratio, hardness)


def _edge(ratio: Tensor, hardness: Tensor) -> Tensor:
    """A soft step at ratio 1 that is exactly 0 at ratio 0: [N, H, W], [N] → [N, H, W] in [0, 1)."""
    slope = hardness[:, None, None]
    floor = torch.sigmoid(-slope)
    return (torch.sigmoid((ratio - 1) * slope) - floor) / (1 - floor)


def _normalise(images: Tensor) -> Tensor:
    """Brings [N, H, W] in [0, 1] to the glyph format, [N, 1, 28, 28] in [-1, 1]."""
    n, height, width = images.shape
    rows, cols = images.amax(2) > 0.3, images.amax(1) > 0.3  # [N, H], [N, W]
    ys, xs = torch.arange(height).float(), torch.arange(width).float()

    def span(mask: Tensor, axis: Tensor) -> Tensor:
        low = torch.where(mask, axis, math.inf).amin(1)
        high = torch.where(mask, axis, -math.inf).amax(1)
        return torch.where(mask.any(1), high - low + 1, torch.ones(()))

    side = torch.maximum(span(rows, ys), span(cols, xs)).clamp(min=8)
    mass = images.sum((1, 2)).clamp(min=1e-3)
    cy = (images.sum(2) * ys).sum(1) / mass
    cx = (images.sum(1) * xs).sum(1) / mass
    theta = torch.zeros(n, 2, 3)
    zoom = side / IMAGE_BOX * IMAGE_SIZE  # canvas pixels that the output spans
    theta[:, 0, 0], theta[:, 1, 1] = zoom / width, zoom / height
    theta[:, 0, 2], theta[:, 1, 2] = (cx + 0.5) / width * 2 - 1, (cy + 0.5) / height * 2 - 1
    grid = functional.affine_grid(
        theta, [n, 1, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE], align_corners=False
    )
    fine = functional.grid_sample(images[:, None], grid, align_corners=False)
    return functional.avg_pool2d(fine, 2) * 2 - 1


def draw(ink: Tensor, skeleton: Tensor, style: Style, rng: torch.Generator) -> Tensor:
    """Draws one record per row.

    Args:
        ink: uint8 [N, 48, 48], 255 = ink.
        skeleton: uint8 [N, 48, 48], its medial axis.
        style: fields [N], the style of each record's task.
        rng: CPU generator; each record takes its own deviation from the style.

    Returns:
        float32 [N, 1, 28, 28] in [-1, 1].
    """
    n = len(ink)

    def deviate(mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * torch.randn(n, generator=rng)

    images = ink.float() / 255
    bold = deviate(style.bold_mean, style.bold_std)
    heavy = torch.nonzero(bold.abs() > 1e-3)[:, 0]
    if len(heavy):
        soft = _blur(images[heavy], torch.full((len(heavy),), 1.6))
        # A thin face must not be thinned away: the cut stays below the stroke's own peak.
        peak = soft.amax((1, 2))
        cut = torch.minimum((0.5 - 0.5 * bold[heavy]).clamp(0.12, 0.85), 0.6 * peak)
        images[heavy] = _edge(soft / cut[:, None, None], 1.5 * style.hardness[heavy])
    use_pen = torch.nonzero(torch.rand(n, generator=rng) < style.pen)[:, 0]
    if len(use_pen):
        width = deviate(style.width_mean, style.width_std)[use_pen].clamp(1.8, 9.0)
        images[use_pen] = _pen(skeleton[use_pen].float() / 255, width, style.hardness[use_pen])
    angle = deviate(style.rotation_mean, style.rotation_std).clamp(-0.6, 0.6)
    shear = deviate(style.shear_mean, style.shear_std).clamp(-0.8, 0.8)
    aspect = deviate(style.aspect_mean, style.aspect_std).clamp(-0.6, 0.6)
    bent = torch.nonzero((angle.abs() + shear.abs() + aspect.abs() + style.elastic) > 1e-3)[:, 0]
    if len(bent):
        images[bent] = _bend(
            images[bent], angle[bent], shear[bent], aspect[bent], style.elastic[bent], rng
        )
    finished = _scanned(_normalise(images), style.resolution)
    return (finished * style.gain[:, None, None, None]).clamp(-1, 1)


def _scanned(images: Tensor, resolution: Tensor) -> Tensor:
    """Brings each image to its resolution and back: [N, 1, 28, 28] in [-1, 1], [N] → the same."""
    seen = images.clone()
    for side in set(resolution.tolist()):
        if side < IMAGE_SIZE:
            chosen = torch.nonzero(resolution == side)[:, 0]
            small = functional.adaptive_avg_pool2d(images[chosen], int(side))
            seen[chosen] = functional.interpolate(
                small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False
            ).clamp(-1, 1)
    return seen


def _bend(
    images: Tensor,
    angle: Tensor,
    shear: Tensor,
    aspect: Tensor,
    elastic: Tensor,
    rng: torch.Generator,
) -> Tensor:
    n = len(images)
    cos, sin = torch.cos(angle), torch.sin(angle)
    stretch = torch.exp(aspect / 2)
    zoom = 1.25 * (1 + 0.5 * shear.abs())  # shrink, so that what is bent stays on the canvas
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos / stretch, (sin + shear) / stretch
    theta[:, 1, 0], theta[:, 1, 1] = -sin * stretch, cos * stretch
    theta = theta * zoom[:, None, None]
    grid = functional.affine_grid(theta, [n, 1, CANVAS, CANVAS], align_corners=False)
    coarse = torch.randn(n, 2, _ELASTIC_GRID, _ELASTIC_GRID, generator=rng)
    field = functional.interpolate(
        coarse, size=(CANVAS, CANVAS), mode="bicubic", align_corners=True
    )
    amplitude = elastic * 2 / CANVAS
    grid = grid + (field * amplitude[:, None, None, None]).permute(0, 2, 3, 1)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
