"""The base-model families by name, and which of them a diffusers folder is."""

from __future__ import annotations

from pathlib import Path

from hyperdp.errors import UsageError
from hyperdp.family import Family, UNetFlow
from hyperdp.schedulers import scheduler_class
from hyperdp.stable_diffusion import StableDiffusion
from hyperdp.unconditional import DiT, UNetDiffusion

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
    """The family of a local diffusers folder, told by the folders in it.

    Args:
        folder: what `save_pretrained` of a pipeline, or of a base here, wrote.

    Raises:
        UsageError: it is none that hyperdp knows.
    """
    if (folder / "transformer").is_dir():
        return DiT
    if (folder / "unet").is_dir():
        if (folder / "text_encoder").is_dir():
            return StableDiffusion
        flow = scheduler_class(folder) == "FlowMatchEulerDiscreteScheduler"
        return UNetFlow if flow else UNetDiffusion
    raise UsageError(
        expected="a diffusers folder with scheduler/ and with unet/ or transformer/",
        found=str(folder),
        todo="Give a local folder: `DiffusionPipeline.save_pretrained` writes one.",
    )


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
        UsageError: it is none that hyperdp knows.
    """
    return find_family(folder).load(folder)
