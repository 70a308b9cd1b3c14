"""The whole story on real handwriting, in a few minutes: release, emit, sample, measure, report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdp import __version__
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle, load_bundle
from hyperdp.errors import UsageError
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.flags import Findings, Flag, flags
from hyperdp.eval.foreign_flag import foreign_flag
from hyperdp.eval.foretold import ForetoldLine, foretell_releases
from hyperdp.eval.gallery import failures_panel, pairs_panel, side_by_side
from hyperdp.eval.metrics.fid import fid, kid
from hyperdp.eval.metrics.interval import Interval, fid_interval
from hyperdp.eval.metrics.precision_recall import SHARES, ManifoldScores, manifold_scores
from hyperdp.eval.private_sets import load_private_set
from hyperdp.eval.reading import METHODS, MetricRow
from hyperdp.eval.release_facts import ReleaseFacts
from hyperdp.eval.report import GridPanel, ReportInput
from hyperdp.eval.results import hardware
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
SIDE_BY_SIDE = ("base", "public_mean", f"hyper_{SIZES[-1]}")
LABELS = {
    "base": "base model",
    "public_mean": "ρ(public mean)",
    "other_task": "ρ(another task)",
    **{f"hyper_{n}": f"hyperdp, n = {n:,}" for n in SIZES},
}

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
        manifold: method → precision, recall, density and coverage; `floor` is real against real.
        fid_interval: method → 95 % interval.
        findings: n → flags and the figures behind them.
        checks: pictures of the closest pairs and of the worst images.
        reference: number of reference images.
        guard: n → whether the release is foreign to the bundle; {} where the bundle cannot tell.
        foretold: what the bundle's forecast said of each release; [] where it has none.
        stages: (what, seconds).
    """

    bundle: Bundle
    releases: dict[int, Release] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    real: Tensor = field(default_factory=lambda: torch.zeros(0, 1, 28, 28))
    fid: dict[str, float] = field(default_factory=dict)
    kid: dict[str, float] = field(default_factory=dict)
    kid_std: dict[str, float] = field(default_factory=dict)
    manifold: dict[str, ManifoldScores] = field(default_factory=dict)
    fid_interval: dict[str, Interval] = field(default_factory=dict)
    findings: dict[int, Findings] = field(default_factory=dict)
    checks: list[GridPanel] = field(default_factory=list)
    reference: int = 0
    guard: dict[int, Flag] = field(default_factory=dict)
    foretold: list[ForetoldLine] = field(default_factory=list)
    stages: list[tuple[str, float]] = field(default_factory=list)


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
    PrivacyBudget(epsilon=config.epsilon, delta=config.delta)  # checked before anything is written
    out.mkdir(parents=True, exist_ok=True)
    result = DemoResult(bundle=load_bundle(config.bundle))
    data = load_private_set(PRIVATE_SET)

    @contextmanager
    def timed(name: str) -> Iterator[Progress]:
        began = time.monotonic()
        yield stage(name)
        result.stages.append((name, time.monotonic() - began))

    sampling = SamplingConfig(
        count=config.samples, steps=config.steps, batch_size=50, bf16=config.bf16
    )
    weights: dict[str, Weights] = {
        "base": {},
        "public_mean": control_weights(result.bundle, "public_mean"),
        "other_task": {},  # at the noise level of the larger release, once that is known
    }
    drawn, drawn_labels = data.records(sum(SIZES), seed=config.seed)
    starts = dict(zip(SIZES, (0, SIZES[0]), strict=True))
    for n in SIZES:  # two datasets without a common record, so that each record is in one release
        part = slice(starts[n], starts[n] + n)
        records, labels = drawn[part], None if drawn_labels is None else drawn_labels[part]
        path = out / "private-data" / f"digits-{n}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(
            path, images=to_uint8(records)[..., 0], labels=np.asarray(labels).astype(str)
        )
        with timed(f"release, n = {n:,}"):
            result.releases[n] = _release(result.bundle, path, out / f"release-{n}", config)
        with timed(f"emit, n = {n:,}"):
            [folder] = emit_adapter(out / f"release-{n}", result.bundle, out / f"adapter-{n}")
            weights[f"hyper_{n}"] = load_peft(folder)
        if (flag := foreign_flag(result.releases[n], result.bundle)) is not None:
            result.guard[n] = flag
    named = [(f"n = {n:,}", made) for n, made in result.releases.items()]
    result.foretold = foretell_releases(result.bundle, named)
    level = float(result.releases[SIZES[-1]].mean_noise_std()[0])
    weights["other_task"] = control_weights(result.bundle, "other_task", noise_std=level)
    result.real = drawn[-GRID:]
    for name, adapter in weights.items():
        with timed(f"sample: {LABELS[name]}") as progress:
            result.images[name] = draw_images(
                result.bundle, adapter, sampling, seed=config.seed, progress=progress
            )
            save_grid(result.images[name][:100], out / "grids" / f"{name}.png")
    panels = [result.images[name][:GRID] for name in SIDE_BY_SIDE]
    save_grid(side_by_side(panels), out / "grids" / "side-by-side.png", columns=26)
    with timed("measure"):
        parts = {n: drawn[starts[n] : starts[n] + n] for n in SIZES}
        _measure(result, data.pool[: config.samples], data.reference, parts)
    return result


