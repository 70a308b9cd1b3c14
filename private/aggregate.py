"""From records to the exact private sum: the contributions of the units, clipped and added up."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, DataError, HyperdpError, UsageError
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec
from hyperdp.private.embed import BATCH_SIZE, embed_batch, weights_hash
from hyperdp.private.records import Record
from hyperdp.private.release_bundle import ReleaseBundle

_EMBEDDING_LIMIT = 2.0**14  # keeps the int64 sum of one user's 2^24 records exact
MAX_CLASS_NAME = 200  # characters; a certificate must stay small enough to be read


def check_classes(classes: Sequence[str] | None) -> list[str]:
    """The class names as a list, [] for an unlabelled release.

    Raises:
        UsageError: fewer than two, a repeated one, one that is not text or is too long for a
            certificate, or one text in place of a list.
    """
    names = [] if classes is None else list(classes)
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_CLASS_NAME for name in names):
        raise UsageError(
            expected=f"class names that are texts of 1 to {MAX_CLASS_NAME} characters",
            found="another kind of name, an empty or a longer one",
            todo="Name the classes by short texts, for example str(label).",
        )
    if classes is not None and (isinstance(classes, str) or not 2 <= len(set(names)) == len(names)):
        raise UsageError(
            expected="at least two different class names, known without looking at the data",
            found=f"classes={classes!r}",
            todo="List every class that can occur, or leave classes out.",
        )
    return names


def aggregate(
    records: Iterable[Record],
    *,
    bundle: ReleaseBundle,
    spec: MechanismSpec,
    unit: Unit,
    classes: list[str],
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
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

    Returns:
        The exact sum, un-noised and private.

    Raises:
        DataError: a record has another shape, no label, a label outside `classes`, or no user; or
            something else went wrong on the way. The text names no record and no value.
        BundleError: the encoder's weights or buffers changed on the way.
    """
    before = weights_hash(bundle.encoder)
    total, failure = None, _unreadable()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a library's warning may quote a record, or tell of it
            total = _aggregate(records, bundle, spec, unit, classes, batch_size, progress)
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


def _unreadable() -> HyperdpError:
    return DataError(
        expected="records that can be read and embedded",
        found="an error whose text may hold private values and is not shown",
        todo="Try the reader on public data of the same form. The budget reserved is spent.",
    )


def _aggregate(
    records: Iterable[Record],
    bundle: ReleaseBundle,
    spec: MechanismSpec,
    unit: Unit,
    classes: list[str],
    batch_size: int,
    progress: bool,
) -> ClippedSum:
    total = ClippedSum(spec)
    index = {name: i for i, name in enumerate(classes)}
    users: dict[str, dict[int, _Mean]] = defaultdict(lambda: defaultdict(_Mean))
    with _bar(progress) as advance:
        source = iter(records)
        while batch := list(islice(source, batch_size)):
            labels = [_class_of(record, index) for record in batch]
            images = np.stack([_image_of(record, bundle.config.image_shape) for record in batch])
            embeddings = embed_batch(bundle.encoder, images, batch_size=batch_size)  # [b, k]
            if unit == "record":
                stacked = np.zeros((len(batch), spec.num_classes, spec.embedding_dim))  # [b, L, k]
                shares = np.zeros((len(batch), spec.num_classes))  # [b, L]
                rows = np.arange(len(batch))
                stacked[rows, labels], shares[rows, labels] = embeddings, 1.0
                total.add(stacked, shares)
            else:
                for record, label, embedding in zip(batch, labels, embeddings, strict=True):
                    users[_user_of(record)][label].add(embedding)
            advance(len(batch))
    for of_class in users.values():
        _add_user(total, of_class)
    return total


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


def _class_of(record: Record, index: dict[str, int]) -> int:
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


def _image_of(record: Record, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    if record.image.shape != tuple(shape) or record.image.dtype != np.float32:
        raise DataError(
            expected=f"every image to be converted to float32 {tuple(shape)} by the reader",
            found="another shape or type",
            todo="Read the data with the bundle's image shape.",
        )
    return record.image


def _user_of(record: Record) -> str:
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
