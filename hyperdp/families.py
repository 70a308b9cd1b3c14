"""The base-model families by name, and which of them a diffusers folder is."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError

from hyperdp.errors import UsageError
from hyperdp.family import Family, UNetFlow
from hyperdp.schedulers import class_name, scheduler_class
from hyperdp.stable_diffusion import StableDiffusion
from hyperdp.unconditional import DiT, UNetDiffusion

FLOW = "FlowMatchEulerDiscreteScheduler"
NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", "UNet2DConditionModel")
NOT_READ = ("vqvae", "movq", "text_encoder_2", "controlnet", "image_encoder")  # of other pipelines
FamilyClass = type[UNetFlow] | type[UNetDiffusion] | type[DiT] | type[StableDiffusion]

FAMILIES: dict[str, FamilyClass] = {
    family.name: family for family in (UNetFlow, UNetDiffusion, DiT, StableDiffusion)
}


def family_class(name: str) -> FamilyClass:
    """A family by its name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in FAMILIES:
        raise UsageError(
            expected=f"a family: {', '.join(FAMILIES)}", found=repr(name), todo="Choose one."
        )
    return FAMILIES[name]


def find_family(folder: Path) -> FamilyClass:
    """The family of a local diffusers folder, told by the folders in it and by the network's class.

    Args:
        folder: what `save_pretrained` of a pipeline, or of a base here, wrote.

    Raises:
        UsageError: it is none that hyperdp knows.
    """
    part = "transformer" if (folder / "transformer").is_dir() else "unet"
    if not (folder / part).is_dir():
        raise UsageError(
            expected="a diffusers folder with scheduler/ and with unet/ or transformer/",
            found=str(folder),
            todo="Give a local folder: `DiffusionPipeline.save_pretrained` writes one.",
        )
    network = class_name(folder / part / "config.json", "model")
    others = sorted(name for name in NOT_READ if (folder / name).is_dir())
    if network not in NETWORKS or others:
        raise UsageError(
            expected=f"a base model of {', '.join(NETWORKS)}",
            found=f"{network}{f' with {others[0]}/' if others else ''} in {folder}",
            todo="See the table in docs/scale.md for the pipelines that hyperdp knows.",
        )
    if network == "DiTTransformer2DModel":
        return DiT
    if network == "UNet2DConditionModel":
        return StableDiffusion
    flow = scheduler_class(folder) == FLOW
    return UNetFlow if flow and not (folder / "vae").is_dir() else UNetDiffusion


def need_flow(family: Family, what: str) -> UNetFlow:
    """The family as the flow-matching UNet that `what` is made for.

    Raises:
        UsageError: it is another one.
    """
    if not isinstance(family, UNetFlow):
        raise UsageError(
            expected=f"a base of the family {UNetFlow.name}, which {what} is made for",
            found=family.name,
            todo="Use another method for this bundle.",
        )
    return family


def load_family(folder: Path) -> Family:
    """The base model in a local diffusers folder, float32, in eval mode.

    Raises:
        UsageError: it is none that hyperdp knows, its files are damaged, or it is asked for or
            answers something that no loss here is made for.
    """
    kind = find_family(folder)
    if kind is not StableDiffusion:  # which says so itself
        _check_network(folder, kind)
    try:
        return kind.load(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            expected=f"a base model with safetensors weights in {folder}",
            found=f"{type(error).__name__}: {error}"[:300],
            todo="Save one there with `save_pretrained`.",
        ) from error


def _check_network(folder: Path, kind: FamilyClass) -> None:
    """Refuses an unconditional network that is no square one, or is told classes of images."""
    config = json.loads((folder / kind.part / "config.json").read_text(encoding="utf-8"))
    size, classes = config.get("sample_size"), config.get("num_class_embeds")
    wrong = ""
    if not isinstance(size, int):
        wrong = f"sample_size = {size!r}"
    elif kind is not DiT and (classes is not None or config.get("class_embed_type") is not None):
        wrong = f"num_class_embeds = {classes!r}"
    elif kind is UNetFlow and config.get("in_channels") != config.get("out_channels"):
        wrong = f"{config.get('in_channels')} channels in, {config.get('out_channels')} out"
    if wrong:
        raise UsageError(
            expected="a network of square images of one size, not told their class, that answers "
            "with as many channels",
            found=f"{wrong} in {folder / kind.part}",
            todo="Take another base model, or train one: `hyperdp pretrain base`.",
        )