def _release(bundle: Bundle, path: Path, folder: Path, config: DemoConfig) -> Release:
    dataset = open_dataset(path, image_shape=bundle.config.image_shape)
    return release(
        dataset.records(),
        bundle=bundle,
        budget=PrivacyBudget(epsilon=config.epsilon, delta=config.delta),
        ledger=Ledger(folder.parent / "ledger.db"),
        out=folder,
        # A dataset has one ledger, and each demo has a new one.
        dataset=f"{path.resolve()} {secrets.token_hex(16)}",
    )


def _measure(
    result: DemoResult, real: Tensor, reference: Tensor, private: dict[int, Tensor]
) -> None:
    extractor = EfficientNetLite0()
    target: Features = extract(extractor, reference)
    result.reference = len(target)
    found: dict[str, Features] = {}
    for name, images in {"floor": real, **result.images}.items():
        features = found[name] = extract(extractor, images)
        result.fid[name] = fid(features, target).value
        distance = kid(features, target)
        result.kid[name], result.kid_std[name] = distance.value, distance.std or 0.0
        result.manifold[name] = manifold_scores(features, target)
        if name != "floor":
            result.fid_interval[name] = fid_interval(features, target, value=result.fid[name])
    for n, records in private.items():
        ours = found[f"hyper_{n}"]
        # Its control has the noise level of the larger release: only there are they comparable.
        controls = {LABELS["other_task"]: found["other_task"]} if n == SIZES[-1] else {}
        result.findings[n] = flags(
            ours, train=extract(extractor, records), held_out=target, controls=controls
        )
    best = f"hyper_{SIZES[-1]}"
    result.checks = [
        pairs_panel(result.findings[SIZES[-1]], result.images[best], private[SIZES[-1]], reference),
        failures_panel(found[best], target, result.images[best]),
    ]


def demo_report(result: DemoResult, config: DemoConfig, *, command: str) -> ReportInput:
    """What the demo's page says.

    Args:
        result: of `run_demo`.
        config: of the same run.
        command: what was typed.
    """
    sizes = {f"hyper_{n}": n for n in SIZES}
    rows = [
        MetricRow(
            method="hyper" if name in sizes else name,
            label=LABELS[name],
            n=sizes.get(name),
            epsilon=config.epsilon if name in sizes else None,
            fid=result.fid[name],
            kid=result.kid[name],
            kid_std=result.kid_std[name],
            fid_low=result.fid_interval[name].low,
            fid_high=result.fid_interval[name].high,
            **{share: getattr(result.manifold[name], share) for share in SHARES},
        )
        for name in LABELS
    ]
    grids = [
        GridPanel(
            title=LABELS[name], caption=METHODS[row.method], images=result.images[name][:GRID]
        )
        for name, row in zip(LABELS, rows, strict=True)
    ]
    real = GridPanel(
        title="the private records",
        caption="real handwriting, which no generated image should repeat",
        images=result.real,
        private=True,
    )
    return ReportInput(
        title="Handwritten digits with one private measurement",
        private_about="Scanned handwritten digits (MNIST): one dataset of 128 records and one of "
        "2,000, each released once. No record is in both.",
        releases=[ReleaseFacts.of(made, f"n = {n:,}") for n, made in result.releases.items()],
        grids=[*grids, real],
        rows=rows,
        floor_fid=result.fid["floor"],
        floor_kid=result.kid["floor"],
        floor=(*(getattr(result.manifold["floor"], share) for share in SHARES),),
        flags=[
            replace(flag, text=f"n = {n:,}. {flag.text}")
            for n, findings in result.findings.items()
            for flag in findings.flags
        ],
        guard=[replace(flag, text=f"n = {n:,}. {flag.text}") for n, flag in result.guard.items()],
        foretold=result.foretold,
        checks=result.checks,
        extractor=EfficientNetLite0.name,
        samples=config.samples,
        reference=result.reference,
        stages=result.stages,
        command=command,
        hardware=hardware() + (", bfloat16 sampling" if config.bf16 else ""),
        version=__version__,
        seed=config.seed,
    )
