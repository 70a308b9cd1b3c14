"""The whole story on real handwriting, in a few minutes: release, emit, sample, measure, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.metrics.fid import fid, kid
from hyperdp.eval.private_sets import load_private_set
from hyperdp.eval.study import SamplingConfig, control_weights, draw_images
from hyperdp.images import save_grid, to_uint8
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights, load_peft
from hyperdp.private.emit import emit_adapter
from hyperdp.private.readers import open_dataset
from hyperdp.private.release import Release, release

SIZES = (128, 2000)
PRIVATE_SET = "mnist-5k"
GRID = 64

Progress = Callable[[int, int], None]
Stage = Callable[[str], Progress]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo spends and draws.

    Attributes:
        bundle: name or folder.
        epsilon, delta: of each of the two releases, each of a dataset of its own.
        samples: images of each method.
        steps: sampling steps.
        bf16: bfloat16 sampling; fast where the processor has the instructions for it.
        seed: of the draw of the private records and of the starting noise.
    """

    bundle: str = "glyphs"
    epsilon: float = 1.0
    delta: float = 1e-5
    samples: int = 500
    steps: int = 16
    bf16: bool = False
    seed: int = 0


@dataclass(kw_only=True)
class DemoResult:
    """What the report shows.

    Attributes:
        bundle: that was used.
        releases: n → release.
        images: method → float32 [samples, 1, 28, 28].
        real: float32 [GRID, 1, 28, 28], private records.
        fid, kid: method → distance to the reference; `floor` is real against real.
        kid_std: method → standard deviation over subsets.
        reference: number of reference images.
        stages: (what, seconds).
    """

    bundle: Bundle
    releases: dict[int, Release] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    real: Tensor = field(default_factory=lambda: torch.zeros(0, 1, 28, 28))
    fid: dict[str, float] = field(default_factory=dict)
    kid: dict[str, float] = field(default_factory=dict)
    kid_std: dict[str, float] = field(default_factory=dict)
    reference: int = 0
    stages: list[tuple[str, float]] = field(default_factory=list)


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text()


def run_demo(config: DemoConfig, out: Path, stage: Stage) -> DemoResult:
    """Runs the demo; everything it makes lies in `out`.

    Args:
        config: see `DemoConfig`.
        out: a new or empty folder.
        stage: called with the name of each stage; returns its progress callback.

    Returns:
        All that the report shows.

    Raises:
        UsageError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="a new or empty folder",
            found=str(out),
            todo="Choose another --out, or remove it: releases are never overwritten.",
        )
    out.mkdir(parents=True, exist_ok=True)
    result = DemoResult(bundle=load_bundle(config.bundle))
    data = load_private_set(PRIVATE_SET)

    @contextmanager
    def timed(name: str):  # type: ignore[no-untyped-def]
        began = time.monotonic()
        yield stage(name)
        result.stages.append((name, time.monotonic() - began))

    sampling = SamplingConfig(
        count=config.samples, steps=config.steps, batch_size=50, bf16=config.bf16
    )
    weights: dict[str, Weights] = {
        "base": {},
        "public_mean": control_weights(result.bundle, "public_mean"),
        "other_task": control_weights(result.bundle, "other_task"),
    }
    for n in SIZES:
        records, labels = data.records(n, seed=config.seed)
        path = out / "private-data" / f"digits-{n}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(
            path, images=to_uint8(records)[..., 0], labels=np.asarray(labels).astype(str)
        )
        with timed(f"release, n = {n}"):
            result.releases[n] = _release(result.bundle, path, out / f"release-{n}", config, out)
        with timed(f"emit, n = {n}"):
            [folder] = emit_adapter(out / f"release-{n}", result.bundle, out / f"adapter-{n}")
            weights[f"hyper_{n}"] = load_peft(folder)
    result.real = data.records(GRID, seed=config.seed)[0]
    for name, adapter in weights.items():
        with timed(f"sample {name}") as progress:
            result.images[name] = draw_images(
                result.bundle, adapter, sampling, seed=config.seed, progress=progress
            )
            save_grid(result.images[name][:100], out / "grids" / f"{name}.png")
    with timed("measure"):
        _measure(result, data.pool[: config.samples], data.reference)
    return result


def _release(bundle: Bundle, path: Path, folder: Path, config: DemoConfig, out: Path) -> Release:
    dataset = open_dataset(path, image_shape=bundle.config.image_shape)
    return release(
        dataset.records(),
        bundle=bundle,
        budget=PrivacyBudget(epsilon=config.epsilon, delta=config.delta),
        ledger=Ledger(out / "ledger.db"),
        out=folder,
        dataset=str(path.resolve()),
    )


def _measure(result: DemoResult, real: Tensor, reference: Tensor) -> None:
    extractor = EfficientNetLite0()
    target: Features = extract(extractor, reference)
    result.reference = len(target)
    for name, images in {"floor": real, **result.images}.items():
        features = extract(extractor, images)
        result.fid[name] = fid(features, target).value
        distance = kid(features, target)
        result.kid[name], result.kid_std[name] = distance.value, distance.std or 0.0
