"""Readers of private data: what people have, as records at the bundle's shape."""

from hyperdp.private.readers.dataset import Dataset, open_dataset
from hyperdp.private.readers.text import TextDataset, open_text_dataset

__all__ = ["Dataset", "TextDataset", "open_dataset", "open_text_dataset"]
