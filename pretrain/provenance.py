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

from hyperdp.processes import processes


def commit() -> str:
    """What HYPERDP_COMMIT says (of a copy of the tree), or the working folder's, or `unknown`."""
    told = os.environ.get("HYPERDP_COMMIT", "")
    git = shutil.which("git")
    if told or git is None:
        return told or "unknown"
    found = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


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
    recipe: dict[str, Any], command: str, seconds: float, folder: Path
) -> dict[str, Any]:
    """How a bundle came to be, for its `training.json`.

    Args:
        recipe: as plain types.
        command: what was typed.
        seconds: of training.
        folder: of the run; the curve is its `log.jsonl`.
    """
    log = (folder / "log.jsonl").read_text().splitlines()
    return {
        "recipe": recipe,
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "seconds": round(seconds),
        "curve": [json.loads(line) for line in log],
    }
