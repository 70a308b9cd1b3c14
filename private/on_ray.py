"""The private sum of a Ray dataset, embedded on a cluster (`pip install hyperdp[ray]`).

    data = ray.data.read_parquet(...).map(...)   # columns image, and label and unit where needed
    release(data, bundle=bundle, ..., add_up=RaySum(workers=64))

Ray's object store puts on disk what does not fit in memory, un-noised embeddings with it, and Ray
logs the progress of every dataset, record for record. `start_ray` keeps all its files in memory,
for this account alone, and `stop_ray` removes them; `RaySum` lets Ray log nothing while it runs. On
a cluster of your own, its session folders and where it may spill are as private as the data.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, HyperdpError, UsageError
from hyperdp.mechanism import ClippedSum, MechanismSpec
from hyperdp.private.aggregate import UnitSum, unreadable
from hyperdp.private.embed import (
    BATCH_SIZE,
    UNFIT,
    arithmetic,
    embed_batch,
    silent_logs,
    weights_hash,
)
from hyperdp.private.forms import Form
from hyperdp.private.loopback import LOOPBACK, at_loopback
from hyperdp.private.release_bundle import ReleaseBundle

Batch = dict[str, Any]
MEMORY = Path("/dev/shm")  # noqa: S108  # a file system without a disk, where Linux has one
_folders: list[Path] = []


def start_ray(cpus: int) -> None:
    """Starts Ray on this machine: no dashboard, no log of workers here, nothing spilled to disk.

    Its session folder is in memory, so that what the object store maps to files when it is full is
    there too; where a system has no `/dev/shm`, it is in the folder of temporary files. Ended with
    `stop_ray`, or at the program's exit; what a kill leaves is this account's alone.

    It listens at the loopback address alone, where others of this machine may reach it; Ray before
    2.60 then asks them for no token.

    Raises:
        UsageError: Ray is not installed, or this one would listen to the network.
    """
    ray = _ray()
    if not _folders:
        atexit.register(stop_ray)
    # mkdtemp makes it for this account alone.
    made = tempfile.mkdtemp(prefix="ray-", dir=MEMORY if MEMORY.is_dir() else None)
    _folders.append(Path(made))
    with at_loopback():
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address=LOOPBACK,
            _temp_dir=made,
            _system_config={"automatic_object_spilling_enabled": False},
        )
    if (found := str(ray.util.get_node_ip_address())) != LOOPBACK:
        stop_ray()
        raise UsageError(
            expected=f"Ray to listen at {LOOPBACK} alone",
            found=f"it listening at {found}, where the network reaches un-noised embeddings",
            todo="Tell us the version of Ray; 2.50 and 2.60 are known to work. Nothing was read.",
        )


def stop_ray() -> None:
    """Ends what `start_ray` started, and removes all its files."""
    if _folders:
        _ray().shutdown()
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


@contextmanager
def _silent(records: Any) -> Iterator[None]:
    """Lets Ray tell nobody, by log files, standard error or bars, how many records there are.

    And lets it drop no block in which something was raised: one record would take others with it.
    """
    wanted = {
        "enable_progress_bars": False,
        "enable_operator_progress_bars": False,
        "enable_auto_log_stats": False,
        "max_errored_blocks": 0,
    }
    contexts = [_ray().data.DataContext.get_current(), records.context]
    before = [(c, name, getattr(c, name)) for c in contexts for name in wanted if hasattr(c, name)]
    with silent_logs():
        try:
            for context, name, _ in before:
                setattr(context, name, wanted[name])
            yield
        finally:
            for context, name, value in before:
                setattr(context, name, value)


def _ray() -> Any:
    try:
        import ray.data  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise UsageError(
            expected="Ray for a dataset on a cluster",
            found="no Ray",
            todo="Install it: pip install 'hyperdp[ray]'.",
        ) from error
    return ray


class RaySum:
    """An `Aggregator` of Ray datasets: `release(dataset, ..., add_up=RaySum(workers=8))`.

    Rows have `image`, float32 (C, H, W) in [-1, 1], or `tokens`, int64 (L,); `label` in
    a labelled release; `unit`, the user, where users are the unit.

    Args:
        workers: actors that embed, one core each.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self,
        records: Any,
        *,
        bundle: ReleaseBundle,
        spec: MechanismSpec,
        unit: Unit,
        classes: list[str],
        progress: bool = False,
    ) -> ClippedSum:
        """See `hyperdp.private.aggregate.aggregate`; `progress` is Ray's own matter.

        Raises:
            DataError: a record is not as asked, or anything else; the text tells of no record.
            BundleError: the actors embed public noise differently, or their weights changed.
        """
        total, failed = ClippedSum(spec), 0
        rounding: set[bytes] = set()
        weights = bytes.fromhex(weights_hash(bundle.encoder))
        given = (bundle.encoder, Form.of(bundle.config), spec, unit, classes)
        failure: HyperdpError | None = None
        try:
            with _silent(records):
                embedded = records.map_batches(
                    _Embedder,
                    fn_constructor_args=given,
                    batch_size=BATCH_SIZE,
                    batch_format="numpy",
                    concurrency=self.workers,
                    num_cpus=1,
                )
                if unit == "user":
                    embedded = embedded.groupby("unit").map_groups(
                        _OfUser, fn_constructor_args=(spec,), batch_format="numpy", concurrency=1
                    )
                for row in embedded.iter_rows():
                    failed += int(row["failed"])
                    rounding.update(bytes.fromhex(r) for r in row["rounding"].split())
                    total.add_vector(np.asarray(row["sums"], dtype=np.int64))
        except Exception:  # noqa: BLE001  # even its type may depend on a record
            failure = unreadable()
        if failure is not None or failed:
            raise failure or unreadable()
        if len(rounding) > 1 or any(r[:32] == UNFIT or r[32:] != weights for r in rounding):
            raise BundleError(
                expected="the same embeddings of public noise from every actor, whatever is beside "
                "them, by weights that stay as they are",
                found="embeddings or weights that differ",
                todo="Use machines of one kind. The budget reserved is spent.",
            )
        return total


