"""Bundles: encoder + hypernetwork + base model, frozen, public, known by one hash."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperdp.encoder import Encoder, EncoderConfig
from hyperdp.errors import BundleError, HyperdpError
from hyperdp.families import FAMILIES
from hyperdp.family import Family
from hyperdp.folders import replaced_folder
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites
from hyperdp.manifest import MANIFEST, MEASURED, check_sizes, read_manifest, write_manifest

SHIPPED = Path(__file__).parent / "bundles"


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What a bundle says of itself; all of it public.

    Attributes:
        name: of the bundle.
        family: a key of `hyperdp.families.FAMILIES`.
        embed_dim: k.
        clip_norm: C, the norm that embeddings are clipped to.
        image_shape: (C, H, W) of a record.
        sites: LoRA sites, by module name.
        encoder, hypernetwork: their configurations.
        public_mean: float [k], mean clipped embedding of the public corpus, for the control
            ρ(public mean).
        other_task_mean: float [k], that of one held-out public task (the control ρ(another task)).
        sampling_steps: Euler steps that the family samples with.
    """

    name: str
    family: str
    embed_dim: int
    clip_norm: float
    image_shape: tuple[int, int, int]
    sites: list[str]
    encoder: dict[str, Any]
    hypernetwork: dict[str, Any]
    public_mean: list[float]
    other_task_mean: list[float]
    sampling_steps: int = 24


@dataclass(kw_only=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        config: see `BundleConfig`.
        path: where it lies.
        hash: SHA-256 over the manifest, which holds the hash of every file.
        encoder: φ, in eval mode, float32.
        hypernetwork: ρ, in eval mode, float32.
        device: of the base model and every copy of it. φ and ρ stay on the CPU, whose sums do not
            hang on what else a GPU computes.
    """

    config: BundleConfig
    path: Path
    hash: str
    encoder: Encoder
    hypernetwork: Hypernetwork
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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

    def load_base(self) -> Family:
        """A fresh copy of the base model, float32, in eval mode, on the bundle's device."""
        family: Family = FAMILIES[self.config.family].load(self.path)
        family.to(self.device)
        return family

    @cached_property
    def base(self) -> Family:
        """One shared copy of the base model; do not change it."""
        return self.load_base()

    def to(self, device: torch.device | str) -> Bundle:
        """Moves the base model; later copies of it come to the same place."""
        self.device = torch.device(device)
        self.base.to(self.device)
        return self


def bundle_folder(name_or_path: str | Path) -> Path:
    """Where a bundle lies: a folder with `bundle.json`, or the name of a shipped one.

    Raises:
        BundleError: there is none.
    """
    for folder in (Path(name_or_path), SHIPPED / str(name_or_path)):
        if (folder / MANIFEST).is_file():
            return folder
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/bundle.json"))
    raise BundleError(
        expected="the name of a shipped bundle or a folder with bundle.json",
        found=repr(str(name_or_path)),
        todo=f"Shipped bundles: {', '.join(shipped) or 'none'}; make one with `hyperdp pretrain`.",
    )


def load_bundle(name_or_path: str | Path = "glyphs") -> Bundle:
    """Loads a bundle and checks every file against the manifest.

    Args:
        name_or_path: `glyphs`, or a folder.

    Returns:
        The bundle, on the CPU, in eval mode.

    Raises:
        BundleError: unknown, damaged, or of a later format.
    """
    folder = bundle_folder(name_or_path)
    config, digest = read_manifest(folder)
    if config.get("family") not in list(FAMILIES):
        raise BundleError(
            expected=f"a bundle of the image families {', '.join(FAMILIES)}",
            found=f"family {config.get('family')!r}",
            todo="Text bundles are for release, emit, private, fit and sample; "
            "load them with hyperdp.text_bundle.open_bundle.",
        )
    try:
        network = folder / FAMILIES[config["family"]].part / "config.json"
        for part in (config, *map(_read_json, {network, *folder.glob("*/config.json")})):
            check_sizes(part)
        built = BundleConfig(**{**config, "image_shape": tuple(config["image_shape"])})
        _check_config(built)
        return _build(folder, built, digest)
    except HyperdpError:
        raise
    except Exception as error:  # the libraries that read the parts may raise anything
        raise BundleError(expected="weights that fit the manifest", found=repr(error)[:300],
                          todo="Take a fresh copy of the bundle.") from error  # fmt: skip


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _check_config(config: BundleConfig) -> None:
    """Refuses what the code that loads the parts would not notice."""
    k = config.embed_dim
    shape = config.image_shape
    wrong = [
        name
        for name, right in {
            "name": isinstance(config.name, str),
            "embed_dim": isinstance(k, int) and k > 0 and config.encoder["embed_dim"] == k,
            "clip_norm": isinstance(config.clip_norm, float | int) and config.clip_norm > 0,
            "image_shape": len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape),
            "sampling_steps": isinstance(config.sampling_steps, int) and config.sampling_steps > 0,
            "public_mean": len(config.public_mean) == k
            and all(isinstance(v, float | int) for v in config.public_mean),
            "other_task_mean": len(config.other_task_mean) == k
            and all(isinstance(v, float | int) for v in config.other_task_mean),
        }.items()
        if not right
    ]
    if wrong:
        raise ValueError(f"wrong values of {', '.join(wrong)}")


def _build(folder: Path, config: BundleConfig, digest: str) -> Bundle:
    def tuples(values: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    encoder = Encoder(EncoderConfig(**tuples(config.encoder)))
    family: Family = FAMILIES[config.family].load(folder)
    sites = describe_sites(family.model, config.sites)
    hypernetwork = Hypernetwork(HypernetworkConfig(**config.hypernetwork), sites)
    for module, name in ((encoder, "encoder"), (hypernetwork, "hypernetwork")):
        module.load_state_dict(
            {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
        )
        module.eval().requires_grad_(False)
    family.model.requires_grad_(False)
    bundle = Bundle(
        config=config, path=folder, hash=digest, encoder=encoder, hypernetwork=hypernetwork
    )
    bundle.__dict__["base"] = family
    return bundle


def save_bundle(
    folder: Path,
    config: BundleConfig,
    *,
    encoder: Encoder,
    hypernetwork: Hypernetwork,
    base: Family,
    training: dict[str, Any],
) -> Bundle:
    """Writes a bundle, weights as float16, and loads it again.

    Args:
        folder: appears whole; a bundle that lay there goes, or moves aside where a forecast, a
            guard or a table of hybrids was measured of it.
        config: see `BundleConfig`.
        encoder: φ as trained.
        hypernetwork: ρ as trained.
        base: the base model.
        training: recipe, commit, hardware and curve; goes to `training.json`.
    """
    with replaced_folder(folder, mark=MANIFEST, kept=MEASURED) as draft:
        for module, name in ((encoder, "encoder"), (hypernetwork, "hypernetwork")):
            save_file(_half(module), draft / f"{name}.safetensors")
        base.save(draft)
        for weights in draft.glob("*/*.safetensors"):
            save_file(
                {
                    k: v.half() if v.is_floating_point() else v
                    for k, v in load_file(weights).items()
                },
                weights,
                metadata={"format": "pt"},
            )
        (draft / "training.json").write_text(json.dumps(training, indent=1) + "\n")
        write_manifest(draft, dataclasses.asdict(config))
    return load_bundle(folder)


def _half(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().half().contiguous() for k, v in module.state_dict().items()}
