"""All that a training run is, in one file: weights, averages, moments, generator, sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperdp.errors import UsageError

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Training:
    """What changes from step to step.

    Attributes:
        params: name → parameter that is trained.
        average: name → its running average.
        optimizer: AdamW over the parameters.
        rng: CPU generator that every step is seeded from.
    """

    params: Mapping[str, Tensor]
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    rng: torch.Generator

    def save(self, path: Path, facts: dict[str, Any], sampler: Tensor | None) -> None:
        """Writes it whole, or leaves what was there.

        Args:
            path: the file.
            facts: plain values; "done" is the number of steps taken.
            sampler: state of what draws the tasks, int64, or None.
        """
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()}
        if sampler is not None:
            tensors["sampler"] = sampler
        for name, p in self.params.items():
            tensors[f"param/{name}"] = p.detach().contiguous()
            tensors[f"average/{name}"] = self.average[name].contiguous()
            moments = self.optimizer.state.get(p)
            if not moments:  # a parameter that this loop's loss does not reach
                continue
            tensors[f"exp_avg/{name}"] = moments["exp_avg"].contiguous()
            tensors[f"exp_avg_sq/{name}"] = moments["exp_avg_sq"].contiguous()
        temporary = path.with_name(path.name + ".tmp")
        save_file(tensors, temporary, metadata={k: json.dumps(v) for k, v in facts.items()})
        temporary.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> tuple[dict[str, Any], Tensor | None]:
        """Takes everything back to where the file was written.

        Returns:
            The facts, and the sampler's state.

        Raises:
            UsageError: the file is damaged, or another network's.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, AttributeError) as error:
            raise UsageError(
                expected=f"the checkpoint of a training run in {path}",
                found=f"{type(error).__name__}: the file is damaged",
                todo="Put a copy of it back, or begin in another folder.",
            ) from error
        wrong = [
            name
            for name, p in self.params.items()
            if f"param/{name}" not in tensors or tensors[f"param/{name}"].shape != p.shape
        ]
        if wrong or "done" not in facts or "rng" not in tensors:
            raise UsageError(
                expected=f"a checkpoint of this network in {path}",
                found=f"missing or of another size there: {', '.join(wrong[:4]) or 'its state'}",
                todo="Put the recipe's sizes back, or begin in another folder.",
            )
        self.rng.set_state(tensors["rng"])
        for name, p in self.params.items():
            p.copy_(tensors[f"param/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
            if f"exp_avg/{name}" not in tensors:
                continue
            self.optimizer.state[p] = {
                # A fused optimiser wants its step beside the parameter.
                "step": torch.tensor(float(facts["done"]), device=p.device),
                "exp_avg": tensors[f"exp_avg/{name}"].to(p.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(p.device),
            }
        return facts, tensors.get("sampler")


def cut_log(path: Path, done: int) -> None:
    """Drops the rows of steps that are to be taken once more."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def load_average(folder: Path, module: nn.Module, parts: Sequence[str] = ()) -> None:
    """Loads the averaged weights that a run left in `folder` into the parameters of a module.

    Parameters of the run that the module does not have are left alone, and so are those of the
    module whose names begin with none of `parts`, where these are given.

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
    params = {
        name: p
        for name, p in module.named_parameters()
        if not parts or name.startswith(tuple(parts))
    }
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        sizes = {
            name: tuple(file.get_slice(f"average/{name}").get_shape())
            for name in params
            if f"average/{name}" in names
        }
        wrong = [name for name, p in params.items() if sizes.get(name) != tuple(p.shape)]
        wrong += [part for part in parts if not any(name.startswith(part) for name in params)]
        if wrong:
            raise UsageError(
                expected=f"a run of the same recipe in {folder}",
                found=f"missing or of another size there: {', '.join(wrong[:4])}",
                todo="Train with the sizes of that run, or begin afresh.",
            )
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(file.get_tensor(f"average/{name}"))
