"""What the encoder takes of a record: an image, or a document as tokens, of one fixed shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperdp.private.records import AnyRecord, TextRecord
from hyperdp.private.release_bundle import ImageConfig, TextConfig
from hyperdp.text_encoder import PAD


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of all records of a bundle.

    Attributes:
        noun: what an error calls them.
        shape: of one record.
        vocab_size: of documents; None for images.
    """

    noun: str
    shape: tuple[int, ...]
    vocab_size: int | None = None

    @classmethod
    def of(cls, config: ImageConfig | TextConfig) -> Form:
        """The form that a bundle's configuration declares."""
        if isinstance(config, TextConfig):
            return cls(noun="text", shape=(config.text_length,), vocab_size=config.vocab_size)
        return cls(noun="image", shape=tuple(config.image_shape))

    @property
    def dtype(self) -> type[np.float32] | type[np.int64]:
        """float32 of images, int64 of documents."""
        return np.float32 if self.vocab_size is None else np.int64

    def values(self, record: AnyRecord) -> NDArray[Any] | None:
        """What the encoder takes of a record; None where it is not of this form."""
        found = record.tokens if isinstance(record, TextRecord) else record.image
        return found if self.fits(found[None]) else None

    def fits(self, values: NDArray[Any]) -> bool:
        """Whether records, [b, …], are of this form."""
        fits = values.shape[1:] == self.shape and values.dtype == self.dtype
        if fits and self.vocab_size is not None:
            fits = bool(((values >= PAD) & (values < self.vocab_size)).all())
        return fits

    def probes(self, count: int) -> NDArray[Any]:
        """Random public records to try an encoder on, [count, …]."""
        rng = np.random.default_rng(0)
        if self.vocab_size is None:
            return rng.uniform(-1, 1, (count, *self.shape)).astype(np.float32)
        tokens = rng.integers(0, self.vocab_size, (count, *self.shape))
        ends = rng.integers(0, self.shape[0] + 1, (count, 1))
        return np.where(np.arange(self.shape[0]) < ends, tokens, PAD)

    def extremes(self) -> tuple[float, ...]:
        """Values of companions that are unlike any record."""
        if self.vocab_size is None:
            return (np.nan, np.inf, -1.0, 1.0, 0.0)
        return (PAD, 0, self.vocab_size - 1)
