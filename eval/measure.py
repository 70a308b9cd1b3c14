"""One folder of generated images against real ones: every metric beside what real images score."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hyperdp.errors import DataError, UsageError
from hyperdp.eval.features import FeatureExtractor, extract
from hyperdp.eval.flags import Findings, flags
from hyperdp.eval.metrics.fid import Score, fid, fid_floor, kid, kid_floor
from hyperdp.eval.metrics.interval import (
    Interval,
    fid_floor_interval,
    fid_interval,
    kid_floor_interval,
    kid_interval,
)
from hyperdp.eval.metrics.precision_recall import ManifoldScores, manifold_scores
from hyperdp.eval.metrics.roc import Attack, distance_attack
from hyperdp.eval.private_sets import PRIVATE_SETS, load_private_set
from hyperdp.private.readers import open_dataset
from hyperdp.private.readers.dataset import nothing
from hyperdp.private.readers.folder import list_files
from hyperdp.private.readers.images import Shape, from_file

NOT_PRIVATE = "not differentially private, do not publish"
SPLIT_SEED = 0
# `hyperdp sample` numbers its images; a preview that lies beside them is no sample.
_SAMPLE = re.compile(r"\d{5,}\.png")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How close generated images are to real ones, all at the same two sample sizes.

    Attributes:
        fid, kid: generated against the reference.
        fid_floor, kid_floor: real images that are not in the reference against the reference.
        manifold, manifold_floor: precision, recall, density and coverage of the same two.
        intervals: of `fid`, `kid`, `fid_floor` and `kid_floor`, by these names; {} where not asked.
        findings: flags on memorisation; None without private records.
        attack: membership inference by distance; None without private records.
    """

    fid: Score
    kid: Score
    fid_floor: Score
    kid_floor: Score
    manifold: ManifoldScores
    manifold_floor: ManifoldScores
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    findings: Findings | None = None
    attack: Attack | None = None


def measure(
    generated: Tensor,
    reference: Tensor,
    held_out: Tensor | None,
    extractor: FeatureExtractor,
    *,
    train: Tensor | None = None,
    intervals: bool = False,
) -> Measurement:
    """Measures generated images and, at the same sizes, real ones.

    Args:
        generated: float32 [G, C, H, W] in [-1, 1].
        reference: float32 [R, C, H, W], real images.
        held_out: float32 [M, C, H, W], real images that are not in the reference. None: a random
            part of the reference, min(G, R / 2) images with a fixed seed, is taken out for it.
        extractor: of the features.
        train: float32 [n, C, H, W], the private records that the generator has learned from; they
            are compared with the reference, which must be of the same source and hold none of them.
        intervals: also say how sure FID and KID are; takes a minute where there are thousands.

    Returns:
        Scores of min(G, M) images; of the longer set the first ones count.

    Raises:
        DataError: fewer than six images for any part.
    """
    real = extract(extractor, reference)
    if held_out is None:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(SPLIT_SEED))
        cut = min(len(generated), len(real) // 2)
        apart, rest = real.select(order[:cut]), real.select(order[cut:])
    else:
        apart, rest = extract(extractor, held_out), real
    size = min(len(generated), len(apart))
    made, apart = extract(extractor, generated[:size]), apart.head(size)
    private = None if train is None else extract(extractor, train)
    score = fid(made, rest)
    return Measurement(
        fid=score,
        kid=kid(made, rest),
        fid_floor=fid_floor(apart, rest, sample_size=size),
        kid_floor=kid_floor(apart, rest, sample_size=size),
        manifold=manifold_scores(made, rest),
        manifold_floor=manifold_scores(apart, rest),
        intervals={
            "fid": fid_interval(made, rest, value=score.value),
            "kid": kid_interval(made, rest),
            "fid_floor": fid_floor_interval(apart, rest),
            "kid_floor": kid_floor_interval(apart, rest),
        }
        if intervals
        else {},
        findings=None if private is None else flags(made, train=private, held_out=real),
        attack=None if private is None else distance_attack(made, private, real),
    )


def read_generated(folder: Path) -> Tensor:
    """Reads a folder of generated images, sub-folders with it.

    In a folder that `hyperdp sample` wrote, only the numbered images count, not the previews.

    Args:
        folder: images of one size; the first one's size and colour decide.

    Returns:
        float32 [G, C, H, W] in [-1, 1].

    Raises:
        UsageError: no such folder, or nothing in it.
        DataError: a file is no image.
    """
    files = list_files(folder) if folder.is_dir() else []
    files = [file for file in files if _SAMPLE.fullmatch(file.name)] or files
    if not files:
        raise UsageError(
            expected="a folder of generated images",
            found=f"nothing at '{folder}'",
            todo="Make one with `hyperdp sample`.",
        )
    shape = _shape(files[0])
    arrays = [from_file(file, shape, f"the file '{file.relative_to(folder)}'") for file in files]
    return torch.stack([torch.from_numpy(array) for array in arrays])


def read_reference(
    source: str,
    shape: Shape,
    *,
    image_column: str | None = None,
    skip_unreadable: bool = False,
    invert: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Reads real images: a dataset by its path, or a private test set by its name.

    Args:
        source: what `open_dataset` reads, or a name of `PRIVATE_SETS`.
        shape: (C, H, W) that datasets are brought to.
        image_column: of a dataset, as of `open_dataset`.
        skip_unreadable: likewise.
        invert: likewise.

    Returns:
        The reference, float32 [R, C, H, W] in [-1, 1]; and of a named set its pool, which no
        reference image is in, else None.

    Raises:
        UsageError: neither a path nor a name.
        DataError: a record cannot be read.
    """
    if source in PRIVATE_SETS and not Path(source).exists():
        named = load_private_set(source)
        return named.reference, named.pool
    dataset = open_dataset(
        source,
        image_shape=shape,
        image_column=image_column,
        skip_unreadable=skip_unreadable,
        invert=invert,
    )
    images = [torch.from_numpy(record.image) for record in dataset.records()]
    if not images:
        raise nothing(source)
    return torch.stack(images), None


def _shape(file: Path) -> Shape:
    try:
        with Image.open(file) as image:
            channels = 1 if image.mode in {"1", "L", "LA", "I;16", "I", "F"} else 3
            return channels, image.height, image.width
    except OSError as error:
        raise DataError(
            expected=f"'{file}' to be an image",
            found="something that cannot be decoded",
            todo="Remove what is no image from the folder.",
        ) from error
