"""Where a hypernetwork's training begins: at an earlier run's weights, or at a bundle's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hyperdp.bundle import load_bundle
from hyperdp.errors import UsageError
from hyperdp.manifest import MANIFEST
from hyperdp.pretrain.checkpoint import load_average


def begin_with(start: Path, module: nn.ModuleDict, parts: list[str]) -> None:
    """Takes the weights of an earlier run, or of a bundle, into the networks that are trained.

    Raises:
        UsageError: there are none, or they are of other sizes.
    """
    if not (start / MANIFEST).is_file():
        load_average(start, module, parts)
        return
    bundle = load_bundle(start)
    found = {"encoder": bundle.encoder, "hypernetwork": bundle.hypernetwork}
    if not parts:
        for name, part in found.items():
            ours = module[name]
            if part.config != ours.config:
                raise UsageError(
                    expected=f"the {name} of {start}'s sizes, {part.config}",
                    found=str(ours.config),
                    todo="Write that bundle's sizes into the recipe, or begin afresh.",
                )
    given = nn.ModuleDict(found).state_dict()
    chosen = {k: v for k, v in given.items() if not parts or k.startswith(tuple(parts))}
    own = module.state_dict()
    wrong = [k for k, v in chosen.items() if k not in own or own[k].shape != v.shape]
    wrong += [part for part in parts if not any(k.startswith(part) for k in chosen)]
    if wrong:
        raise UsageError(
            expected=f"start_parts that {start} has, in the recipe's sizes",
            found=f"of another size or missing: {', '.join(wrong[:4])}",
            todo="Leave these out of start_parts, or write that bundle's sizes into the recipe.",
        )
    module.load_state_dict(chosen, strict=False)
