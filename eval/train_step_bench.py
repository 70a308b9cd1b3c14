"""`hyperdp bench train-step`: what G adapters in one batch cost, beside a loop and a plain step.

Three steps over the same records of the same base, in turn within one run, so that other work on
the machine hits them alike: all G adapters in one batched step; one after another, a step for each
task, as a trainer without batched adapters takes them; and the plain base step of the same batch,
which trains the base's own weights and has no adapters at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperdp.bundle import Bundle
from hyperdp.eval.engine_rows import Figure, write_engine_rows
from hyperdp.eval.results import Row
from hyperdp.family import Family
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import Weights, adapters, describe_sites, pick

BENCH = "train-step"
LEAST_SPEEDUP, MOST_OVERHEAD = 4.0, 1.35


@dataclass(frozen=True, kw_only=True)
class TrainStepConfig:
    """What is timed.

    Attributes:
        tasks: G. queries: b, records of each task in a step.
        repeats: turns that count; one more goes first.
        device: where; None for the GPU if there is one.
    """

    tasks: int = 8
    queries: int = 4
    repeats: int = 7
    device: str | None = None

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class Steps:
    """The three steps over one base model and hypernetwork, which are left as they were.

    Args:
        bundle: its base, sites and the shape of its hypernetwork.
        config: see `TrainStepConfig`.
    """

    def __init__(self, bundle: Bundle, config: TrainStepConfig) -> None:
        self.config, device = config, config.place
        self.base: Family = bundle.load_base()
        if device.type == "cpu":
            self.base.prepare_training()
        self.base.to(device)
        sites = describe_sites(self.base.model, bundle.config.sites)
        self.hyper = Hypernetwork(bundle.hypernetwork.config, sites)
        self.hyper.load_state_dict(bundle.hypernetwork.state_dict())
        self.hyper.to(device).train()
        rng = torch.Generator().manual_seed(0)
        groups, count = config.tasks, config.queries
        self.images = torch.rand(groups, count, *self.base.image_shape, generator=rng) * 2 - 1
        self.images = self.images.to(device)
        self.noise = torch.randn(groups, count, *self.base.noise_shape, generator=rng).to(device)
        self.times = torch.rand(groups, count, generator=rng).to(device)
        self.means = (0.1 * torch.randn(groups, bundle.config.embed_dim, generator=rng)).to(device)
        self.levels = torch.full((groups,), 0.01, device=device)

    def batched(self) -> Tensor:
        """One step of all tasks: losses float32 [G]."""
        with self._training(self.hyper):
            losses = self.losses()
            self._backward(losses.mean())
        return losses.detach()

    def losses(self) -> Tensor:
        """The losses of all tasks under the adapters of one pass of ρ, float32 [G]."""
        return self._losses(self.hyper(self.means, self.levels), slice(None))

    def looped(self) -> Tensor:
        """A forward and a backward pass of the base for each task, with gradients added up."""
        found = []
        with self._training(self.hyper):
            for g in range(self.config.tasks):
                part = slice(g, g + 1)
                weights = pick(self.hyper(self.means[part], self.levels[part]), 0)
                [loss] = self._losses(weights, part)
                self._backward(loss / self.config.tasks)
                found.append(loss.detach())
        return torch.stack(found)

    def plain(self) -> Tensor:
        """A training step of the base itself, its own weights in place of the adapters'."""
        with self._training(self.base.model):
            losses = self._losses({}, slice(None))
            self._backward(losses.mean())
        return losses.detach()

    def _losses(self, weights: Weights, part: slice) -> Tensor:
        images = self.images[part]
        with adapters(self.base.model, weights):
            losses = self.base.loss_at(
                images.flatten(0, 1), self.times[part].flatten(), self.noise[part].flatten(0, 1)
            )
        return losses.view(images.shape[:2]).mean(1)

    def _training(self, module: nn.Module) -> _Trained:
        return _Trained((self.base.model, self.hyper), module)

    @staticmethod
    def _backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class _Trained:
    """Only one of some modules has gradients, and they are gone before it is used."""

    def __init__(self, modules: tuple[nn.Module, ...], trained: nn.Module) -> None:
        self.modules, self.trained = modules, trained

    def __enter__(self) -> None:
        for module in self.modules:
            module.requires_grad_(module is self.trained)
        self.trained.zero_grad(set_to_none=True)

    def __exit__(self, *_: object) -> None:
        device = next(self.trained.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def time_steps(steps: Steps, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, in turn: of this process's CPU, or of the clock where a GPU computes.

    Returns:
        `batched`, `looped`, `plain` → one time a turn.
    """
    clock: Callable[[], float] = (
        time.perf_counter if steps.config.place.type == "cuda" else time.process_time
    )
    ways = {"batched": steps.batched, "looped": steps.looped, "plain": steps.plain}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            if turn:
                times[name].append(clock() - begin)
    return times


def run_train_step(bundle: Bundle, config: TrainStepConfig, path: Path) -> list[Row]:
    """Times the steps and appends the rows.

    Args:
        bundle: whose base and hypernetwork.
        config: see `TrainStepConfig`.
        path: JSONL.

    Returns:
        The rows: seconds of each step (medians), `speedup` of the batched step over the loop and
        its `overhead` over the plain one (medians of the ratios within a turn).
    """
    begin = time.monotonic()
    times = time_steps(Steps(bundle, config), config.repeats)

    def ratio(one: str, other: str) -> float:
        pairs = zip(times[one], times[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    size = f"G={config.tasks} b={config.queries}"
    figures: list[Figure] = [
        ("seconds", f"{name} {size}", None, statistics.median(values))
        for name, values in times.items()
    ]
    figures += [
        ("speedup", f"batched {size}", None, ratio("looped", "batched")),
        ("overhead", f"batched {size}", None, ratio("batched", "plain")),
    ]
    return write_engine_rows(
        path, figures, bench=BENCH, base=bundle.name, begin=begin, device=config.place
    )
