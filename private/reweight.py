"""Post-processing of z with public records: they are re-weighted until their mean embedding is z.

z is all that is read of the private data, so this costs no privacy (Dwork & Roth 2014, proposition
2.1). ρ answers in one forward pass and has to spread its capacity over every public task; a few
steps of LoRA from its answer, on the public records that z points at, are spent on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.embed import BATCH_SIZE, embedding_here
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import FinetuneConfig, Progress, train_adapters
from hyperdp.text_bundle import TextBundle

LEAST_NOISE_STD = 3e-3
"""A public mean is itself known no better than this, and public records can be no better fitted."""
FEWEST_RECORDS = 100
LEAST_BATCH = 4
MOST_SHARPENING = 4.0
"""How far a tilt is lengthened at most: a release that is all noise rules nothing out."""


@dataclass(frozen=True, kw_only=True)
class ReweightConfig:
    """How an adapter is fitted to re-weighted public records; chosen on public tasks of images.

    Attributes:
        steps: of AdamW with linear warm-up and cosine.
        batch_size: records a step over all classes, and `LEAST_BATCH` of each at least.
        lr: learning rate.
        ema: decay of the weight average that is returned.
        discrepancy: of `reweight` for the classes of a labelled release, where a record of the
            wrong class is worse than fewer records; 0 is taken for an unlabelled one, and where
            the public records' own classes are known.
        seed: of the draws. Public: nothing secret hangs on it.
    """

    steps: int = 150
    batch_size: int = 40
    lr: float = 2e-3
    ema: float = 0.97
    discrepancy: float = 0.75
    seed: int = 0


OF_TEXTS = ReweightConfig(steps=400, batch_size=16, lr=5e-3, ema=0.95)
"""For documents: chosen on public topics."""


def usual_config(bundle: Bundle | TextBundle) -> ReweightConfig:
    """The settings for a bundle's kind of record."""
    return OF_TEXTS if isinstance(bundle, TextBundle) else ReweightConfig()


