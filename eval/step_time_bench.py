"""`hyperdp bench step-time`: a private step by our engine, by Opacus's hooks, and without privacy.

All are run in turn within one process, so that other work on the machine hits them alike. Reported
are CPU times and the median over the turns of the ratios within a turn. Data is public noise.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from opacus import GradSampleModule
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.eval.engine_rows import Figure, write_engine_rows
from hyperdp.eval.results import Row
from hyperdp.family import Family, UNetFlow
from hyperdp.lora import Weights, adapters, attach_peft, describe_sites, save_peft
from hyperdp.private.finetune import fresh_adapter
from hyperdp.private.learners.clipping import clipped_sum
from hyperdp.private.learners.dpsgd import DpSgd
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.learners.prism import Prism
from hyperdp.private.learners.step_rule import StepRule

BENCH = "step-time"
RATIOS = {  # of one step's time over another's
    "over_opacus": ("dpsgd", "opacus"),
    "over_non_private": ("dpsgd", "non_private"),
    "over_dpsgd": ("prism", "dpsgd"),
}
_CLIP, _STD = 0.01, 0.01


@dataclass(frozen=True, kw_only=True)
class StepTimeConfig:
    """What is timed.

    Attributes:
        batch: records a step, all in one forward pass.
        rank: r.
        repeats: turns that count; one more goes first.
    """

    batch: int = 32
    rank: int = 8
    repeats: int = 8


def step_times(bundle: Bundle, config: StepTimeConfig) -> dict[str, list[float]]:
    """CPU seconds of one step, in turn.

    Args:
        bundle: its base model and sites.
        config: see `StepTimeConfig`.

    Returns:
        `dpsgd`, `opacus`, `non_private`, `prism` → one time a turn.
    """
    steps = _steps(bundle, config.batch, config.rank)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(config.repeats + 1):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - begin)
    return times


def _steps(bundle: Bundle, batch: int, rank: int) -> dict[str, Callable[[], None]]:
    family = bundle.load_base()
    family.prepare_training()
    family.model.requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(batch, *family.image_shape, generator=rng) * 2 - 1
    fresh = fresh_adapter(describe_sites(family.model, bundle.config.sites), rank, rng)
    weights = {
        n: (a.detach(), torch.randn(b.shape, generator=rng) * 0.01) for n, (a, b) in fresh.items()
    }

    def private(rule: StepRule) -> Callable[[], None]:
        held = rule.start(weights)

        def step() -> None:
            grads = per_example_gradients(
                family.model,
                held,
                lambda: record_losses(family, images, 1, rng),
                examples=batch,
                wrt_a=rule.needs_a,
            )
            total = clipped_sum(rule, held, grads, clip_norm=_CLIP, valid=batch)
            noise = rule.noise(held, _STD, SystemNormal())
            mean = {
                k: ((a + noise[k][0]).float() / batch, (b + noise[k][1]).float() / batch)
                for k, (a, b) in total.items()
            }
            rule.update(held, mean, _STD / batch, 1e-3)

        return step

    return {
        "dpsgd": private(DpSgd()),
        "opacus": _opacus(bundle, weights, images, rng),
        "non_private": _non_private(family, weights, images, rng),
        "prism": private(Prism()),
    }


def _non_private(
    family: Family, weights: Weights, images: Tensor, rng: torch.Generator
) -> Callable[[], None]:
    leaves = {
        n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in weights.items()
    }
    optimizer = torch.optim.AdamW([p for pair in leaves.values() for p in pair], lr=1e-3)

    def step() -> None:
        with adapters(family.model, leaves):
            loss = record_losses(family, images, 1, rng).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _opacus(
    bundle: Bundle, weights: Weights, images: Tensor, rng: torch.Generator
) -> Callable[[], None]:
    """Opacus's hooks on PEFT's LoRA, clipped, noised and stepped as its optimiser does."""
    family = bundle.load_base()
    family.prepare_training()
    with tempfile.TemporaryDirectory() as name:
        save_peft(weights, Path(name), base_name=bundle.name)
        attached = attach_peft(family.model, Path(name))
    attached.train()  # the hooks sleep in eval mode; the base has no dropout
    for key, parameter in attached.named_parameters():
        parameter.requires_grad_("lora_" in key)
    hooked = GradSampleModule(attached, loss_reduction="sum")
    trained = [p for p in hooked.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    class Hooked(UNetFlow):
        """The family's loss through the hooked model, whose configuration is wrapped."""

        def __init__(self) -> None:
            self.model, self.scheduler = hooked, family.scheduler
            self.image_shape = family.image_shape
            self.steps = int(family.scheduler.config.num_train_timesteps)

    wrapped = Hooked()

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record_losses(wrapped, images, 1, rng).sum().backward()  # type: ignore[no-untyped-call]
        samples: list[Tensor] = [p.grad_sample for p in trained]
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
        factors = (_CLIP / (norms + 1e-6)).clamp(max=1.0)
        for p, s in zip(trained, samples, strict=True):
            p.grad = torch.einsum("i,i...", factors, s) + torch.randn_like(p) * _STD
            p.grad /= len(images)
            p.grad_sample = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def run_step_time(bundle: Bundle, config: StepTimeConfig, path: Path) -> list[Row]:
    """Times the steps and appends the rows.

    Args:
        bundle: whose base model and sites.
        config: see `StepTimeConfig`.
        path: JSONL.

    Returns:
        The rows: seconds of each step (medians), and the ratios of `RATIOS` (medians of the ratios
        within a turn).
    """
    begin = time.monotonic()
    times = step_times(bundle, config)
    size = f"r={config.rank} b={config.batch}"
    figures: list[Figure] = [
        ("seconds", f"{name} {size}", None, statistics.median(values))
        for name, values in times.items()
    ]
    for metric, (one, other) in RATIOS.items():
        pairs = zip(times[one], times[other], strict=True)
        figures.append((metric, f"{one} {size}", None, statistics.median(a / b for a, b in pairs)))
    return write_engine_rows(path, figures, bench=BENCH, base=bundle.name, begin=begin)
