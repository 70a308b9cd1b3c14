"""The private dataset in memory, by unit: one record of each sampled unit a step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp.budget import Unit
from hyperdp.errors import DataError, HyperdpError
from hyperdp.private.learners.poisson import PoissonSampler, choose_each
from hyperdp.private.records import Record


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
    def read(cls, records: Iterable[Record], *, shape: tuple[int, int, int], unit: Unit) -> Units:
        """Read every record once.

        Args:
            records: private.
            shape: (C, H, W) of the bundle.
            unit: "record", or "user" where records name theirs.

        Raises:
            DataError: a record of another shape or without its user; or one that cannot be read,
                whose own error is passed on only where it is hyperdp's.
        """
        found: tuple[list[NDArray[np.float32]], dict[str, list[int]]] | None = None
        try:
            found = _read(records, shape, unit)
        except HyperdpError:
            raise
        except Exception:  # noqa: BLE001, S110  # even its type may depend on a record
            pass
        if found is None:  # out here, so that the error has no context to show
            raise DataError(
                expected="records that can be read",
                found="an error whose text may hold private values and is not shown",
                todo="Try the reader on public data of the same form. The budget is spent.",
            )
        images, users = found
        stacked = np.stack(images) if images else np.zeros((0, *shape), dtype=np.float32)
        members = [[i] for i in range(len(images))] if unit == "record" else list(users.values())
        return cls(torch.from_numpy(stacked), members)

    @property
    def images(self) -> Tensor:
        """Every record, float32 [N, C, H, W] in [-1, 1]; a NaN stays one."""
        return self._images

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """Positions of each unit's records in `images`."""
        return self._members

    def batch(self, sampler: PoissonSampler) -> Tensor:
        """One record of each unit of a Poisson sample: float32 [b, C, H, W], b >= 0."""
        chosen = sampler.draw(len(self._members))
        within = choose_each(self._sizes[chosen])
        rows = [self._members[u][w] for u, w in zip(chosen, within, strict=True)]
        return self._images[torch.tensor(rows, dtype=torch.int64)]


def _read(
    records: Iterable[Record], shape: tuple[int, int, int], unit: Unit
) -> tuple[list[NDArray[np.float32]], dict[str, list[int]]]:
    images: list[NDArray[np.float32]] = []
    users: dict[str, list[int]] = {}
    for record in records:
        if record.image.shape != tuple(shape) or record.image.dtype != np.float32:
            raise DataError(
                expected=f"every image to be converted to float32 {tuple(shape)} by the reader",
                found="another shape or type",
                todo="Read the data with the bundle's image shape.",
            )
        if unit == "user":
            if not isinstance(record.unit, str) or not record.unit.strip():
                raise DataError(
                    expected="every record to name its user, as users are the unit of privacy",
                    found="a record that names none, or not as a text that is not blank",
                    todo="Name the column of users, or protect records instead.",
                )
            users.setdefault(record.unit, []).append(len(images))
        images.append(np.clip(record.image, -1, 1))  # a NaN stays one, and counts as zero later
    return images, users
