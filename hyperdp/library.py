"""A library of public tasks: the mean embedding of each, and the LoRA that was trained on it.

A folder with `library.json` (whose bundle, which settings) and a `task-00000.safetensors` for each
task. All of it is public.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from hyperdp import keys
from hyperdp.bundle import Bundle
from hyperdp.errors import DataError, UsageError
from hyperdp.lora import Weights

MANIFEST = "library.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library's folder, known to be of one bundle and one set of settings.

    Attributes:
        path: the folder.
        settings: how its LoRAs were made, in plain JSON types.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def make(cls, path: Path, bundle: Bundle, settings: Mapping[str, Any]) -> Library:
        """Begin a library, or go on with one of the same bundle and settings.

        Raises:
            UsageError: the folder holds a library of others.
        """
        manifest = {"format": FORMAT, "bundle_hash": bundle.hash, "settings": dict(settings)}
        data = keys.canonical_json(manifest)
        path.mkdir(parents=True, exist_ok=True)
        if (path / MANIFEST).exists() and (path / MANIFEST).read_bytes() != data:
            raise UsageError(
                expected=f"a library of this bundle and these settings in {path}, or none",
                found="one of another bundle or other settings",
                todo="Choose another folder, or remove it.",
            )
        keys.write_durably(path / MANIFEST, data)
        return cls(path=path, settings=dict(settings))

    @classmethod
    def load(cls, path: Path, bundle: Bundle) -> Library:
        """Read a library's manifest.

        Raises:
            UsageError: there is none, or it is another bundle's.
            DataError: it is damaged.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise UsageError(
                expected=f"a library of public tasks in {path}",
                found=f"no {MANIFEST}",
                todo="Make one with `hyperdp pretrain library`.",
            )
        try:
            manifest = json.loads(file.read_bytes())
            found, settings = manifest["bundle_hash"], dict(manifest["settings"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                expected=f"a library's manifest in {file}",
                found=type(error).__name__,
                todo="Make the library anew.",
            ) from error
        if found != bundle.hash:
            raise UsageError(
                expected=f"a library made with bundle {bundle.name!r}, {bundle.hash[:12]}",
                found=f"one made with {str(found)[:12]}",
                todo="Make one with `hyperdp pretrain library`: another φ means other embeddings.",
            )
        return cls(path=path, settings=settings)

    def __contains__(self, index: int) -> bool:
        return self._file(index).is_file()

    def add(self, index: int, mean: Tensor, weights: Weights) -> None:
        """Keep a task.

        Args:
            index: its number.
            mean: float32 [k], mean clipped embedding of its records.
            weights: one adapter, A [1, r, in, …] and B [1, out, r].
        """
        tensors = {"mean": mean}
        for name, (a, b) in weights.items():
            tensors |= {f"A/{name}": a, f"B/{name}": b}
        whole = {key: value.detach().float().cpu().contiguous() for key, value in tensors.items()}
        keys.write_durably(self._file(index), tensors_to_bytes(whole))

    def task(self, index: int) -> tuple[Tensor, Weights]:
        """A task's mean, float32 [k], and its adapter.

        Raises:
            DataError: its file is damaged.
        """
        file = self._file(index)
        try:
            tensors = load_file(file)
            names = [key.removeprefix("A/") for key in tensors if key.startswith("A/")]
            weights = {name: (tensors[f"A/{name}"], tensors[f"B/{name}"]) for name in names}
            return tensors["mean"], weights
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(
                expected=f"a task of a library in {file}",
                found=type(error).__name__,
                todo="Remove the file and run `hyperdp pretrain library` again.",
            ) from error

    def indices(self) -> list[int]:
        """Numbers of the tasks that are there, ascending."""
        files = self.path.glob("task-*.safetensors")
        return sorted(int(f.stem.removeprefix("task-")) for f in files)

    def means(self) -> Tensor:
        """Means of all tasks in the order of `indices`, float32 [M, k]."""
        return torch.stack([self.task(index)[0] for index in self.indices()])

    def _file(self, index: int) -> Path:
        return self.path / f"task-{index:05d}.safetensors"
