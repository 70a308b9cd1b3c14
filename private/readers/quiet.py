"""Keeps C libraries from telling of private images past Python's own stderr."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()


@contextmanager
def silent(wanted: bool) -> Iterator[None]:
    """Without what a C library writes to file descriptor 2, past Python's own stderr.

    libtiff says a line of every damaged image, with values of it: whoever reads a job's log would
    count them. Descriptors are the whole process's, so threads take turns, and what another one
    says in these milliseconds is lost.

    Args:
        wanted: whether such a library is at work; otherwise nothing is done.
    """
    if not wanted:
        yield
        return
    with _LOCK:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
