"""Schedulers on disk: the diffusers class that a folder's configuration names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers

from hyperdp.errors import UsageError

FILE = "scheduler_config.json"


def class_name(path: Path, what: str) -> str:
    """The diffusers class that a configuration file names.

    Args:
        path: of the file.
        what: it is of, for the message.

    Raises:
        UsageError: there is none, or it names none.
    """
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            expected=f"the configuration of a diffusers {what} in {path}",
            found=type(error).__name__,
            todo="Give the folder that `save_pretrained` of the pipeline wrote.",
        ) from error


def scheduler_class(folder: Path) -> str:
    """Name of the class in `folder/scheduler`.

    Raises:
        UsageError: there is none, or it names no scheduler.
    """
    path = folder / "scheduler" / FILE
    name = class_name(path, "scheduler")
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
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