class _Embedder:
    """An actor: rows → their sum, or one row a record where users are yet to be put together."""

    def __init__(
        self,
        encoder: nn.Module,
        form: Form,
        spec: MechanismSpec,
        unit: Unit,
        classes: list[str],
    ) -> None:
        torch.set_num_threads(1)
        self.encoder, self.form, self.spec, self.unit = encoder, form, spec, unit
        self.index = {name: i for i, name in enumerate(classes)}
        self._arithmetic = arithmetic(encoder, form).hex()

    @property
    def rounding(self) -> str:
        """How this actor rounds, and its weights as they now are; hex."""
        return self._arithmetic + weights_hash(self.encoder)

    def __call__(self, batch: Batch) -> Batch:
        """Never raises: what is raised here goes to Ray's logs."""
        try:
            with silent_logs(), warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # as a log, it may tell of a record
                return self._embed(batch)
        except Exception:  # noqa: BLE001
            return self._failed()

    def _failed(self) -> Batch:
        row = _row(ClippedSum(self.spec), self.rounding, failed=True)
        if self.unit == "record":
            return row
        nothing = np.zeros((1, self.spec.embedding_dim), np.float32)
        return {
            "unit": np.array([""], dtype=object),
            "embedding": nothing,
            "label": np.zeros(1, np.int64),
            "failed": row["failed"],
            "rounding": row["rounding"],
        }

    def _embed(self, batch: Batch) -> Batch:
        column = "image" if self.form.vocab_size is None else "tokens"
        values = np.stack([np.asarray(value) for value in batch[column]])
        if not self.form.fits(values):
            raise ValueError("expected records of the bundle's form")
        count = len(values)
        labels = [self.index[label] for label in batch["label"]] if self.index else [0] * count
        embeddings = embed_batch(self.encoder, values)
        if self.unit == "record":
            units = UnitSum(self.spec, "record")
            units.add(embeddings, labels, [None] * count)
            return _row(units.total(), self.rounding, failed=False)
        users = list(batch["unit"])
        if not all(isinstance(user, str) and user.strip() for user in users):
            raise ValueError("expected every record to name its user")
        return {
            "unit": np.array(users, dtype=object),  # numpy's own texts end before a last NUL
            "embedding": embeddings,
            "label": np.array(labels),
            "failed": np.zeros(count, np.int64),
            "rounding": np.array([self.rounding] * count),
        }


class _OfUser:
    """All records of one user → the user's contribution."""

    def __init__(self, spec: MechanismSpec) -> None:
        self.spec = spec

    def __call__(self, group: Batch) -> Batch:
        """Never raises, as `_Embedder`."""
        rounding = " ".join(sorted(set(map(str, group["rounding"]))))
        try:
            units = UnitSum(self.spec, "user")
            if not group["failed"].any():
                embeddings = np.stack([np.asarray(e, np.float32) for e in group["embedding"]])
                units.add(embeddings, group["label"].tolist(), [str(u) for u in group["unit"]])
            return _row(units.total(), rounding, failed=bool(group["failed"].any()))
        except Exception:  # noqa: BLE001
            return _row(ClippedSum(self.spec), rounding, failed=True)


def _row(total: ClippedSum, rounding: str, *, failed: bool) -> Batch:
    return {
        "sums": total.to_vector()[None],
        "failed": np.array([int(failed)]),
        "rounding": np.array([rounding]),
    }
