"""Public images of one's own, on disk: shards of pixels that are mapped into memory, and an index.

    FOLDER/corpus.json           format, shape, names of the labels, shards and their SHA-256
    FOLDER/index.npz             label int32 [N] (-1 for none), split int8 [N]
    FOLDER/pixels-00000.npy      uint8 [n, C, H, W]

A corpus is written once, record by record, and never held in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.folders import whole_folder

FORMAT = "hyperdp-images/1"
INDEX = "corpus.json"
SHARD = 8192  # records
LEAST = 32  # records that a corpus needs in either split
HELD_OUT_EVERY = 6  # labels, or records
LEAST_HELD_OUT = 3  # labels, so that held-out tasks differ
FEW_LABELS = 9  # fewer than these, and records are held out instead
Pixels = npt.NDArray[np.float32]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ImageCorpus:
    """Public images with what is known of each; row i of everything is the same image.

    Attributes:
        shards: uint8 [n, C, H, W] each, mapped into memory.
        label: int32 [N], an index into `labels`, or -1.
        split: int8 [N]: 0 train, 1 validation.
        labels: their names.
        shape: (C, H, W).
        content: SHA-256 of each shard's file.
    """

    shards: list[npt.NDArray[np.uint8]]
    label: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    labels: list[str]
    shape: Shape
    content: list[str]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def digest(self) -> str:
        """Of all pixels, labels and how records are split: 16 hexadecimal digits."""
        told = [self.labels, list(self.shape), self.content]
        found = hashlib.sha256(json.dumps(told).encode())
        found.update(self.label.tobytes() + self.split.tobytes())
        return found.hexdigest()[:16]

    def images(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """The images at some rows, float32 [len(rows), C, H, W] in [-1, 1]."""
        ends = np.cumsum([len(shard) for shard in self.shards])
        found = np.empty((len(rows), *self.shape), dtype=np.uint8)
        of = np.searchsorted(ends, rows, side="right")
        for shard in np.unique(of):
            mine = np.nonzero(of == shard)[0]
            mine = mine[np.argsort(rows[mine], kind="stable")]  # a disk is read in order
            first = ends[shard] - len(self.shards[shard])
            found[mine] = self.shards[shard][rows[mine] - first]
        return torch.from_numpy(found).float() / 127.5 - 1


def write_images(
    records: Iterable[tuple[Pixels, str | None]],
    folder: Path,
    shape: Shape,
    *,
    held_out: Iterable[str] = (),
    left_out: Iterable[str] = (),
    shard: int = SHARD,
    progress: Callable[[int], None] | None = None,
) -> ImageCorpus:
    """Writes a corpus; whole, or not at all.

    Args:
        records: images float32 [C, H, W] in [-1, 1], each with its label or None.
        folder: is made, and must not exist.
        shape: (C, H, W).
        held_out: labels for validation; when empty a sixth of them, but three at least; or every
            sixth record of each, copies of it along, where there are fewer than nine labels.
        left_out: labels that do not enter, because they stand for private data.
        shard: records in a file.
        progress: called with the records written.

    Returns:
        The corpus, opened.

    Raises:
        UsageError: the folder exists, a label named is not there, or a split has too few records.
    """
    if folder.exists():
        raise UsageError(
            expected=f"{folder} to be new", found="something there", todo="Choose another folder."
        )
    kept, never = set(held_out), set(left_out)
    with whole_folder(folder) as temporary:
        names: dict[str, int] = {}
        label: list[int] = []
        sizes: list[int] = []
        content: list[str] = []
        prints: list[bytes] = []
        waiting: list[npt.NDArray[np.uint8]] = []
        met: set[str] = set()

        def flush() -> None:
            path = temporary / f"pixels-{len(sizes):05d}.npy"
            np.save(path, np.stack(waiting))
            content.append(_digest(path))
            sizes.append(len(waiting))
            waiting.clear()

        for pixels, name in records:
            if name is not None:
                met.add(name)
            if name in never:
                continue
            label.append(-1 if name is None else names.setdefault(name, len(names)))
            image = np.asarray((pixels + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
            waiting.append(image)
            prints.append(hashlib.sha256(image.tobytes()).digest())
            if len(waiting) == shard:
                flush()
            if progress is not None:
                progress(len(label))
        if waiting:
            flush()
        if missing := sorted((kept | never) - met):
            raise UsageError(
                expected="labels that are in the data",
                found=", ".join(missing),
                todo=f"Name some of: {', '.join(sorted(met)[:20])}.",
            )
        labels = np.asarray(label, dtype=np.int32)
        split = _split(labels, list(names), kept, prints)
        counts = np.bincount(split, minlength=2)
        if counts.min() < LEAST:
            raise UsageError(
                expected=f"at least {LEAST} records to train on and {LEAST} held out",
                found=f"{counts[0]} and {counts[1]}",
                todo="Give more data, or name other labels with --held-out. Copies of one image "
                "are all on one side.",
            )
        np.savez(temporary / "index.npz", label=labels, split=split)
        told = {
            "format": FORMAT,
            "shape": list(shape),
            "labels": list(names),
            "shards": sizes,
            "sha256": content,
        }
        (temporary / INDEX).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return open_images(folder)


def _split(
    labels: npt.NDArray[np.int32], names: list[str], held_out: set[str], prints: list[bytes]
) -> npt.NDArray[np.int8]:
    """int8 [N]: whole labels where there are enough of them, single records elsewhere.

    Copies of one image, whose `prints` are the same, are all where the first of them is.
    """
    if not held_out and len(names) >= FEW_LABELS:
        most, count = sorted(names), max(LEAST_HELD_OUT, len(names) // HELD_OUT_EVERY)
        held_out = {most[len(names) * (2 * i + 1) // (2 * count)] for i in range(count)}
    if held_out:
        chosen = np.array([name in held_out for name in names] + [False])  # -1 is the last
        return np.asarray(chosen[labels], dtype=np.int8)
    where: dict[bytes, int] = {}
    met: Counter[int] = Counter()
    for label, image in zip(labels.tolist(), prints, strict=True):
        if image not in where:
            where[image] = int(met[label] % HELD_OUT_EVERY == 0)
            met[label] += 1
    return np.array([where[image] for image in prints], dtype=np.int8)


def open_images(folder: Path) -> ImageCorpus:
    """Opens a corpus that `write_images` wrote.

    Raises:
        UsageError: it is none, or is damaged.
    """
    try:
        told = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise ValueError(told["format"])
        shape = (int(told["shape"][0]), int(told["shape"][1]), int(told["shape"][2]))
        shards = [
            np.load(folder / f"pixels-{i:05d}.npy", mmap_mode="r", allow_pickle=False)
            for i in range(len(told["shards"]))
        ]
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            label, split = index["label"], index["split"]
        # A corpus from before there were digests has its files read once more.
        content = told.get("sha256") or [_digest(Path(str(s.filename))) for s in shards]
        sound = (
            [len(shard) for shard in shards] == told["shards"]
            and len(content) == len(shards)
            and len(label) == len(split) == sum(told["shards"])
            and all(s.shape[1:] == shape and s.dtype == np.uint8 for s in shards)
        )
        if not sound:
            raise ValueError("parts that do not fit together")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(
            expected=f"a corpus of images in {folder}",
            found=f"{type(error).__name__}",
            todo="Write it with `hyperdp pretrain images`.",
        ) from error
    return ImageCorpus(
        shards=shards,
        label=label,
        split=split,
        labels=list(told["labels"]),
        shape=shape,
        content=[str(one) for one in content],
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
