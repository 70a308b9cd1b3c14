"""How operators compute: on one thread per worker, so that a busy machine cannot stall them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from hyperdp.errors import UsageError

_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


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


def has_fast_bf16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 in hardware.

    On two cores of an EPYC with AVX-512 BF16 and no AMX, the image base took 8 ms an image and step
    in bfloat16, and 14 in float32.

    Args:
        info: what Linux says of it.
    """
    return info.is_file() and bool(_BF16_FLAGS & set(info.read_text().split()))


def device_of(module: nn.Module) -> torch.device:
    """Where a network computes; the CPU where it has no weights."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name, where this machine has it.

    Raises:
        UsageError: it has none, or no device is called so.
    """
    found = str(name)
    try:
        device = torch.device(name)
        if device.type in {"cpu", "cuda"}:
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError) as error:
        found += f": {str(error).splitlines()[0]}"
    raise UsageError(
        expected="a device of this machine: cpu, or cuda where torch finds a GPU",
        found=found,
        todo="Choose another --device.",
    )


@contextmanager
def exact() -> Iterator[None]:
    """On a GPU, whole float32 in convolutions: TF32, their default, keeps 10 bits of the mantissa.

    Too few for the checks of a fit, which compare an adapter with itself at 1e-3.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
