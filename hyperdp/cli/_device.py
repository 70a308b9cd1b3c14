"""`--device`: where a bundle's base model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle

AnyBundle = TypeVar("AnyBundle", bound="Bundle | TextBundle")
OnDevice = Annotated[
    str, typer.Option(help="Where networks compute: cpu, or cuda where torch finds a GPU.")
]


def on_device(bundle: AnyBundle, device: str) -> AnyBundle:
    """The bundle, with its base model on the device of that name.

    Raises:
        UsageError: there is no such device, or it is a bundle of texts.
    """
    from hyperdp.bundle import Bundle
    from hyperdp.compute import usable_device
    from hyperdp.errors import UsageError

    place = usable_device(device)
    if isinstance(bundle, Bundle):
        bundle.to(place)
    elif place.type != "cpu":
        raise UsageError(
            expected="--device cpu with a bundle of texts",
            found=device,
            todo="Leave --device out: language models are adapted on the CPU.",
        )
    return bundle
