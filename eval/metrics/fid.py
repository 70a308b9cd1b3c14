"""FID, KID, their real/real floor and the recovered gain, over features extracted once per set.

FID is biased upwards by roughly 1/sample size (Bińkowski et al. 2018; Chong & Forsyth 2020): in
1280 dimensions, two real halves of one set are tens of points apart. So a score carries its two
sample sizes, the floor is taken at the sizes of the methods, and scores of different sizes are
never combined. The sizes used here: 2,000 generated against 2,500 reference images, where the set
has that many, and for the floor 2,000 private records against the same 2,500.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from hyperdp.errors import DataError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.frechet import frechet

GENERATED_SAMPLES = 2000
KID_SUBSETS = 50
KID_SUBSET_SIZE = 500


@dataclass(frozen=True, kw_only=True)
class Score:
    """One distance and everything it may be compared on.

    Attributes:
        metric: `fid` or `kid`.
        extractor: the feature extractor's name.
        value: the distance; smaller is closer.
        std: KID: standard deviation over subsets. FID: None.
        generated, reference: number of images on either side.
    """

    metric: str
    extractor: str
    value: float
    std: float | None
    generated: int
    reference: int

    @property
    def title(self) -> str:
        """The name to print, never without its features: "FID (EfficientNet-Lite0 features)"."""
        return metric_title(self.metric, self.extractor)


def metric_title(metric: str, extractor: str) -> str:
    """A metric's printed name, which always says which features it rests on."""
    return f"{metric.upper()} ({extractor} features)"


class _Precomputed(nn.Module):
    """Hands features through where torchmetrics expects a network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(generated: Features, reference: Features) -> Score:
    """Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, eq. 6).

    Args:
        generated: features of ≥ 2 images.
        reference: features of ≥ 2 images by the same extractor.

    Returns:
        The score, in float64; agrees with torchmetrics.

    Raises:
        DataError: different extractors or too few images.
    """
    _check(generated, reference, least=2)
    value = frechet(generated.values.double(), reference.values.double())
    return _score("fid", generated, reference, value, None)


def kid(
    generated: Features,
    reference: Features,
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> Score:
    """Kernel distance: unbiased squared MMD, cubic kernel, over subsets (Bińkowski et al. 2018).

    Unlike FID its expectation does not depend on the sample size, and it may be below zero.

    Args:
        generated: features of ≥ 2 images.
        reference: features of ≥ 2 images by the same extractor.
        subsets: number of random subset pairs.
        subset_size: images a subset, cut to the smaller set's size.
        seed: of the subsets.

    Returns:
        The mean over subsets, with the standard deviation over subsets as `std`; float64.

    Raises:
        DataError: different extractors or too few images.
    """
    _check(generated, reference, least=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")
        metric = KernelInceptionDistance(
            feature=_Precomputed(generated.values.shape[1]),
            subsets=subsets,
            subset_size=min(subset_size, len(generated), len(reference)),
        )
    metric.update(reference.values.double(), real=True)
    metric.update(generated.values.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torchmetrics draws its subsets from the global generator
        mean, std = metric.compute()
    return _score("kid", generated, reference, float(mean), float(std))


def fid_floor(
    real: Features, reference: Features, *, sample_size: int = GENERATED_SAMPLES
) -> Score:
    """FID of real images against other real images: what a perfect generator would score.

    Args:
        real: features of real images that are not in the reference, ≥ `sample_size` of them.
        reference: features of the reference images.
        sample_size: number of generated images the methods are measured on.

    Returns:
        FID of the first `sample_size` real images.

    Raises:
        DataError: fewer real images than `sample_size`.
    """
    return fid(real.head(sample_size), reference)


def kid_floor(
    real: Features, reference: Features, *, sample_size: int = GENERATED_SAMPLES, seed: int = 0
) -> Score:
    """KID of real images against other real images; see `fid_floor`."""
    return kid(real.head(sample_size), reference, seed=seed)


def recovered_gain(*, base: Score, method: Score, nonprivate: Score) -> float:
    """The share of the gain of training without privacy that a method reaches.

    (FID_base − FID_method) / (FID_base − FID_nonprivate): 0 is the base model, 1 is LoRA on all
    private records without privacy. Above 1 and below 0 are possible.

    Args:
        base: the base model's score.
        method: the method's score.
        nonprivate: non-private LoRA's score, on all private records.

    Returns:
        The recovered gain; NaN where non-private training gained nothing to recover.

    Raises:
        DataError: the scores differ in metric, extractor or sample sizes.
    """
    kinds = {(s.metric, s.extractor, s.generated, s.reference) for s in (base, method, nonprivate)}
    if len(kinds) > 1:
        raise DataError(
            expected="three scores of one metric, extractor, sample size and reference size",
            found=" and ".join(sorted(map(str, kinds))),
            todo="Measure all methods on the same number of images: FID depends on it.",
        )
    gap = base.value - nonprivate.value
    return (base.value - method.value) / gap if gap > 0 else math.nan


def _check(generated: Features, reference: Features, *, least: int) -> None:
    if generated.extractor != reference.extractor:
        raise DataError(
            expected=f"both sets' features from {reference.extractor}",
            found=generated.extractor,
            todo="Extract both with the same extractor.",
        )
    if min(len(generated), len(reference)) < least:
        raise DataError(
            expected=f"at least {least} images on either side",
            found=f"{len(generated)} generated and {len(reference)} reference images",
            todo="Add images; below a few hundred neither FID nor KID says much.",
        )


def _score(
    metric: str, generated: Features, reference: Features, value: float, std: float | None
) -> Score:
    return Score(
        metric=metric,
        extractor=generated.extractor,
        value=value,
        std=std,
        generated=len(generated),
        reference=len(reference),
    )
