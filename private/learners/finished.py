"""The end of a fit: the adapter must have moved, and must survive saving and loading."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from hyperdp.errors import VerificationError
from hyperdp.family import UNetFlow
from hyperdp.lora import Weights, adapters, attach_peft, load_peft, save_peft
from hyperdp.training_certificate import ADAPTER_FILES

_LOUD = 0.1  # of the base's output: an effect that rounding cannot hide


def check_moved(start: Weights, end: Weights) -> None:
    """Refuse an adapter that is not finite, or that training left as it was.

    Raises:
        VerificationError: it is one of these.
    """
    finite = all(bool(part.isfinite().all()) for pair in end.values() for part in pair)
    moved = any(
        not torch.equal(x, y) for name in end for x, y in zip(start[name], end[name], strict=True)
    )
    if not (finite and moved):
        raise VerificationError(
            expected="weights that moved and are finite",
            found="weights as they were at the start" if finite else "weights that are not finite",
            todo="Lower the learning rate, or tell us; the budget is spent.",
        )


def saved_adapter(family: UNetFlow, weights: Weights, *, base_name: str) -> dict[str, bytes]:
    """The files of the PEFT directory, checked by the `peft` library itself.

    Args:
        family: the base model.
        weights: one adapter.
        base_name: what `base_model_name_or_path` says.

    Returns:
        File name → content.

    Raises:
        VerificationError: loaded again, the adapter is another one or does something else.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_peft(weights, folder, base_name=base_name)
        again = load_peft(folder)
        same = again.keys() == weights.keys() and all(
            torch.equal(x.float().cpu(), y)
            for key in weights
            for x, y in zip(weights[key], again[key], strict=True)
        )
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2, *family.image_shape, generator=rng)
        t = torch.tensor([300.0, 900.0])
        with torch.no_grad():
            base = family.model(x, t).sample
            with adapters(family.model, weights):
                effect = float((family.model(x, t).sample - base).norm())
            # A short run's effect may drown in rounding: it is compared at a size where it cannot.
            scale = max(1.0, _LOUD * float(base.norm()) / max(effect, 1e-30))
            loud = {name: (a, b * scale) for name, (a, b) in weights.items()}
            save_peft(loud, folder / "loud", base_name=base_name)
            with adapters(family.model, loud):
                ours = family.model(x, t).sample
            theirs = attach_peft(copy.deepcopy(family.model), folder / "loud")(x, t).sample
        error, whole = float((ours - theirs).norm()), float((ours - base).norm())
        if not (same and effect > 0 and error <= 1e-3 * whole):
            raise VerificationError(
                expected="an adapter that is the same after saving and loading, and has an effect",
                found="another one" if not same else "another effect than before",
                todo="Tell us the versions of torch, peft and diffusers; the budget is spent.",
            )
        return {file: (folder / file).read_bytes() for file in ADAPTER_FILES}
