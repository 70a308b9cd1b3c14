"""LoRA sites, G adapters in one batched forward pass, and export to PEFT.

An adapter is, for each site, lora_A and lora_B as PEFT names them (Hu et al. 2021,
arXiv 2106.09685): y = W x + lora_B lora_A x, with scaling alpha / r = 1. For a convolution lora_A
has the kernel of the site and lora_B is 1×1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.adapter_files import PEFT_PREFIX, PIPELINE_FILE
from hyperdp.compute import device_of
from hyperdp.errors import UsageError

Weights = dict[str, tuple[Tensor, Tensor]]
"""Site name → (A, B). A: [G, r, in, …], or [1, r, in, …] shared by all; B: [G, out, r]."""


@dataclass(frozen=True, kw_only=True)
class LoraSite:
    """A module that takes lora_A and lora_B.

    Attributes:
        name: the module's name in the base model.
        in_features, out_features: channels of a convolution.
        kernel: () for `nn.Linear`, (kh, kw) for `nn.Conv2d`.
    """

    name: str
    in_features: int
    out_features: int
    kernel: tuple[int, ...]

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Shape of lora_A without its rank: (in,) or (in, kh, kw)."""
        return (self.in_features, *self.kernel)


def describe_sites(model: nn.Module, names: list[str]) -> list[LoraSite]:
    """Looks the named modules up.

    Raises:
        UsageError: a name that the model does not have, or a module that takes no LoRA.
    """
    modules = dict(model.named_modules())
    sites = []
    for name in names:
        module = modules.get(name)
        if isinstance(module, nn.Linear):
            sites.append(
                LoraSite(
                    name=name,
                    in_features=module.in_features,
                    out_features=module.out_features,
                    kernel=(),
                )
            )
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            kh, kw = module.kernel_size
            sites.append(
                LoraSite(
                    name=name,
                    in_features=module.in_channels,
                    out_features=module.out_channels,
                    kernel=(kh, kw),
                )
            )
        else:
            raise UsageError(
                expected="LoRA sites that are nn.Linear or ungrouped nn.Conv2d modules",
                found=f"{name!r}: {type(module).__name__ if module else 'no such module'}",
                todo="Use the bundle with the base model it was trained for.",
            )
    return sites


