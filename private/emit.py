"""From a release to LoRA adapters: post-processing, which reads no private data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.certificate import CERTIFICATE_FILE
from hyperdp.drift import Measured
from hyperdp.errors import BundleError, UsageError
from hyperdp.families import FAMILIES
from hyperdp.folders import whole_folder
from hyperdp.guard import Finding, load_guard
from hyperdp.lora import Weights, pick, save_peft
from hyperdp.private.release import Release
from hyperdp.text_bundle import TextBundle

AnyBundle = TypeVar("AnyBundle", bound=Bundle | TextBundle)


def adapter_weights(bundle: Bundle | TextBundle, mean: Tensor, noise_std: Tensor) -> Weights:
    """ρ(z, noise level) for one or more classes.

    Args:
        bundle: its hypernetwork.
        mean: float32 [L, k], noisy mean embeddings.
        noise_std: float32 [L], noise std per coordinate of `mean`.

    Returns:
        L adapters, A [1, r, in, …] shared and B [L, out, r].
    """
    with torch.no_grad():
        weights: Weights = bundle.hypernetwork(mean.float(), noise_std.float())
    return weights


def measured_classes(release: Release) -> list[Measured]:
    """What a release tells of each class, as `hyperdp.drift` compares it."""
    spec = release.certificate.spec
    noisy = release.certificate.sigma_lattice / spec.count_bound * spec.counts_are_private
    parts = zip(release.mean().numpy(), release.mean_noise_std(), release.count(), strict=True)
    return [
        Measured(
            mean=mean.astype(np.float64),
            noise_std=float(std),
            units=float(count),
            units_std=float(noisy),
        )
        for mean, std, count in parts
    ]


def judge_release(release: Release | str | Path, bundle: Bundle | TextBundle) -> Finding | None:
    """Whether a release lies further from all public tasks than its noise explains.

    Args:
        release: a release, or the folder it lies in.
        bundle: the bundle that the release was made with.

    Returns:
        The finding; None where the bundle has no calibration data.

    Raises:
        BundleError: the release was made with another bundle, or the calibration data is damaged
            or another bundle's.
    """
    loaded = release if isinstance(release, Release) else Release.load(Path(release))
    check_bundle(loaded, bundle)
    guard = load_guard(bundle.path, bundle.hash)
    if guard is None:
        return None
    return guard.judge(
        loaded.mean().double().numpy(),
        loaded.mean_noise_std().double().numpy(),
        loaded.count(),
        noisy_count=loaded.certificate.spec.counts_are_private,
    )


def emit_adapter(
    release: Release | str | Path,
    bundle: AnyBundle,
    out: str | Path,
    *,
    read: Callable[[AnyBundle, Tensor, Tensor], Weights] | None = None,
) -> list[Path]:
    """Writes the adapter of a release as a PEFT directory, or one directory for each class.

    Args:
        release: a release, or the folder it lies in.
        bundle: the bundle that the release was made with.
        out: a folder that does not exist or is empty. An unlabelled release is written to it, a
            labelled one to a folder of it for each class; the certificate goes beside the adapters.
        read: what makes adapters of (bundle, z, noise std); `adapter_weights` when None,
            `hyperdp.private.reweight.adapt_on_public` where public records are at hand.

    Returns:
        The PEFT directories, in the order of the classes.

    Raises:
        BundleError: the release was made with another bundle.
        UsageError: `out` holds files already.
    """
    loaded = release if isinstance(release, Release) else Release.load(Path(release))
    check_bundle(loaded, bundle)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            expected="an empty or new folder to write to",
            found=str(folder),
            todo="Choose another --out.",
        )
    classes = loaded.classes
    names = ["."] if classes is None else class_folders(classes)
    family = FAMILIES.get(bundle.config.family)  # none of a language model, which has no pipeline
    part = "" if family is None else family.lora_part
    with whole_folder(folder) as draft:
        weights = (read or adapter_weights)(bundle, loaded.mean(), loaded.mean_noise_std())
        for group, name in enumerate(names):
            save_peft(pick(weights, group), draft / name, base_name=bundle.name, pipeline_part=part)
        (draft / CERTIFICATE_FILE).write_bytes(loaded.certificate.to_bytes())
    return [folder / name for name in names]


def check_bundle(release: Release, bundle: Bundle | TextBundle) -> None:
    """Refuses a release that was made with another bundle.

    Raises:
        BundleError: it was.
    """
    certificate = release.certificate
    if certificate.bundle_hash != bundle.hash:
        raise BundleError(
            expected="the bundle that the release was made with, "
            f"{certificate.bundle_name!r}, {certificate.bundle_hash[:12]}",
            found=f"{bundle.name!r}, {bundle.hash[:12]}",
            todo="Give that bundle with --bundle; another one reads z as something else.",
        )


def class_folders(names: Sequence[str]) -> list[str]:
    """A folder name for each class: `_` for what is no letter, digit, dot, dash or underscore.

    Names that come to the same, as on a disk that tells no capitals, are told by their places.
    """
    plain = [re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_" for name in names]
    often = Counter([*(name.casefold() for name in plain), CERTIFICATE_FILE])
    found = [
        name if often[name.casefold()] == 1 else f"{name}-{place}"
        for place, name in enumerate(plain)
    ]
    return found if found == plain else class_folders(found)
