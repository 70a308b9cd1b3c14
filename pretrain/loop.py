"""The training loop of the public stage: AdamW, cosine, EMA, checkpoint, resume.

On a CPU a resumed run is exact, bit for bit, as long as a process has one share or two: more of
them add up their gradients in the order in which they are done.

One process, or several under `accelerate launch` or `torchrun`: a step is made of shares, and the
processes divide them, so that the shares and what they draw do not depend on how many there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hyperdp.errors import UsageError
from hyperdp.graph import GraphedShare
from hyperdp.pretrain import shares
from hyperdp.pretrain.bars import training_bar
from hyperdp.pretrain.checkpoint import CHECKPOINT, Training, cut_log
from hyperdp.pretrain.loop_config import LoopConfig

Figures = Mapping[str, Tensor | float]


# (rng, worker) → the scalar loss of the worker's share, and figures to log. rng is a CPU generator
# of all that is drawn, or None for the device's own, which the loop has seeded.
Step = Callable[[Any, int], tuple[Tensor, Figures]]


class Sampler(Protocol):
    """What draws the tasks, where that has a state."""

    def state(self) -> Tensor:
        """int64 [workers, n]; zeros for the shares of other processes."""

    def restore(self, state: Tensor) -> None:
        """Takes it back to a state."""


class Loop:
    """Trains one module with a step function; killed and resumed, it goes on where it stopped.

    Args:
        config: see `LoopConfig`.
        module: its parameters that require gradients are trained, averaged and saved.
        step: see `Step`.
        folder: checkpoint and `log.jsonl` go here.
        validate: called with the averaged weights in place; returns figures to log.
        lr_scales: start of a parameter's name → factor on its learning rate.
        sampler: kept in the checkpoint too.
        after: called with the worker when the gradients of its share are there.
        before: called with the worker before its share.

    Raises:
        UsageError: the processes cannot divide the shares, accelerate has no such tracker, a
            graph is asked for where there cannot be one, or the checkpoint in `folder` is damaged,
            another network's, or of a longer run.
    """

    def __init__(
        self,
        config: LoopConfig,
        module: nn.Module,
        step: Step,
        folder: Path,
        validate: Callable[[], dict[str, float]] | None = None,
        lr_scales: dict[str, float] | None = None,
        sampler: Sampler | None = None,
        after: Callable[[int], None] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.module, self.step_fn = config, module, step
        self.folder, self.validate = folder, validate
        self.sampler, self.after, self.before = sampler, after, before
        self.accelerator = shares.make_accelerator(config.tracker, folder)
        self.bf16 = config.bf16 or self.accelerator.mixed_precision == "bf16"
        module.to(self.accelerator.device)
        torch.backends.cudnn.benchmark = True  # a GPU tries its convolutions once
        self.shares = shares.own_shares(config.workers, self.accelerator)
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
        self.done = self.resumed = 0
        self.seconds = 0.0
        self.smooth: dict[str, float] = {}
        self.figures: dict[int, dict[str, Tensor | float]] = {}
        self.graph = self._graphed() if config.graph else None
        shares.check_dropout(module, len(self.shares))
        self.share: nn.Module = _Share(self)
        if self.accelerator.num_processes > 1:
            self.share = self.accelerator.prepare_model(self.share)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._resume()

    def run(self, title: str) -> None:
        """Trains until `steps`; the averaged weights are in the module afterwards.

        Raises:
            UsageError: a gradient is not finite.
        """
        c = self.config
        main = self.accelerator.is_main_process
        if c.tracker:
            self.accelerator.init_trackers(title)
        with training_bar(shown=main) as bar, shares.threads(len(self.shares)) as workers:
            task = bar.add_task(title, total=c.steps, completed=self.done, figures="")
            while self.done < c.steps:
                began = time.monotonic()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.config.lr_at(self.done) * group["scale"]
                if self.graph is None:  # else the gradients are overwritten where they are
                    self.optimizer.zero_grad(set_to_none=True)
                figures = self._gradients(workers)
                norm = nn.utils.clip_grad_norm_(list(self.params.values()), c.clip)
                if not torch.isfinite(norm):
                    raise UsageError(
                        expected="gradients that are finite",
                        found=f"a norm of {float(norm)} at step {self.done}",
                        todo="Lower lr or noise_high in the recipe, and begin in another folder: "
                        "from the last checkpoint on it would diverge again.",
                    )
                self.optimizer.step()
                self.done += 1
                self._average()
                self.seconds += time.monotonic() - began
                for name, value in figures.items():
                    before = self.smooth.get(name, value)
                    self.smooth[name] = 0.98 * before + 0.02 * value
                if self.done % 20 == 0:
                    bar.update(
                        task,
                        completed=self.done,
                        figures=" ".join(f"{k} {v:.4f}" for k, v in self.smooth.items()),
                    )
                if self.done % c.log_every == 0:
                    self._log(self.smooth)
                if self.validate is not None and (
                    self.done % c.validate_every == 0 or self.done == c.steps
                ):
                    if main:
                        self._log(self.validated())
                    self.accelerator.wait_for_everyone()
                if self.done % c.checkpoint_every == 0 or self.done == c.steps:
                    self._save()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.use_average()

    def _gradients(self, workers: ThreadPoolExecutor | None) -> dict[str, float]:
        """Fills the gradients of one step; returns the figures, averaged over the shares."""
        count, processes = self.config.workers, self.accelerator.num_processes
        kind = self.accelerator.device.type
        seeds = torch.randint(2**62, (count,), generator=self.rng).tolist()
        if self.before is not None:  # not in the threads: it may start processes
            for worker in self.shares:
                self.before(worker)
        torch.manual_seed(seeds[self.shares[0]])  # of what a base model's own layers may draw

        def share(worker: int) -> None:
            if self.graph is not None:
                self.graph()
                return
            rng = torch.Generator().manual_seed(seeds[worker])
            waits = processes > 1 and worker != self.shares[-1]  # gradients travel once
            with self.accelerator.no_sync(self.share) if waits else nullcontext():
                with torch.autocast(kind, torch.bfloat16, enabled=self.bf16):  # a thread's own
                    loss = self.share(rng, worker)
                # Processes average what each of them has added up.
                (loss * (processes / count)).backward()
            self.figures[worker]["loss"] = loss.detach()
            if self.after is not None:
                self.after(worker)

        if self.graph is None:
            self.figures.clear()
        if workers is None:
            for worker in self.shares:
                share(worker)
        else:
            list(workers.map(share, self.shares))
        own = [self.figures[worker] for worker in self.shares]
        names = sorted(own[0])
        # Together and at the end: reading a figure waits for the GPU.
        device = self.accelerator.device
        figures = [torch.as_tensor(f[name], device=device).float() for f in own for name in names]
        totals = torch.stack(figures).double().cpu().view(len(own), len(names)).sum(0)
        if processes > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum")
        return dict(zip(names, (totals / count).tolist(), strict=True))

    def _graphed(self) -> GraphedShare:
        shares.check_graph(self.config, self.accelerator, fed=self.before is not None)

        def share() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16):
                loss, figures = self.step_fn(None, 0)
            self.figures[0] = {**figures, "loss": loss.detach()}
            return loss

        return GraphedShare(share, self.params.values())

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

    def _log(self, figures: dict[str, float]) -> None:
        if self.config.tracker:
            self.accelerator.log(figures, step=self.done)
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.done, "seconds": round(self.seconds, 1), **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        sampler = None
        if self.sampler is not None:
            state = self.sampler.state().to(self.accelerator.device)
            others = [w for w in range(self.config.workers) if w not in self.shares]
            state[others] = 0  # after a resume they stand as they were saved
            sampler = self.accelerator.reduce(state, "sum").cpu()
        if self.accelerator.is_main_process:
            training = Training(self.params, self.average, self.optimizer, self.rng)
            facts = {"done": self.done, "seconds": self.seconds, "smooth": self.smooth}
            training.save(self.folder / CHECKPOINT, facts, sampler)

    def _resume(self) -> None:
        training = Training(self.params, self.average, self.optimizer, self.rng)
        facts, sampler = training.load(self.folder / CHECKPOINT)
        self.done, self.seconds = int(facts["done"]), float(facts["seconds"])
        if self.done > self.config.steps:
            raise UsageError(
                expected=f"steps of at least {self.done}, which the run in {self.folder} has taken",
                found=str(self.config.steps),
                todo="Ask for as many or more, or begin in another folder.",
            )
        self.resumed, self.smooth = self.done, facts.get("smooth", {})
        if self.sampler is not None and sampler is not None:
            self.sampler.restore(sampler)
        if self.accelerator.is_main_process:
            cut_log(self.folder / "log.jsonl", self.done)


class _Share(nn.Module):
    """A share of a step as a module, which is what `DistributedDataParallel` wraps."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.module = loop.module
        self._loop = [loop]  # in a list, so that it is no part of the module

    def forward(self, rng: Any, worker: int) -> Tensor:
        """The scalar loss of the share; its figures go to the loop."""
        [loop] = self._loop
        loss, figures = loop.step_fn(rng, worker)
        loop.figures[worker] = dict(figures)
        return loss
