"""A training run's folder: one process group at a time, and one recipe from first step to last."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperdp.errors import UsageError
from hyperdp.pretrain.checkpoint import CHECKPOINT
from hyperdp.processes import processes

LOCK = ".lock"
RECIPE = "recipe.json"
FREE = {f"loop.{name}" for name in ("steps", "tracker", "checkpoint_every", "log_every")}
"""What may be another when a run goes on: nothing that is trained depends on it but its length."""

SINCE = {"base_settings"}
"""What runs that were begun earlier did not note: it is taken as it is now."""

BEGUN = (CHECKPOINT, f"foretell/{CHECKPOINT}", "tokenizer.json")  # a run leaves one of them first
SHOWN = 4  # of the keys that differ


def run_settings(kind: str, config: Any, *, corpus: str, base: Path | None = None) -> Any:
    """All that what a run trains depends on, as plain types.

    Args:
        kind: `base` or `hyper`.
        config: the recipe's dataclass.
        corpus: digest of the public data.
        base: the base model's folder, whose weights are read once.
    """
    values = {"kind": kind, "corpus": corpus, **dataclasses.asdict(config)}
    if base is not None:
        values["base"] = f"weights {_weights_digest(base)}"  # wherever they lie
        values["base_settings"] = _settings_digest(base)
    return json.loads(json.dumps(values, default=str))


@contextmanager
def claimed(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Holds a run's folder, made where it is missing, for as long as it trains.

    Args:
        folder: of the run.
        settings: see `run_settings`; a run from before there were any takes them as they are now.

    Raises:
        UsageError: another process trains in it, or it holds a run of another recipe, public
            corpus or base model.
    """
    if not processes().is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                expected=f"nobody else to train in {folder}",
                found="another process that does",
                todo="Wait for it, or choose another folder with -o.",
            ) from None
        _agree(folder, settings)
        yield


def _agree(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / RECIPE
    begun = any((folder / name).is_file() for name in BEGUN)
    if begun and path.is_file():
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
        now = _flat(settings)
        differ = [
            f"{key} ({before.get(key, 'none')} before, {now.get(key, 'none')} now)"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
            and key not in FREE
            and not (key in SINCE and key not in before)
        ]
        if differ:
            more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
            raise UsageError(
                expected=f"the recipe that the run in {folder} was begun with",
                found=f"another {', '.join(differ[:SHOWN])}{more}",
                todo="Put it back, or choose another folder with -o; a recipe's `start` may name "
                "this one.",
            )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as one, with dots between the keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = value
    return flat


def _settings_digest(folder: Path) -> str:
    """SHA-256 of what a base model is besides weights, 16 hexadecimal digits.

    That is its parts' configurations, its scheduler's, its tokenizer and its prompt.
    """
    digest = hashlib.sha256()
    own = [folder / name for name in ("config.json", "prompt.json", "tokenizer.json")]
    parts = [file for kind in ("*/*.json", "*/*.txt") for file in folder.glob(kind)]
    for file in sorted([*filter(Path.is_file, own), *parts]):
        if file.parent == folder or not (file.parent / CHECKPOINT).exists():
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _weights_digest(folder: Path) -> str:
    """SHA-256 of a model's weight files, 16 hexadecimal digits; of a run's, of what it ended in."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        if file.name == CHECKPOINT:
            continue
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
