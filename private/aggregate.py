"""From records to the exact private sum: the contributions of the units, clipped and added up."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, DataError, HyperdpError
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec
from hyperdp.private.embed import (
    BATCH_SIZE,
    Batch,
    Embed,
    embedding_here,
    silent_logs,
    weights_hash,
)
from hyperdp.private.forms import Form
from hyperdp.private.records import AnyRecord
from hyperdp.private.release_bundle import ReleaseBundle

_EMBEDDING_LIMIT = 2.0**14  # keeps the int64 sum of one user's 2^24 records exact


class Aggregator(Protocol):
    """What adds records up: `aggregate`, or the same by several processes."""

    def __call__(
        self,
        records: Iterable[AnyRecord],
        *,
        bundle: ReleaseBundle,
        spec: MechanismSpec,
        unit: Unit,
        classes: list[str],
        progress: bool = False,
    ) -> ClippedSum:
        """See `aggregate`."""


def aggregate(
    records: Iterable[AnyRecord],
    *,
    bundle: ReleaseBundle,
    spec: MechanismSpec,
    unit: Unit,
    classes: list[str],
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
    embed: Embed | None = None,
) -> ClippedSum:
    """Embed every record and add up the clipped contributions of the units.

    Args:
        records: private; read once, in any order.
        bundle: the encoder.
        spec: the query; num_classes is len(classes), or 1 where that is empty.
        unit: "record", or "user" for the mean over each user's records.
        classes: public names of the classes, or [] for an unlabelled release.
        batch_size: the one shape that the encoder sees; does not change the result.
        progress: show a bar, on a terminal only.
        embed: what embeds, and holds the encoder; this process when None.

    Returns:
        The exact sum, un-noised and private.

    Raises:
        DataError: a record has another shape, no label, a label outside `classes`, or no user; or
            something else went wrong on the way. The text names no record and no value.
        BundleError: the encoder's weights or buffers changed on the way.
    """
    before = weights_hash(bundle.encoder)
    total, failure = None, unreadable()
    try:
        with silent_logs(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a library's warning may quote a record, or tell of it
            here = embedding_here(bundle.encoder, batch_size=batch_size)
            with nullcontext(embed) if embed else here as by, _bar(progress) as advance:
                total = _aggregate(
                    records, Form.of(bundle.config), spec, unit, classes, batch_size, by, advance
                )
    except HyperdpError as error:
        failure = error
    except Exception:  # noqa: BLE001, S110  # even its type may depend on a record
        pass
    if total is None:
        # Out here, so that the error has no context in which the library's own would be found.
        failure.__cause__ = failure.__context__ = None
        raise failure
    if weights_hash(bundle.encoder) != before:
        raise BundleError(
            expected="an encoder whose weights stay as they are while records are embedded",
            found="other weights than before the first record",
            todo="Use an encoder without running statistics. The budget reserved is spent.",
        )
    return total


def unreadable() -> HyperdpError:
    """The error that stands for any other while records are read: its text tells of none."""
    return DataError(
        expected="records that can be read and embedded",
        found="an error whose text may hold private values and is not shown",
        todo="Try the reader on public data of the same form. The budget reserved is spent.",
    )


def _aggregate(
    records: Iterable[AnyRecord],
    form: Form,
    spec: MechanismSpec,
    unit: Unit,
    classes: list[str],
    batch_size: int,
    embed: Embed,
    advance: _Advance,
) -> ClippedSum:
    units = UnitSum(spec, unit)
    index = {name: i for i, name in enumerate(classes)}
    waiting: deque[tuple[list[int], list[str | None]]] = deque()  # what embeddings are due for

    def batches() -> Iterator[Batch]:
        source = iter(records)
        while batch := list(islice(source, batch_size)):
            labels = [_class_of(record, index) for record in batch]
            users = [_user_of(record) if unit == "user" else None for record in batch]
            waiting.append((labels, users))
            yield np.stack([_values_of(record, form) for record in batch])

    for embeddings in embed(batches()):  # [b, k]
        labels, users = waiting.popleft()
        units.add(embeddings, labels, users)
        advance(len(labels))
    if waiting:
        raise RuntimeError("a batch was not embedded")
    return units.total()


class UnitSum:
    """Embeddings added up by unit: at once where a record is one, when all are in for users.

    Args:
        spec: the query.
        unit: "record" or "user".
    """

    def __init__(self, spec: MechanismSpec, unit: Unit) -> None:
        self.unit = unit
        self._total = ClippedSum(spec)
        self._users: dict[str, dict[int, _Mean]] = defaultdict(lambda: defaultdict(_Mean))

    def add(
        self, embeddings: NDArray[np.float32], labels: Sequence[int], users: Sequence[str | None]
    ) -> None:
        """Add records: embeddings float32 [b, k], the class and (for users) the user of each."""
        spec = self._total.spec
        if self.unit == "record":
            count = len(labels)
            stacked = np.zeros((count, spec.num_classes, spec.embedding_dim))  # [b, L, k]
            shares = np.zeros((count, spec.num_classes))  # [b, L]
            rows = np.arange(count)
            stacked[rows, labels], shares[rows, labels] = embeddings, 1.0
            self._total.add(stacked, shares)
            return
        for embedding, label, user in zip(embeddings, labels, users, strict=True):
            self._users[str(user)][label].add(embedding)

    def total(self) -> ClippedSum:
        """The exact sum of all units; nothing is added after it."""
        for of_class in self._users.values():
            _add_user(self._total, of_class)
        self._users.clear()
        return self._total


class _Mean:
    """Exact sum of one user's embeddings in one class, whatever the order of the records."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[np.int64] | None = None

    def add(self, embedding: NDArray[np.float32]) -> None:
        bounded = np.clip(embedding.astype(np.float64), -_EMBEDDING_LIMIT, _EMBEDDING_LIMIT)
        if not np.isfinite(embedding).all():
            bounded[:] = 0.0  # counted as zero, so that an error cannot reveal the record
        lattice = np.trunc(bounded * STEPS_PER_UNIT).astype(np.int64)
        self.total = lattice if self.total is None else self.total + lattice
        self.count += 1