def tilt(
    embeddings: NDArray[np.float64], mean: NDArray[np.float64], noise_std: float
) -> NDArray[np.float64]:
    """λ of the weights wᵢ ∝ exp(λᵀφᵢ) that minimise KL(w ‖ uniform) + ‖Σ wᵢ φᵢ - z‖² / (2 s²).

    Maximum entropy under moments that are known with noise, found through its convex dual (Dudík,
    Phillips & Schapire 2007, JMLR 8).

    Args:
        embeddings: float64 [N, k], clipped embeddings φᵢ of public records.
        mean: float64 [k], z: a noisy mean embedding.
        noise_std: s > 0, its noise std per coordinate.

    Returns:
        float64 [k].
    """

    def dual(tilt: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = embeddings @ tilt
        value = logsumexp(scores) - tilt @ mean + 0.5 * noise_std**2 * tilt @ tilt
        return float(value), softmax(scores) @ embeddings - mean + noise_std**2 * tilt

    found = minimize(
        dual, np.zeros(len(mean)), jac=True, method="L-BFGS-B",
        options={"maxiter": 1000, "gtol": 1e-7, "ftol": 1e-13},
    )  # fmt: skip
    solution: NDArray[np.float64] = found.x
    return solution


def reweight(
    embeddings: NDArray[np.float64],
    mean: NDArray[np.float64],
    noise_std: float,
    *,
    discrepancy: float = 0.0,
) -> NDArray[np.float64]:
    """Weights of public records whose mean embedding is z as far as z is known.

    Those of `tilt` are the least committed ones, nearer to all public data than the private records
    are. With a `discrepancy` λ is lengthened until ‖Σ wᵢ φᵢ - z‖ is that share of s √k, the length
    of the noise (discrepancy principle, Morozov 1966): purer records, and fewer of them. Where no
    weights come so near to z, what is missing counts as noise.

    Args:
        embeddings: float64 [N, k], clipped embeddings φᵢ of public records.
        mean: float64 [k], z: a noisy mean embedding.
        noise_std: s, its noise std per coordinate; at least `LEAST_NOISE_STD` is reckoned with.
        discrepancy: at most 1; 0 for the tilt itself.

    Returns:
        float64 [N], sum 1.
    """
    std, root = max(noise_std, LEAST_NOISE_STD), math.sqrt(len(mean))

    def misfit(scores: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(softmax(scores) @ embeddings - mean))

    scores = embeddings @ tilt(embeddings, mean, std)
    while misfit(scores) > std * root:
        std *= 1.5
        scores = embeddings @ tilt(embeddings, mean, std)

    def excess(length: float) -> float:
        return misfit(length * scores) - discrepancy * std * root

    length = 1.0
    if discrepancy > 0 and excess(MOST_SHARPENING) <= 0:
        length = MOST_SHARPENING
    elif discrepancy > 0 and excess(1.0) < 0:
        length = brentq(excess, 1.0, MOST_SHARPENING, xtol=1e-3)
    weights: NDArray[np.float64] = softmax(length * scores)
    return weights


def embed_public(bundle: Bundle | TextBundle, public: Tensor) -> NDArray[np.float64]:
    """Clipped embeddings of public records.

    Args:
        bundle: its encoder and clip norm.
        public: images float32 [N, C, H, W] in [-1, 1], or documents int64 [N, L].

    Returns:
        float64 [N, k].
    """
    with embedding_here(bundle.encoder) as embed:
        parts = list(embed(part.numpy() for part in torch.split(public, BATCH_SIZE)))
    embeddings = np.concatenate(parts).astype(np.float64)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    clipped: NDArray[np.float64] = embeddings * np.minimum(
        1.0, bundle.config.clip_norm / np.maximum(norms, np.finfo(np.float64).tiny)
    )
    return clipped


def class_weights(
    embeddings: NDArray[np.float64],
    mean: Tensor,
    noise_std: Tensor,
    *,
    classes: NDArray[np.int64] | None = None,
    discrepancy: float = 0.0,
) -> NDArray[np.float64]:
    """Weights of public records for every class of a release.

    Args:
        embeddings: float64 [N, k], clipped embeddings of public records.
        mean: float32 [L, k], noisy mean embeddings.
        noise_std: float32 [L], their noise std per coordinate.
        classes: int64 [N], the class that a public record is known to be of, else -1. A class then
            has weight on its own records alone, and the tilt has none left to tell apart.
        discrepancy: of `reweight`, where the classes are not known; see `ReweightConfig`.

    Returns:
        float64 [L, N], rows of sum 1.

    Raises:
        UsageError: fewer than 100 public records, or of a class.
    """
    weights = np.zeros((len(mean), len(embeddings)))
    for row, (z, std) in enumerate(zip(mean.double().numpy(), noise_std, strict=True)):
        own = np.arange(len(embeddings)) if classes is None else np.flatnonzero(classes == row)
        if len(own) < FEWEST_RECORDS:
            of_class = "" if classes is None else f" of class number {row}"
            raise UsageError(
                expected=f"at least {FEWEST_RECORDS} public records{of_class}",
                found=str(len(own)),
                todo="Give more; thousands are good.",
            )
        sharpness = discrepancy if classes is None and len(mean) > 1 else 0.0
        weights[row, own] = reweight(embeddings[own], z, float(std), discrepancy=sharpness)
    return weights


def effective_size(weights: NDArray[np.float64]) -> float:
    """Kish's effective number of records behind weights of sum 1: 1 / Σ wᵢ²."""
    return float(1 / np.square(weights).sum())


def adapt_on_public(
    bundle: Bundle | TextBundle,
    mean: Tensor,
    noise_std: Tensor,
    public: Tensor,
    config: ReweightConfig | None = None,
    *,
    classes: Tensor | None = None,
    progress: Progress | None = None,
) -> Weights:
    """LoRA steps from ρ(z), for every class, on public records re-weighted to have the mean z.

    Where the public records' classes are known, the mean of a class's re-weighted records stands
    for z: that is z less what no records of that class could have, for the most part noise.

    Args:
        bundle: its encoder, hypernetwork and base model.
        mean: float32 [L, k], noisy mean embeddings of a release.
        noise_std: float32 [L], their noise std per coordinate.
        public: images float32 [N, C, H, W] in [-1, 1], or documents int64 [N, L]: public records
            in which something like the private ones occurs. Anything private here would be read
            without any privacy.
        config: `usual_config` when None.
        classes: int64 [N], the class that each public record is known to be of, by its number in
            the release, or -1; see `class_weights`. None where that is not known.
        progress: called with (steps done, steps).

    Returns:
        L adapters, A [L, r, in, …] and B [L, out, r].

    Raises:
        UsageError: fewer than 100 public records, or of a class.
    """
    config = usual_config(bundle) if config is None else config
    known, embeddings = None if classes is None else classes.numpy(), embed_public(bundle, public)
    found = class_weights(
        embeddings, mean, noise_std, classes=known, discrepancy=config.discrepancy
    )
    if known is not None:  # what is known of a class takes most of the noise away
        mean = torch.from_numpy(found @ embeddings).to(mean)
        noise_std = torch.full_like(noise_std, LEAST_NOISE_STD)
    weights, rng = torch.from_numpy(found), torch.Generator().manual_seed(config.seed)  # [L, N]

    def draw(count: int) -> Tensor:
        return public[torch.multinomial(weights, count, replacement=True, generator=rng)]

    family = bundle.load_base()
    family.prepare_training()
    start = adapter_weights(bundle, mean, noise_std)
    finetune = FinetuneConfig(
        rank=bundle.hypernetwork.config.rank,
        steps=config.steps,
        batch_size=max(LEAST_BATCH, config.batch_size // len(mean)),
        lr=config.lr,
        ema=config.ema,
        bf16=isinstance(bundle, Bundle),  # it slows the fused attention of a language model
    )
    return train_adapters(family, start, draw, finetune, rng, progress=progress)
