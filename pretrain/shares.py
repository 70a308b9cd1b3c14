"""How the shares of a training step are divided among processes, and among threads in each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from hyperdp.errors import UsageError
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.processes import processes


def make_accelerator(tracker: str, folder: Path) -> Accelerator:
    """Accelerate's view of this process and its companions.

    Args:
        tracker: name of one of accelerate's trackers, or "".
        folder: what the tracker writes goes here.

    Raises:
        UsageError: accelerate has no such tracker here.
    """
    try:
        return Accelerator(
            cpu=processes().device.type == "cpu",
            log_with=tracker or None,
            project_dir=folder,
            # Foretelling reaches no heads, and a frozen base has nothing to send.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise UsageError(
            expected="tracker to name one of accelerate's trackers, installed",
            found=repr(tracker),
            todo='Use "tensorboard", or leave it out.',
        ) from error


def own_shares(workers: int, accelerator: Accelerator) -> list[int]:
    """The shares of a step that are this process's.

    Raises:
        UsageError: the processes cannot divide them evenly.
    """
    processes = accelerator.num_processes
    if workers % processes:
        raise UsageError(
            expected="workers, the shares of a step, to be a multiple of the processes",
            found=f"workers = {workers} for {processes} processes",
            todo="Set workers in the recipe's [loop] accordingly.",
        )
    return list(range(accelerator.process_index, workers, processes))


def check_graph(config: LoopConfig, accelerator: Accelerator, *, fed: bool) -> None:
    """Whether a step can be captured as a CUDA graph.

    Args:
        config: of the loop.
        accelerator: of the process.
        fed: whether the step's records are brought to the GPU before it.

    Raises:
        UsageError: the step draws its records itself, there is no GPU, or there are several shares
            or processes.
    """
    device, processes = accelerator.device.type, accelerator.num_processes
    if not fed:
        raise UsageError(
            expected="a recipe of a hypernetwork of images, for a step as one graph",
            found="another recipe",
            todo="Leave `graph` out of the recipe's [loop].",
        )
    if device == "cuda" and config.workers == 1 and processes == 1:
        return
    raise UsageError(
        expected="one share in one process on a GPU, for a step as one graph",
        found=f"{config.workers} shares, {processes} processes, on {device}",
        todo="Leave `graph` out of the recipe's [loop], or set workers = 1 and use one GPU.",
    )


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads for the shares of a step, with the operator threads divided among them."""
    if count == 1:
        yield None
        return
    before = torch.get_num_threads()
    each = max(1, before // count)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def check_dropout(module: nn.Module, shares: int) -> None:
    """Refuses dropout where threads would draw from one generator in whatever order they come.

    Raises:
        UsageError: one process computes several shares of a step, and the network drops out.
    """
    layers = (part for part in module.modules() if isinstance(part, nn.Dropout))
    if shares > 1 and any(part.p > 0 and part.training for part in layers):
        raise UsageError(
            expected="no dropout where one process computes several shares of a step",
            found=f"{shares} shares",
            todo="Set workers = 1 under [loop], or dropout = 0.",
        )
