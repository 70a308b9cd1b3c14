"""The private sum of a Ray dataset, embedded on a cluster (`pip install hyperdp[ray]`).

    data = ray.data.read_parquet(...).map(...)   # columns image, and label and unit where needed
    release(data, bundle=bundle, ..., add_up=RaySum(workers=64))

Ray's object store may spill to disk what does not fit in memory, un-noised embeddings with it:
`start_ray` turns that off; on a cluster of your own it is for you to decide where it may spill.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from hyperdp.budget import Unit
from hyperdp.errors import BundleError, HyperdpError, UsageError
from hyperdp.mechanism import ClippedSum, MechanismSpec
from hyperdp.private.aggregate import UnitSum, unreadable
from hyperdp.private.embed import BATCH_SIZE, arithmetic, embed_batch
from hyperdp.private.forms import Form
from hyperdp.private.release_bundle import ReleaseBundle

Batch = dict[str, Any]


def start_ray(cpus: int) -> None:
    """Starts Ray on this machine: no dashboard, no log of workers here, nothing spilled to disk.

    Raises:
        UsageError: Ray is not installed.
    """
    _ray().init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"automatic_object_spilling_enabled": False},
    )


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415  # an extra
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
            BundleError: the actors embed public noise differently.
        """
        total, failed = ClippedSum(spec), 0
        rounding: set[bytes] = set()
        given = (bundle.encoder, Form.of(bundle.config), spec, unit, classes)
        failure: HyperdpError | None = None
        try:
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
        if len(rounding) > 1:
            raise BundleError(
                expected="the same embeddings of public noise from every actor",
                found="embeddings that differ",
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
        self.rounding = arithmetic(encoder, form).hex()

    def __call__(self, batch: Batch) -> Batch:
        """Never raises: what is raised here goes to Ray's logs."""
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
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
