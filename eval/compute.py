"""How this room computes: one thread per worker, so that a busy machine cannot stall it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