def lora_output(module: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """lora_B lora_A x for G groups of records.

    Args:
        module: the site, `nn.Linear` or `nn.Conv2d`.
        x: input of the site, [G·b, …], records of a group side by side.
        a: [G, r, in, …], or [1, r, in, …] shared by all groups.
        b: [G, out, r].

    Returns:
        What is added to the site's output, [G·b, …].
    """
    groups, out, rank = b.shape
    if isinstance(module, nn.Conv2d):
        n, c, h, w = x.shape
        if len(a) == 1:
            low = functional.conv2d(
                x, a[0], None, module.stride, module.padding, module.dilation
            )  # [G·b, r, h', w']
        else:
            per = n // groups
            wide = x.view(groups, per, c, h, w).transpose(0, 1).reshape(per, groups * c, h, w)
            low = functional.conv2d(
                wide, a.flatten(0, 1), None, module.stride, module.padding, module.dilation, groups
            )
            low = (
                low.view(per, groups, rank, *low.shape[2:])
                .transpose(0, 1)
                .reshape(n, rank, *low.shape[2:])
            )
        high = torch.matmul(
            b[:, None], low.reshape(groups, n // groups, rank, -1)
        )  # [G, b, out, h'·w']
        return high.view(n, out, *low.shape[2:])
    flat = x.reshape(groups, -1, x.shape[-1])  # [G, b·tokens, in]
    return (flat @ a.transpose(1, 2) @ b.transpose(1, 2)).view(*x.shape[:-1], out)


@contextmanager
def adapters(model: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Hooks G adapters into a model for the time of the context.

    Inside, a batch of G·b records is G groups of b neighbours, and group g sees adapter g. With
    every record a group of its own (b = 1) the gradients of A and B are exact per-example ones.

    Args:
        model: the base model.
        weights: see `Weights`; on any device, gradients go back to where they lie.
    """
    modules = dict(model.named_modules())

    def hook(name: str) -> Any:
        a, b = (factor.to(device_of(modules[name])) for factor in weights[name])

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + lora_output(module, inputs[0], a, b)

        return add

    handles = [modules[name].register_forward_hook(hook(name)) for name in weights]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def merged(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Adds one adapter to the model's own weights for the time of the context.

    What the model computes is that of `adapters`, up to rounding, without a second product at each
    site: for drawing, not for training.

    Args:
        model: the base model.
        weights: one adapter, A [1, r, in, …] and B [1, out, r], on any device; or {}.

    Raises:
        UsageError: several adapters.
    """
    modules = dict(model.named_modules())
    changed = []
    for name, (a, b) in weights.items():
        if len(b) != 1:
            raise UsageError(
                expected="one adapter", found=f"{len(b)}", todo="Take one of them with `pick`."
            )
        own = modules[name].weight
        with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
            change = (b[0].float() @ a[0].float().flatten(1)).view_as(own)
            changed.append((modules[name], nn.Parameter(own + change.to(own), own.requires_grad)))
    before = [module.weight for module, _ in changed]
    try:
        for module, weight in changed:
            module.weight = weight
        yield
    finally:
        for (module, _), weight in zip(changed, before, strict=True):
            module.weight = weight


def pick(weights: Weights, group: int) -> Weights:
    """The adapter of one group, as a batch of one: A [1, r, in, …], B [1, out, r]."""
    return {
        name: (a if len(a) == 1 else a[group : group + 1], b[group : group + 1])
        for name, (a, b) in weights.items()
    }


def save_peft(weights: Weights, folder: Path, *, base_name: str, pipeline_part: str = "") -> None:
    """Writes one adapter as a PEFT directory, and for a stock pipeline's `load_lora_weights`.

    Args:
        weights: one adapter, A [1, r, in, …] and B [1, out, r] as `pick` returns it.
        folder: `adapter_config.json` and `adapter_model.safetensors` go here.
        base_name: what `base_model_name_or_path` says.
        pipeline_part: what the pipeline calls the network (`unet`); with it, the folder holds
            `pytorch_lora_weights.safetensors` too.
    """
    tensors = {}
    for name, (a, b) in weights.items():
        one_a, one_b = a[0], b[0]
        if one_a.dim() == 4:  # a convolution: [r, in, kh, kw]
            one_b = one_b[:, :, None, None]
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = one_a.detach().float().cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = one_b.detach().float().cpu().contiguous()
    rank = next(iter(weights.values()))[1].shape[2]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(weights),
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Written by us, so that its permissions are those of the other files.
    data = save(tensors, metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(data)
    config.save_pretrained(folder)
    if pipeline_part:
        named = {
            f"{pipeline_part}.{key.removeprefix(PEFT_PREFIX)}": t for key, t in tensors.items()
        }
        (folder / PIPELINE_FILE).write_bytes(save(named, metadata={"format": "pt"}))


def load_peft(folder: Path) -> Weights:
    """Reads what `save_peft` wrote: A [1, r, in, …], B [1, out, r]."""
    if (
        not (folder / "adapter_config.json").is_file()
        or not (folder / "adapter_model.safetensors").is_file()
    ):
        raise UsageError(
            expected="a PEFT directory with adapter_config.json and adapter_model.safetensors",
            found=str(folder),
            todo="Make one with `hyperdp emit`.",
        )
    json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    weights: Weights = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            weights[name] = (a[None], b.flatten(1)[None])
    return weights


def attach_peft(model: nn.Module, folder: Path) -> nn.Module:
    """The model with a PEFT adapter in it, in eval mode, by the `peft` library itself.

    The model is changed in place; give it a copy, or call `.unload()` on what is returned.
    """
    attached: nn.Module = PeftModel.from_pretrained(model, folder)
    return attached.eval()
