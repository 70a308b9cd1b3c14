"""What a forecast's table takes from the benchmark: the same FID, and the same non-private LoRA."""

from __future__ import annotations

from torch import Tensor

from hyperdp.bundle import Bundle
from hyperdp.eval.features import FeatureExtractor, Features, extract
from hyperdp.eval.metrics.fid import fid
from hyperdp.eval.study import SamplingConfig, draw_images
from hyperdp.lora import Weights


class FidMeasure:
    """FID of an adapter's images against held-out records of a task.

    Args:
        extractor: of the features.
        sampling: how images are drawn; the benchmark's, so that figures compare.
        seed: of the starting noise, the same for every adapter.
    """

    def __init__(
        self, extractor: FeatureExtractor, sampling: SamplingConfig, *, seed: int = 0
    ) -> None:
        self.extractor, self.sampling, self.seed = extractor, sampling, seed
        self._reference: tuple[Tensor, Features] | None = None

    def __call__(self, bundle: Bundle, weights: Weights, queries: Tensor) -> float:
        """FID, in the extractor's units; the reference's features are kept for the next adapter."""
        if self._reference is None or self._reference[0] is not queries:
            self._reference = queries, extract(self.extractor, queries)
        images = draw_images(bundle, weights, self.sampling, seed=self.seed)
        return fid(extract(self.extractor, images), self._reference[1]).value