def _add_user(total: ClippedSum, of_class: dict[int, _Mean]) -> None:
    """One user's contribution: the mean over all their records, each in the place of its class."""
    spec = total.spec
    stacked = np.zeros((1, spec.num_classes, spec.embedding_dim))
    shares = np.zeros((1, spec.num_classes))
    records = sum(mean.count for mean in of_class.values())
    for label, mean in of_class.items():
        assert mean.total is not None  # noqa: S101  # a class exists once a record was added
        stacked[0, label] = mean.total / (records * STEPS_PER_UNIT)
        shares[0, label] = mean.count / records
    total.add(stacked, shares)


def _class_of(record: AnyRecord, index: dict[str, int]) -> int:
    if not index:
        return 0
    if record.label is None or record.label not in index:
        raise DataError(
            expected=f"every record to have one of the {len(index)} classes given beforehand",
            found="a record without a label, or with another one (not named: it is private)",
            todo="Name every class that can occur, or make an unlabelled release. The budget "
            "reserved for this run is spent.",
        )
    return index[record.label]


def _values_of(record: AnyRecord, form: Form) -> NDArray[Any]:
    values = form.values(record)
    if values is None:
        dtype = np.dtype(form.dtype).name
        raise DataError(
            expected=f"every {form.noun} to be converted to {dtype} {form.shape} by the reader",
            found="another shape or type",
            todo=f"Read the data with the bundle's {form.noun} shape.",
        )
    return values


def _user_of(record: AnyRecord) -> str:
    # Anything else may be equal to others, or to nothing: NaN would make every record a user.
    if not isinstance(record.unit, str) or not record.unit.strip():
        raise DataError(
            expected="every record to name its user, as users are the unit of privacy",
            found="a record that names none, or not as a text that is not blank",
            todo="Name the column of users, or protect records instead.",
        )
    return record.unit


class _Advance(Protocol):
    def __call__(self, records: int) -> None: ...


@contextmanager
def _bar(show: bool) -> Iterator[_Advance]:
    """A bar on the operator's terminal; how far it gets is n, so it never goes to a file or log."""
    console = Console(stderr=True)  # whose is_terminal would believe FORCE_COLOR
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (show and sys.stderr.isatty())
    ) as bar:
        task = bar.add_task("reading and embedding records", total=None)

        def advance(records: int) -> None:
            bar.advance(task, records)

        yield advance
