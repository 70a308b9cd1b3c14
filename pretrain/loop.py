"""The training loop of the public stage: AdamW, cosine, EMA, checkpoint, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperdp.errors import UsageError

CHECKPOINT = "checkpoint.safetensors"

Step = Callable[[torch.Generator, int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        lr: peak learning rate. warmup: steps of linear warm-up; then cosine to `lr_end` × lr.
        ema: decay of the weight average, ramped up as (1 + t) / (10 + t).
        clip: norm that gradients are clipped to.
        checkpoint_every, validate_every: steps.
        bf16: bfloat16 autocast of the forward pass.
        workers: threads that take a share of every step each, with one operator thread apiece.
            Small operators run faster side by side than split between threads.
        seed: of the public stage's randomness; no private path has one.
    """

    steps: int
    lr: float = 1e-3
    lr_end: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.0
    beta2: float = 0.99
    ema: float = 0.999
    clip: float = 1.0
    checkpoint_every: int = 200
    validate_every: int = 500
    bf16: bool = False
    workers: int = 1
    seed: int = 0


class Loop:
    """Trains one module with a step function; killed and resumed, it goes on where it stopped.

    Args:
        config: see `LoopConfig`.
        module: its parameters that require gradients are trained, averaged and saved.
        step: (rng, worker) → scalar loss of the worker's share and a dict of figures to log.
        folder: checkpoint and `log.jsonl` go here.
        validate: called with the averaged weights in place; returns figures to log.
        lr_scales: start of a parameter's name → factor on its learning rate.
    """

    def __init__(
        self,
        config: LoopConfig,
        module: nn.Module,
        step: Step,
        folder: Path,
        validate: Callable[[], dict[str, float]] | None = None,
        lr_scales: dict[str, float] | None = None,
    ) -> None:
        self.config, self.module, self.step_fn, self.folder, self.validate = (
            config,
            module,
            step,
            folder,
            validate,
        )
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        groups: dict[float, list[Tensor]] = {}
        for name, p in self.params.items():
            scales = [f for start, f in (lr_scales or {}).items() if name.startswith(start)]
            groups.setdefault(scales[0] if scales else 1.0, []).append(p)
        self.optimizer = torch.optim.AdamW(
            [{"params": params, "scale": scale} for scale, params in groups.items()],
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.average = {n: p.detach().clone() for n, p in self.params.items()}
        self.rng = torch.Generator().manual_seed(config.seed)
        self.done = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._resume()

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        c = self.config
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        part = (step - c.warmup) / max(1, c.steps - c.warmup)
        return c.lr * (c.lr_end + (1 - c.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    def run(self, title: str) -> None:
        """Trains until `steps`; the averaged weights are in the module afterwards."""
        c = self.config
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        smooth: dict[str, float] = {}
        with Progress(*columns) as bar, _workers(c.workers) as workers:
            task = bar.add_task(title, total=c.steps, completed=self.done, figures="")
            while self.done < c.steps:
                began = time.monotonic()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr_at(self.done) * group["scale"]
                self.optimizer.zero_grad(set_to_none=True)
                figures = self._gradients(workers)
                norm = nn.utils.clip_grad_norm_(list(self.params.values()), c.clip)
                if not torch.isfinite(norm):
                    raise FloatingPointError(
                        f"gradient norm {norm} at step {self.done}; lower lr or the noise"
                    )
                self.optimizer.step()
                self.done += 1
                self._average()
                self.seconds += time.monotonic() - began
                for name, value in figures.items():
                    smooth[name] = (
                        value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
                    )
                if self.done % 20 == 0:
                    bar.update(
                        task,
                        completed=self.done,
                        figures=" ".join(f"{k} {v:.4f}" for k, v in smooth.items()),
                    )
                if self.done % 100 == 0:
                    self._log({"step": self.done, "seconds": round(self.seconds, 1), **smooth})
                if self.validate is not None and (
                    self.done % c.validate_every == 0 or self.done == c.steps
                ):
                    self._log(
                        {"step": self.done, "seconds": round(self.seconds, 1), **self.validated()}
                    )
                if self.done % c.checkpoint_every == 0 or self.done == c.steps:
                    self._save()
        self.use_average()

    def _gradients(self, workers: ThreadPoolExecutor | None) -> dict[str, float]:
        """Fills the gradients of one step; returns the figures, averaged over the workers."""
        count, bf16 = self.config.workers, self.config.bf16
        device = next(iter(self.params.values())).device.type
        seeds = torch.randint(2**62, (count,), generator=self.rng).tolist()

        def share(worker: int) -> dict[str, float]:
            rng = torch.Generator().manual_seed(seeds[worker])
            with torch.autocast(device, torch.bfloat16, enabled=bf16):  # a thread has its own
                loss, figures = self.step_fn(rng, worker)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            return {"loss": float(loss.detach()), **figures}

        shares = [share(0)] if workers is None else list(workers.map(share, range(count)))
        return {name: sum(s[name] for s in shares) / count for name in shares[0]}

    def validated(self) -> dict[str, float]:
        """Figures of `validate` with the averaged weights in place."""
        if self.validate is None:
            return {}
        own = {n: p.detach().clone() for n, p in self.params.items()}
        self.use_average()
        figures = self.validate()
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(own[n])
        return figures

    def use_average(self) -> None:
        """Puts the averaged weights into the module."""
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(self.average[n])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.params.values()], 1 - decay
        )

    def _log(self, row: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()}
        for name, p in self.params.items():
            tensors[f"param/{name}"] = p.detach().contiguous()
            tensors[f"average/{name}"] = self.average[name].contiguous()
            state = self.optimizer.state.get(p)
            if not state:  # a parameter that this loop's loss does not reach
                continue
            tensors[f"exp_avg/{name}"] = state["exp_avg"].contiguous()
            tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"].contiguous()
        temporary = self.folder / (CHECKPOINT + ".tmp")
        save_file(
            tensors, temporary, metadata={"done": str(self.done), "seconds": str(self.seconds)}
        )
        temporary.replace(self.folder / CHECKPOINT)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        self.done, self.seconds = int(metadata["done"]), float(metadata["seconds"])
        self.rng.set_state(tensors["rng"])
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(tensors[f"param/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
                if f"exp_avg/{name}" not in tensors:
                    continue
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(self.done)),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(p.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(p.device),
                }


def load_average(folder: Path, module: nn.Module) -> None:
    """Loads the averaged weights that a run left in `folder` into the parameters of a module.

    Parameters of the run that the module does not have are left alone.

    Raises:
        UsageError: no checkpoint there, or one that lacks a parameter or has it in another size.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UsageError(
            expected=f"the folder of a training run, with {CHECKPOINT}",
            found=str(folder),
            todo="Give the folder that `hyperdp pretrain` wrote with -o.",
        )
    params = dict(module.named_parameters())
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        sizes = {
            name: tuple(file.get_slice(f"average/{name}").get_shape())
            for name in params
            if f"average/{name}" in names
        }
        wrong = [name for name, p in params.items() if sizes.get(name) != tuple(p.shape)]
        if wrong:
            raise UsageError(
                expected=f"a run of the same recipe in {folder}",
                found=f"missing or of another size there: {', '.join(wrong[:4])}",
                todo="Train with the sizes of that run, or begin afresh.",
            )
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(file.get_tensor(f"average/{name}"))


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads for the shares of a step, with the operator threads divided among them."""
    if count == 1:
        yield None
        return
    before = torch.get_num_threads()
    each = max(1, before // count)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
