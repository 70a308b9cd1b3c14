"""Readers of private data: what people have, as records at the bundle's shape."""

from hyperdp.private.readers.dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
