"""The adapter that a fit begins with, and the trial of the base model on public noise."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.errors import BundleError, UsageError
from hyperdp.lora import Weights, describe_sites
from hyperdp.private.emit import adapter_weights
from hyperdp.private.finetune import Tunable, fresh_adapter
from hyperdp.private.forms import Form
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.private.learners.spectral import spectral_start
from hyperdp.private.learners.step_rule import PerExample
from hyperdp.private.released import Release
from hyperdp.text_bundle import TextBundle

_PUBLIC_NOISE_STD = 5e-4  # a public mean has no noise: the lowest level that ρ has seen
_MIXING = 1e-4  # relative; what another order of sums can make of a gradient


def site_names(config: FitConfig, bundle: Bundle | TextBundle) -> list[str]:
    """The LoRA sites that a configuration asks for.

    Raises:
        UsageError: a name that is none of the bundle's sites.
    """
    legal = bundle.config.sites
    wanted = config.target_modules or tuple(legal)
    if wrong := [name for name in wanted if name not in legal]:
        raise UsageError(
            expected=f"target modules among the bundle's LoRA sites: {', '.join(legal)}",
            found=", ".join(wrong),
            todo="Name some of these, or none for all of them.",
        )
    return [name for name in legal if name in wanted]


def start_weights(
    config: FitConfig, bundle: Bundle | TextBundle, release: Release | None
) -> Weights:
    """The adapter that a fit begins with; public, or a function of an earlier release.

    Args:
        config: its sites, rank and start.
        bundle: ρ.
        release: whose adapter to begin with, or None.

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r], detached.

    Raises:
        BundleError: the release was made with another bundle.
        UsageError: the release is labelled; a site that is none; a start that the method cannot
            use, or whose rank the base does not have.
    """
    names = site_names(config, bundle)
    if release is None and config.start == "spectral":
        if config.method == "projected":
            raise UsageError(
                expected="a start in the public subspace for the method projected",
                found="start='spectral'",
                todo="Start from LoRA's standard start (fresh), the public mean or a release.",
            )
        return spectral_start(bundle.base.model, names, config.rank)
    if release is None and config.start == "fresh" and config.method != "projected":
        # The one random choice outside the noise; torch seeds this from the operating system.
        rng = torch.Generator()
        rng.seed()
        fresh = fresh_adapter(describe_sites(bundle.base.model, names), config.rank, rng)
        return {name: (a.detach(), b.detach()) for name, (a, b) in fresh.items()}
    mean, std = bundle.public_mean[None], torch.full((1,), _PUBLIC_NOISE_STD)
    if release is not None:
        if release.certificate.bundle_hash != bundle.hash:
            raise BundleError(
                expected=f"the bundle the release was made with, {release.certificate.bundle_hash}",
                found=f"{bundle.name!r}, {bundle.hash}",
                todo="Give that bundle with --bundle.",
            )
        if release.classes is not None:
            raise UsageError(
                expected="an unlabelled release to start from, whose adapter is one",
                found=f"one of {len(release.classes)} classes",
                todo="Make an unlabelled release.",
            )
        mean, std = release.mean(), release.mean_noise_std()
    emitted = adapter_weights(bundle, mean, std)
    scale = 0.0 if release is None and config.start == "fresh" else 1.0  # projected: ρ's lora_A
    return {name: (emitted[name][0].clone(), emitted[name][1] * scale) for name in names}


def check_separate(family: Tunable, weights: Weights, form: Form, *, microbatch: int) -> None:
    """Refuse a base model in which one record changes another's gradient. Reads no private data.

    Raises:
        BundleError: a gradient on public noise changes with its companions.
    """
    count = max(2, microbatch)
    images = torch.from_numpy(form.probes(count))
    half = count // 2
    tried = _awake(weights)

    def gradients(batch: Tensor) -> PerExample:
        return per_example_gradients(
            family.model,
            tried,
            lambda: record_losses(family, batch, 1, torch.Generator().manual_seed(0)),
            examples=count,
        )

    first = gradients(images)
    size = sum(float(x[:half].square().sum()) for pair in first.values() for x in pair)
    change, extremes = 0.0, form.extremes()
    for start in range(0, len(extremes), count - half):
        other = images.clone()  # with companions that are not finite, too: they spoil their own
        for place in range(half, count):
            other[place] = extremes[(start + place - half) % len(extremes)]
        second = gradients(other)
        change += sum(
            float((x[:half] - y[:half]).square().sum())
            for name in first
            for x, y in zip(first[name], second[name], strict=True)
        )
    if not change <= _MIXING**2 * size:
        raise BundleError(
            expected="a base model in which every gradient depends on its own record alone",
            found="gradients that change with the other records of a batch",
            todo="Use a base model without batch statistics; the sensitivity would not hold.",
        )


def _awake(weights: Weights) -> Weights:
    """The adapter, with public noise for a lora_B of zeros, which would hide lora_A's gradient."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: (a, b if bool(b.any()) else 0.01 * torch.randn(b.shape, generator=rng).to(b))
        for name, (a, b) in weights.items()
    }
