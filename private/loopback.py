"""Has Ray listen to this machine alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # read on Linux too


@contextmanager
def at_loopback() -> Iterator[None]:
    """Has Ray take the loopback address for this machine's own, as it does on a desktop.

    Since some version after 2.50 it puts the network's address in the place of a loopback one that
    it is given, unless it is told that there can be no cluster.
    """
    constants = sys.modules.get("ray._private.ray_constants")
    before = os.environ.get(_CLUSTERS), getattr(constants, "ENABLE_RAY_CLUSTER", None)
    os.environ[_CLUSTERS] = "0"
    if before[1] is not None:  # it was read when Ray was imported
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        os.environ.pop(_CLUSTERS)
        if before[0] is not None:
            os.environ[_CLUSTERS] = before[0]
        if before[1] is not None:
            constants.ENABLE_RAY_CLUSTER = before[1]  # type: ignore[union-attr]
