"""Schedulers on disk: the diffusers class that a folder's configuration names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers

from hyperdp.errors import UsageError

FILE = "scheduler_config.json"


def scheduler_class(folder: Path) -> str:
    """Name of the class in `folder/scheduler`.

    Raises:
        UsageError: there is none, or it names no scheduler.
    """
    path = folder / "scheduler" / FILE
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            expected=f"a diffusers scheduler in {path}",
            found=type(error).__name__,
            todo="Give the folder that `save_pretrained` of the pipeline wrote.",
        ) from error
    if not isinstance(name, str) or not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise UsageError(
            expected="a scheduler of diffusers",
            found=f"{name!r} in {path}",
            todo="Use a base model with a stock scheduler.",
        )
    return name


def load_scheduler(folder: Path) -> Any:
    """The scheduler in `folder/scheduler`, of the class that it names.

    Raises:
        UsageError: there is none, or it names no scheduler.
    """
    return getattr(diffusers, scheduler_class(folder)).from_pretrained(folder / "scheduler")
