"""The processes that a launcher (accelerate's or torch's) started, and where this one computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Accelerate's view of this process: on its GPU, or on CPU where there is none.

    Asked for without saying `cpu`, accelerate takes processes launched on a machine without a GPU
    for so many single ones. `ACCELERATE_USE_CPU=true` leaves a GPU alone.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in {"1", "true", "yes"}
    return PartialState(cpu=told or not torch.cuda.is_available())


@contextmanager
def joined_processes() -> Iterator[PartialState]:
    """A context for the program of launched processes: parts them at its end, however it comes.

    A process that ends while its connections' threads still run is aborted, now and then.
    """
    state = processes()
    try:
        yield state
    finally:
        state.destroy_process_group()
