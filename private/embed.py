"""From records to the exact private sum, one fixed-shape batch at a time.

An embedding is a function of its record alone: batches have one shape, short ones are filled up
with zeros, the encoder is in eval mode, and `check_independence` tries it on public noise first.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import nn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, DataError, HyperdpError, UsageError
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec
from hyperdp.private.records import Record
from hyperdp.private.release_bundle import ReleaseBundle

BATCH_SIZE = 64
_EMBEDDING_LIMIT = 2.0**14  # keeps the int64 sum of one user's 2^24 records exact


def embed_batch(
    encoder: nn.Module, images: NDArray[np.float32], *, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Embed up to `batch_size` images in a batch of exactly that size.

    Args:
        encoder: float32 [B, C, H, W] → float32 [B, k]; put into eval mode.
        images: float32 [b, C, H, W], b <= batch_size; clipped to [-1, 1].
        batch_size: B, the one shape that the encoder ever sees.

    Returns:
        float32 [b, k], un-noised and private.
    """
    padded = np.zeros((batch_size, *images.shape[1:]), dtype=np.float32)
    np.clip(images, -1, 1, out=padded[: len(images)])  # a NaN stays one
    encoder.eval()
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    with torch.no_grad():
        embeddings = encoder(torch.from_numpy(padded).to(device))  # [B, k]
    result: NDArray[np.float32] = embeddings.float().cpu().numpy()[: len(images)]
    return result


def weights_hash(module: nn.Module | None) -> str:
    """SHA-256 over a module's weights: names, shapes, types and values, in the order of the names.

    Args:
        module: public.

    Returns:
        64 hex digits, or "" for no module.
    """
    if module is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_independence(bundle: ReleaseBundle, *, batch_size: int = BATCH_SIZE) -> None:
    """Refuse an encoder in which one record changes another's embedding. Reads no private data.

    Random public images are embedded in two orders, beside other companions, extreme ones among
    them, and once more at the end; every embedding must be the same to the bit.

    Raises:
        BundleError: one is not, or the shape is not the bundle's.
    """
    shape, half = bundle.config.image_shape, batch_size // 2
    noise = np.random.default_rng(0).uniform(-1, 1, (batch_size, *shape)).astype(np.float32)
    first = embed_batch(bundle.encoder, noise, batch_size=batch_size)
    order = np.random.default_rng(1).permutation(batch_size)
    permuted = embed_batch(bundle.encoder, noise[order], batch_size=batch_size)
    alone = embed_batch(bundle.encoder, noise[:half], batch_size=batch_size)
    beside = []
    for companion in (np.nan, np.inf, -1.0, 1.0, 0.0):
        other = noise.copy()
        other[half:] = companion
        beside.append(embed_batch(bundle.encoder, other, batch_size=batch_size)[:half])
    again = embed_batch(bundle.encoder, noise, batch_size=batch_size)
    expected = (batch_size, bundle.config.embed_dim)
    if first.shape != expected:
        raise BundleError(
            expected=f"embeddings {expected}",
            found=f"{first.shape}",
            todo="The bundle's encoder does not fit its configuration: take a fresh copy.",
        )
    pairs = [(first[order], permuted), (first, again)]
    pairs += [(first[:half], other) for other in (alone, *beside)]
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise BundleError(
            expected="an encoder in which every embedding depends on its own record alone",
            found="embeddings that change with the other records of a batch",
            todo="Use an encoder without batch statistics; the sensitivity would not hold.",
        )


def check_classes(classes: Sequence[str] | None) -> list[str]:
    """The class names as a list, [] for an unlabelled release.

    Raises:
        UsageError: fewer than two, a repeated one, or one text in place of a list.
    """
    names = [] if classes is None else list(classes)
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
