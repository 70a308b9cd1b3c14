"""Bundles of text: text encoder + hypernetwork + causal language model, known by one hash."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperdp.bundle import Bundle, bundle_folder, load_bundle
from hyperdp.errors import BundleError, HyperdpError
from hyperdp.folders import replaced_folder
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites
from hyperdp.manifest import MANIFEST, MEASURED, check_sizes, read_manifest, write_manifest
from hyperdp.text_encoder import GradientEncoder, build_text_encoder
from hyperdp.text_family import CausalText

MODEL = "lm"
LARGEST_MODEL_SIZE = 2**24  # vocabularies and rotary bases are larger than a bundle's own sizes


@dataclass(frozen=True, kw_only=True)
class TextBundleConfig:
    """What a text bundle says of itself; all of it public.

    Attributes:
        name, embed_dim, clip_norm, sites, hypernetwork, public_mean, other_task_mean: as of
            `hyperdp.bundle.BundleConfig`.
        family: `causal-lm`.
        text_length: L, tokens of a record.
        vocab_size: V of the base model's tokenizer.
        encoder_kind: a key of `hyperdp.text_encoder.TEXT_ENCODERS`.
        encoder: its configuration.
    """

    name: str
    family: str
    embed_dim: int
    clip_norm: float
    text_length: int
    vocab_size: int
    sites: list[str]
    encoder_kind: str
    encoder: dict[str, Any]
    hypernetwork: dict[str, Any]
    public_mean: list[float]
    other_task_mean: list[float]


@dataclass(kw_only=True)
class TextBundle:
    """A loaded text bundle; attributes as of `hyperdp.bundle.Bundle`."""

    config: TextBundleConfig
    path: Path
    hash: str
    encoder: nn.Module
    hypernetwork: Hypernetwork
    base: CausalText

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.config.name

    @property
    def public_mean(self) -> Tensor:
        """float32 [k]."""
        return torch.tensor(self.config.public_mean)

    @property
    def other_task_mean(self) -> Tensor:
        """float32 [k]."""
        return torch.tensor(self.config.other_task_mean)

    def load_base(self) -> CausalText:
        """A fresh copy of the base model, float32, in eval mode."""
        return CausalText.load(self.path / MODEL, self.config.text_length)


def open_bundle(name_or_path: str | Path) -> Bundle | TextBundle:
    """Loads a bundle of either kind, whichever the manifest names.

    Raises:
        BundleError: unknown, damaged, or of a later format.
    """
    folder = bundle_folder(name_or_path)
    config, _ = read_manifest(folder)
    if config.get("family") == CausalText.name:
        return load_text_bundle(folder)
    return load_bundle(folder)


def load_text_bundle(folder: Path) -> TextBundle:
    """Loads a text bundle and checks every file against the manifest.

    Args:
        folder: with `bundle.json`.

    Returns:
        The bundle, on the CPU, in eval mode.

    Raises:
        BundleError: damaged, of a later format, or no text bundle.
    """
    config, digest = read_manifest(folder)
    if config.get("family") != CausalText.name:
        raise BundleError(
            expected=f"a bundle of the family {CausalText.name}",
            found=f"family {config.get('family')!r}",
            todo="Load it with hyperdp.load_bundle.",
        )
    try:
        check_sizes(config)
        model = json.loads((folder / MODEL / "config.json").read_bytes())
        check_sizes(model, largest=LARGEST_MODEL_SIZE)
        built = TextBundleConfig(**config)
        _check_config(built)
        return _build(folder, built, digest)
    except HyperdpError:
        raise
    except Exception as error:  # the libraries that read the parts may raise anything
        raise BundleError(expected="weights that fit the manifest", found=repr(error)[:300],
                          todo="Take a fresh copy of the bundle.") from error  # fmt: skip


def _check_config(config: TextBundleConfig) -> None:
    """Refuses what the code that loads the parts would not notice."""
    k = config.embed_dim
    wrong = [
        name
        for name, right in {
            "name": isinstance(config.name, str),
            "embed_dim": isinstance(k, int) and k > 0 and config.encoder["embed_dim"] == k,
            "clip_norm": isinstance(config.clip_norm, float | int) and config.clip_norm > 0,
            "text_length": isinstance(config.text_length, int) and config.text_length > 2,
            "vocab_size": isinstance(config.vocab_size, int) and config.vocab_size > 0,
            "public_mean": len(config.public_mean) == k
            and all(isinstance(v, float | int) for v in config.public_mean),
            "other_task_mean": len(config.other_task_mean) == k
            and all(isinstance(v, float | int) for v in config.other_task_mean),
        }.items()
        if not right
    ]
    if wrong:
        raise ValueError(f"wrong values of {', '.join(wrong)}")


def _build(folder: Path, config: TextBundleConfig, digest: str) -> TextBundle:
    encoder = build_text_encoder(config.encoder_kind, config.encoder)
    base = CausalText.load(folder / MODEL, config.text_length)
    if base.tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"the tokenizer has {base.tokenizer.vocab_size} tokens")
    sites = describe_sites(base.model, config.sites)
    hypernetwork = Hypernetwork(HypernetworkConfig(**config.hypernetwork), sites)
    for module, name in ((encoder, "encoder"), (hypernetwork, "hypernetwork")):
        module.load_state_dict(
            {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
        )
        module.eval().requires_grad_(False)
    base.model.requires_grad_(False)
    if isinstance(encoder, GradientEncoder):
        encoder.attach(base.model, hypernetwork)
    return TextBundle(
        config=config,
        path=folder,
        hash=digest,
        encoder=encoder,
        hypernetwork=hypernetwork,
        base=base,
    )


def save_text_bundle(
    folder: Path,
    config: TextBundleConfig,
    *,
    encoder: nn.Module,
    hypernetwork: Hypernetwork,
    base: CausalText,
    training: dict[str, Any],
) -> TextBundle:
    """Writes a text bundle, weights as float16 (scales float32), and loads it again.

    Args:
        folder: see `hyperdp.bundle.save_bundle`.
        config: see `TextBundleConfig`.
        encoder: φ as trained.
        hypernetwork: ρ as trained.
        base: the base model.
        training: recipe, commit, hardware and curve; goes to `training.json`.
    """
    with replaced_folder(folder, mark=MANIFEST, kept=MEASURED) as draft:
        for module, name in ((encoder, "encoder"), (hypernetwork, "hypernetwork")):
            whole = isinstance(module, GradientEncoder)  # a handful of scales, of any size
            weights = {
                k: (v.detach().cpu() if whole else v.detach().cpu().half()).contiguous()
                for k, v in module.state_dict().items()
            }
            save_file(weights, draft / f"{name}.safetensors")
        base.save(draft / MODEL)
        for file in (draft / MODEL).glob("*.safetensors"):
            halves = {k: v.half() for k, v in load_file(file).items()}
            save_file(halves, file, metadata={"format": "pt"})
        (draft / "training.json").write_text(json.dumps(training, indent=1) + "\n")
        write_manifest(draft, dataclasses.asdict(config))
    return load_text_bundle(folder)
