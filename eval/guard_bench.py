"""`hyperdp bench guard`: how often the guard flags what it should, and what it should not.

The public tasks here are fresh draws of the held-out split: neither what the guard knows nor what
it is calibrated on. Noise is added here as the mechanism adds it, to sum and count, and not by the
guard's own code. Nothing private is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.earlier import base_name, caption, measured_base
from hyperdp.eval.private_sets import read_fashion_mnist
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.guard import LEVEL, Guard, load_guard
from hyperdp.mechanism import STEPS_PER_UNIT, MechanismSpec
from hyperdp.private.reweight import embed_public

BENCH = "guard"
METRIC = "flagged_share"
PUBLIC = "held-out public tasks"
Float = npt.NDArray[np.float64]
Progress = Callable[[str], None]
DrawTask = Callable[[int, torch.Generator], Tensor]
"""A number of records and a CPU generator → a public task, float32 [records, C, H, W]."""
Means = Callable[[int, np.random.Generator], list[Float]]


@dataclass(frozen=True, kw_only=True)
class GuardBenchConfig:
    """What is swept.

    Attributes:
        n, epsilon: the cells. delta: of every release.
        tasks, records: fresh public tasks, and the records behind the mean of each.
        releases: of each public task in a cell, each of other records and other noise: a share of
            0.05 is told from one of 0.03 by a thousand, not by some hundred.
        pool: images of each foreign set, of which a release takes n.
        draws: releases of each foreign set in a cell.
        seed: of all draws; not the guard's own.
    """

    n: tuple[int, ...] = (128, 512, 2000)
    epsilon: tuple[float, ...] = (0.2, 1.0, 8.0)
    delta: float = 1e-5
    tasks: int = 300
    records: int = 384
    releases: int = 4
    pool: int = 4000
    draws: int = 40
    seed: int = 9_001


def photographs(count: int, rng: torch.Generator) -> Tensor:
    """Crops of four photographs that scikit-learn and scikit-image ship, grey, 28×28.

    Args:
        count: N.
        rng: CPU generator.

    Returns:
        float32 [N, 1, 28, 28] in [-1, 1].
    """
    pictures = [np.asarray(p).mean(2) for p in load_sample_images().images]
    pictures += [data.camera().astype(float), data.coins().astype(float)]
    crops = []
    for index in range(count):
        picture = torch.from_numpy(pictures[index % len(pictures)]).float()
        height, width = picture.shape
        side = int(torch.randint(28, min(height, width) // 2, (1,), generator=rng))
        top = int(torch.randint(height - side, (1,), generator=rng))
        left = int(torch.randint(width - side, (1,), generator=rng))
        crop = picture[None, None, top : top + side, left : left + side]
        crops.append(functional.interpolate(crop, (28, 28), mode="area")[0] / 127.5 - 1)
    return torch.stack(crops)


def foreign_sets(count: int, rng: torch.Generator) -> dict[str, Tensor]:
    """The sets that should be flagged, float32 [N, 1, 28, 28] in [-1, 1] each, by name."""
    garments = read_fashion_mnist("train")[0]
    chosen = torch.randperm(len(garments), generator=rng)[:count]
    return {
        "fashion-mnist": garments[chosen],
        "photographs": photographs(count, rng),
        "noise": torch.rand(count, 1, 28, 28, generator=rng) * 2 - 1,
    }


def released(
    mean: Float, count: int, bundle: Bundle, budget: PrivacyBudget, rng: np.random.Generator
) -> tuple[Float, float, float]:
    """What a release of `count` records of this mean says: z, the std of its noise, and n.

    Gaussian noise in place of the discrete one, which is finer than any difference here.
    """
    spec = MechanismSpec(embedding_dim=len(mean), clip_norm=bundle.config.clip_norm)
    std = spec.calibrate(budget).sigma / STEPS_PER_UNIT
    share = std / (spec.clip_norm / 4)
    noisy = max(count + share * rng.standard_normal(), 1.0)
    z = (count * mean + std * rng.standard_normal(len(mean))) / noisy
    return z, std / noisy, noisy


def stored_rows(bundle_name: str, path: Path, *, earlier: bool = False) -> list[Row]:
    """The rows of a bundle as it is now; [] where nothing is measured yet.

    Args:
        bundle_name: of the bundle.
        path: JSONL.
        earlier: where there are none, those of the bundle before, see `stored_caption`.
    """
    base = base_name(load_bundle(bundle_name))
    base = measured_base(read_rows(path), BENCH, base) if earlier else base
    return [row for row in read_rows(path) if (row.bench, row.base) == (BENCH, base)]


def stored_caption(bundle_name: str, path: Path) -> str:
    """What has to stand above the table of `stored_rows(…, earlier=True)`, see `caption`."""
    base = base_name(load_bundle(bundle_name))
    return caption(measured_base(read_rows(path), BENCH, base), base)


def run_guard(
    config: GuardBenchConfig,
    bundle_name: str,
    draw_task: DrawTask,
    out: Path,
    *,
    progress: Progress | None = None,
) -> list[Row]:
    """Measures every cell that the results file does not hold yet.

    Args:
        config: see `GuardBenchConfig`.
        bundle_name: of a bundle with a guard beside it.
        draw_task: draws fresh tasks of the held-out split.
        out: JSONL.
        progress: called with what is being done.

    Returns:
        All rows of this bundle, old and new.

    Raises:
        UsageError: the bundle has no guard.
    """
    bundle = load_bundle(bundle_name)
    guard = load_guard(bundle.path, bundle.hash)
    if guard is None:
        raise UsageError(
            expected=f"calibration data of the guard beside the bundle {bundle.name!r}",
            found="none",
            todo="Make it: `hyperdp pretrain forecast BUNDLE --no-table`.",
        )
    base = f"{bundle.name}-{bundle.hash[:8]}"
    rows = stored_rows(bundle_name, out)
    done = {(r.private_set, r.n, r.epsilon) for r in rows}
    cells = [(n, e) for n in config.n for e in config.epsilon]
    names = (PUBLIC, "fashion-mnist", "photographs", "noise")
    if all((name, *cell) in done for name in names for cell in cells):
        return rows
    tell = progress if progress is not None else _silent
    means = _means(config, bundle, draw_task, tell)
    for name, find in means.items():
        for n, epsilon in cells:
            if (name, n, epsilon) in done:
                continue
            began = time.monotonic()
            tell(f"{name}: n={n} ε={epsilon:g}")
            budget = PrivacyBudget(epsilon=epsilon, delta=config.delta)
            rng = np.random.default_rng([config.seed, n, int(epsilon * 1000)])
            flags = [_flag(guard, mean, n, bundle, budget, rng) for mean in find(n, rng)]
            row = Row(
                bench=BENCH, base=base, private_set=name, method=f"level {LEVEL:g}", n=n,
                epsilon=epsilon, delta=config.delta, seed=config.seed, metric=METRIC,
                value=float(np.mean(flags)), seconds=round(time.monotonic() - began, 1),
                peak_rss_mb=peak_rss_mb(), **provenance(),
            )  # fmt: skip
            append_rows(out, [row], once=True)
            rows.append(row)
    return rows


def _flag(
    guard: Guard,
    mean: Float,
    count: int,
    bundle: Bundle,
    budget: PrivacyBudget,
    rng: np.random.Generator,
) -> bool:
    z, std, units = released(mean, count, bundle, budget, rng)
    return guard.judge(z[None], np.array([std]), np.array([units])).flagged


def _means(
    config: GuardBenchConfig, bundle: Bundle, draw_task: DrawTask, tell: Progress
) -> dict[str, Means]:
    """By set, what gives the means of its releases of n records."""
    rng = torch.Generator().manual_seed(config.seed)
    tasks = []
    for index in range(config.tasks):
        if index % 50 == 0:
            tell(f"{PUBLIC}: {index}/{config.tasks}")
        tasks.append(embed_public(bundle, draw_task(config.records, rng)))

    def of_tasks(n: int, draw: np.random.Generator) -> list[Float]:
        return [
            e[draw.choice(len(e), min(n, len(e)), replace=False)].mean(0)
            for e in tasks
            for _ in range(config.releases)
        ]

    def of_pool(embedded: Float) -> Means:
        def means(n: int, draw: np.random.Generator) -> list[Float]:
            size = min(n, len(embedded))
            return [
                embedded[draw.choice(len(embedded), size, replace=False)].mean(0)
                for _ in range(config.draws)
            ]

        return means

    found: dict[str, Means] = {PUBLIC: of_tasks}
    for name, images in foreign_sets(config.pool, rng).items():
        tell(f"{name}: embedding {len(images)} images")
        found[name] = of_pool(embed_public(bundle, images))
    return found


def _silent(_: str) -> None:
    """No progress."""
