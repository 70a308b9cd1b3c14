"""Where a bundle's training ran: what `training.json` says of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from hyperdp.errors import UsageError
from hyperdp.manifest import MANIFEST
from hyperdp.processes import processes

TRAINING = "training.json"


def commit() -> str:
    """What HYPERDP_COMMIT says (of a copy of the tree), or that of this file's tree, or `unknown`.

    A commit whose sources were changed since is `…-dirty`.
    """
    told = os.environ.get("HYPERDP_COMMIT", "")
    git = shutil.which("git")
    if told or git is None:
        return told or "unknown"
    found = _asked([git, "rev-parse", "HEAD"])
    changed = _asked([git, "status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.toml"])
    return f"{found}-dirty" if found and changed else found or "unknown"


def _asked(words: list[str]) -> str:
    """What git answers of the tree that this file is in; "" where it has no answer."""
    here = Path(__file__).resolve().parent.parent
    found = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() if found.returncode == 0 else ""


def hardware() -> str:
    """Processor, threads, GPU and number of processes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    count = processes().num_processes
    launched = "" if count == 1 else f", {count} processes"
    processor = (models or [platform.processor()])[0]
    return f"{processor}, {torch.get_num_threads()} threads, {gpu}{launched}"


def training_record(
    recipe: dict[str, Any], command: str, seconds: float, folder: Path, *, corpus: str
) -> dict[str, Any]:
    """How a bundle came to be, for its `training.json`.

    Args:
        recipe: as plain types.
        command: what was typed.
        seconds: of training.
        folder: of the run; the curve is its `log.jsonl`.
        corpus: digest of the public data.
    """
    log = (folder / "log.jsonl").read_text().splitlines()
    return {
        "recipe": recipe,
        "corpus": corpus,
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "seconds": round(seconds),
        "curve": [json.loads(line) for line in log],
    }


def check_corpus(bundle: Path, corpus: str) -> None:
    """Raises UsageError where a bundle says that it was trained on other public data.

    Args:
        bundle: its folder; one from before bundles said so passes.
        corpus: digest of the public data at hand.
    """
    file = bundle / TRAINING
    trained = json.loads(file.read_bytes()).get("corpus") if file.is_file() else None
    if trained not in {None, corpus}:
        raise UsageError(
            expected=f"the public data that the bundle in {bundle} was trained on",
            found="other data",
            todo="Name it with --corpus: `glyphs`, or the folder that `hyperdp pretrain images` "
            "wrote.",
        )


def is_bundle_of(bundle: Path, recipe: dict[str, Any]) -> bool:
    """Whether a run's bundle is there already, of the recipe as it stands.

    Args:
        bundle: its folder.
        recipe: as plain types, as `training_record` was given it.
    """
    file = bundle / TRAINING
    if not file.is_file() or not (bundle / MANIFEST).is_file():
        return False
    made: Any = json.loads(file.read_bytes())["recipe"]
    return bool(made == json.loads(json.dumps(recipe)))
