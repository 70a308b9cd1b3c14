"""Several processes of one machine that embed, for one that reads, clips and adds up.

    with Workers(bundle, 4) as workers:
        release(records, bundle=bundle, ..., add_up=workers.add_up)

Un-noised embeddings pass through pipes between these processes and are nowhere written. A script
that starts workers needs the usual `if __name__ == "__main__":` around it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import multiprocessing, nn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, UsageError
from hyperdp.mechanism import ClippedSum, MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import UNFIT, Batch, arithmetic, embed_batch
from hyperdp.private.forms import Form
from hyperdp.private.records import AnyRecord
from hyperdp.private.release_bundle import ReleaseBundle


class Workers:
    """A context in which processes embed for `aggregate`; each has one operator thread.

    Args:
        bundle: its encoder goes to every worker.
        count: number of workers.

    Raises:
        UsageError: fewer than one.
    """

    def __init__(self, bundle: ReleaseBundle, count: int) -> None:
        if count < 1:
            raise UsageError(expected="workers >= 1", found=f"{count}", todo="Correct that.")
        self.bundle, self.count = bundle, count
        self._links: list[Connection[Any, Any]] = []
        self._processes: list[Any] = []
        self._rounding = b""
        self._whole = True

    def __enter__(self) -> Workers:
        """Starts them and sees, on public noise, that they all round alike.

        Raises:
            BundleError: they do not, or one ended.
        """
        context = multiprocessing.get_context("spawn")
        form = Form.of(self.bundle.config)
        try:
            for _ in range(self.count):
                own, other = context.Pipe()
                encoder = copy.deepcopy(self.bundle.encoder)  # or they would share its memory
                process = context.Process(target=_serve, args=(other, encoder, form), daemon=True)
                process.start()
                other.close()
                self._links.append(own)
                self._processes.append(process)
            found = self._answers()
        except BaseException:
            self.__exit__()
            raise
        if len(found) != 1 or UNFIT in found:
            self.__exit__()
            raise _unlike()
        [self._rounding] = found
        self._whole = True
        return self

    def __exit__(self, *_: object) -> None:
        """Ends them."""
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.terminate()
        self._links.clear()
        self._processes.clear()

    def add_up(
        self,
        records: Iterable[AnyRecord],
        *,
        bundle: ReleaseBundle,
        spec: MechanismSpec,
        unit: Unit,
        classes: list[str],
        progress: bool = False,
    ) -> ClippedSum:
        """`aggregate`, with the workers to embed.

        Raises:
            BundleError: another bundle, or the encoder's weights changed in a worker, or one ended.
            UsageError: an earlier sum broke off.
            DataError: see `aggregate`.
        """
        if bundle is not self.bundle:
            raise BundleError(
                expected="the bundle that the workers were started with",
                found=bundle.name,
                todo="Start workers with the release's bundle.",
            )
        if not self._whole:
            raise UsageError(
                expected="workers whose last sum came to its end",
                found="workers in whose pipes embeddings of a sum that broke off may be left",
                todo="Start new workers.",
            )
        self._whole = False  # until its end, whatever is raised on the way
        total = aggregate(
            records,
            bundle=bundle,
            spec=spec,
            unit=unit,
            classes=classes,
            progress=progress,
            embed=self._embed,
        )
        if self._answers(None) != {self._rounding}:
            raise _unlike()
        self._whole = True
        return total

    def _answers(self, *asked: None) -> set[bytes]:
        """How each worker rounds, as it says at its start and whenever it is asked."""
        try:
            for link in self._links:
                for word in asked:
                    link.send(word)
            return {link.recv() for link in self._links}
        except (EOFError, OSError):
            pass
        raise BundleError(
            expected="an answer from every worker",
            found="one that has ended",
            todo="Look for memory that ran out, and start new workers.",
        )

    def _embed(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """In turn to each worker; answers come back in the same turn, hence in order."""
        due: deque[Connection[Any, Any]] = deque()
        for number, values in enumerate(batches):
            link = self._links[number % self.count]
            # One batch at most with each: two ends that both send would wait for each other.
            if len(due) == self.count:
                yield due.popleft().recv()
            link.send(values)
            due.append(link)
        while due:
            yield due.popleft().recv()


def _serve(link: Connection[Any, Any], encoder: nn.Module, form: Form) -> None:
    """A worker: tells how it rounds, then embeds what it is sent; ends in silence on any error."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a warning may tell of a record, and so may a log
    logging.disable(logging.CRITICAL)
    try:
        link.send(arithmetic(encoder, form))
        while True:
            values = link.recv()
            with np.errstate(all="ignore"):
                answer = (
                    arithmetic(encoder, form) if values is None else embed_batch(encoder, values)
                )
            link.send(answer)
    except BaseException:  # noqa: BLE001  # a traceback may tell of a record; the pipe's end does not
        return


def _unlike() -> BundleError:
    return BundleError(
        expected="the same embeddings of public noise from every process, before and after",
        found="embeddings or weights that differ, or that companions change",
        todo="Use an encoder without running statistics, and machines of one kind.",
    )
