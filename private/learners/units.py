"""The private dataset in memory, by unit: one record of each sampled unit a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp.budget import Unit
from hyperdp.errors import DataError, HyperdpError
from hyperdp.private.embed import silent_logs
from hyperdp.private.forms import Form
from hyperdp.private.learners.poisson import PoissonSampler, choose_each
from hyperdp.private.records import AnyRecord


class Units:
    """Records grouped by unit. Everything here is private, the number of units too.

    A sampled unit contributes one of its records, chosen anew by the operating system's randomness,
    so that a step's sensitivity is that of one record whoever has however many.
    """

    def __init__(self, images: Tensor, members: list[list[int]]) -> None:
        self._images = images
        self._members = [np.array(m, dtype=np.int64) for m in members]
        self._sizes = np.array([len(m) for m in members], dtype=np.int64)

    def __repr__(self) -> str:
        return "Units(private)"

    @classmethod
    def read(cls, records: Iterable[AnyRecord], *, form: Form, unit: Unit) -> Units:
        """Read every record once.

        Args:
            records: private.
            form: of the bundle's records.
            unit: "record", or "user" where records name theirs.

        Raises:
            DataError: a record of another form or without its user; or one that cannot be read,
                whose own error is passed on only where it is hyperdp's.
        """
        found: tuple[list[NDArray[Any]], dict[str, list[int]]] | None = None
        failure: HyperdpError = DataError(
            expected="records that can be read",
            found="an error whose text may hold private values and is not shown",
            todo="Try the reader on public data of the same form. The budget is spent.",
        )
        try:
            with silent_logs(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _read(records, form, unit)
        except HyperdpError as error:
            failure = error
        except Exception:  # noqa: BLE001, S110  # even its type may depend on a record
            pass
        if found is None:
            # Out here, so that the error has no context in which a library's own would be found.
            failure.__cause__ = failure.__context__ = None
            raise failure
        images, users = found
        stacked = np.stack(images) if images else np.zeros((0, *form.shape), dtype=form.dtype)
        members = [[i] for i in range(len(images))] if unit == "record" else list(users.values())
        return cls(torch.from_numpy(stacked), members)

    @property
    def images(self) -> Tensor:
        """Every record: float32 [N, C, H, W] in [-1, 1], where a NaN stays one, or int64 [N, L]."""
        return self._images

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """Positions of each unit's records in `images`."""
        return self._members

    def batch(self, sampler: PoissonSampler) -> Tensor:
        """One record of each unit of a Poisson sample: [b, …] of `images`, b >= 0."""
        chosen = sampler.draw(len(self._members))
        within = choose_each(self._sizes[chosen])
        rows = [self._members[u][w] for u, w in zip(chosen, within, strict=True)]
        return self._images[torch.tensor(rows, dtype=torch.int64)]


def _read(
    records: Iterable[AnyRecord], form: Form, unit: Unit
) -> tuple[list[NDArray[Any]], dict[str, list[int]]]:
    images: list[NDArray[Any]] = []
    users: dict[str, list[int]] = {}
    for record in records:
        values = form.values(record)
        if values is None:
            dtype = np.dtype(form.dtype).name
            raise DataError(
                expected=f"every {form.noun} to be converted to {dtype} {form.shape} by the reader",
                found="another shape or type",
                todo=f"Read the data with the bundle's {form.noun} shape.",
            )
        if unit == "user":
            if not isinstance(record.unit, str) or not record.unit.strip():
                raise DataError(
                    expected="every record to name its user, as users are the unit of privacy",
                    found="a record that names none, or not as a text that is not blank",
                    todo="Name the column of users, or protect records instead.",
                )
            users.setdefault(record.unit, []).append(len(images))
        # A NaN stays one, and counts as zero later.
        images.append(np.clip(values, -1, 1) if form.vocab_size is None else values)
    return images, users
