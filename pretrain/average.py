"""The average of a bundle and of a run that was trained on from it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperdp.bundle import load_bundle
from hyperdp.errors import UsageError
from hyperdp.folders import whole_folder
from hyperdp.pretrain.checkpoint import CHECKPOINT

AVERAGE = "average/"


def average_runs(first: Path, second: Path, *, share: float, out: Path) -> None:
    """Writes a folder to train on from: `base` and `start` of a recipe may both name it.

    Between two sets of weights of which one was trained on from the other, their weighted mean is
    often better than either (model soups: Wortsman et al. 2022, arXiv:2203.05482). It is not a
    bundle, for the means of its public tasks are to be measured anew: train on from it, if only
    for a few steps.

    Args:
        first: a bundle.
        second: the folder of a run that began with it, with its checkpoint and its bundle.
        share: of the second one's weights, in [0, 1]. What foretells keeps the second one's.
        out: gets `checkpoint.safetensors`, the base model's folders and `training.json`; must not
            exist, or be empty.

    Raises:
        UsageError: the share is out of range, there is something in `out`, `second` has no
            checkpoint, or their sizes differ.
    """
    if not 0 <= share <= 1:
        raise UsageError(
            expected="a share between 0 and 1",
            found=f"{share:g}",
            todo="0 is the first one's weights, 1 the second one's.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected=f"{out} to be new, or an empty folder",
            found="something there",
            todo="Choose another folder with -o.",
        )
    if not (second / CHECKPOINT).is_file():
        raise UsageError(
            expected=f"the folder of a training run, with {CHECKPOINT}",
            found=str(second),
            todo="Give the folder that `hyperdp pretrain hyper` wrote with -o.",
        )
    one, two = load_bundle(first), load_bundle(second / "bundle")
    started = {
        f"{AVERAGE}{part}.{name}": p.detach()
        for part, module in (
            ("encoder", one.encoder),
            ("hypernetwork", one.hypernetwork),
            ("base", one.base.model),
        )
        for name, p in module.named_parameters()
    }
    ended = {k: v for k, v in load_file(second / CHECKPOINT).items() if k.startswith(AVERAGE)}
    ended |= {f"{AVERAGE}base.{k}": p.detach() for k, p in two.base.model.named_parameters()}
    wrong = [k for k, p in started.items() if k not in ended or ended[k].shape != p.shape]
    if wrong:
        raise UsageError(
            expected=f"a run that began with {first}",
            found=f"missing or of another size: {', '.join(wrong[:4])}",
            todo="Give a bundle, and a run whose recipe names it as its start.",
        )
    mixed: dict[str, Tensor] = {
        k: p.lerp(started[k].to(p), 1 - share).contiguous() if k in started else p
        for k, p in ended.items()
    }
    base = two.base
    for name, p in base.model.named_parameters():
        p.data.copy_(mixed[f"{AVERAGE}base.{name}"])
    training = {
        "average": {one.hash[:8]: 1 - share, two.hash[:8]: share},
        "start": json.loads((two.path / "training.json").read_bytes()),
    }
    with whole_folder(out) as draft:
        base.save(draft)
        save_file(mixed, draft / CHECKPOINT)
        (draft / "training.json").write_text(json.dumps(training, indent=1) + "\n")
