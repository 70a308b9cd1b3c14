"""How operators compute: on one thread per worker, so that a busy machine cannot stall them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """Runs torch operators on one thread each, and says how many there were.

    Small networks synchronise their threads after every operator; where another process holds a
    core, each of these barriers waits for the scheduler. Measured on two shared cores:
    EfficientNet-Lite0 ran at 10 images/s with two operator threads and at 590 with one.

    Yields:
        The number of threads torch had before: how many independent workers the machine can feed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text()
