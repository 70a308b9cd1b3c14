"""Foretelling: what the code must say of a task's unseen records.

The base model's loss alone teaches the encoder slowly: at first the adapters mean nothing, so no
gradient says what an embedding should hold, and the code is taught to be quiet. Foretelling which
k-means cells and which characters unseen records fall in is a direct lesson. It trains encoder and
trunk first, without the base, and stays as a small part of the loss.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Foretell(nn.Module):
    """Heads that read cells and content out of the code, and content out of one embedding.

    Args:
        embed_dim: k.
        bottleneck: size of the code.
        cells: k-means cells over the images at half size.
        content: classes of content, see `TaskSampler.draw_labelled`.
        images: float32 [N, C, H, W], public records that the cells are fitted to.
    """

    def __init__(
        self, *, embed_dim: int, bottleneck: int, cells: int, content: int, images: Tensor
    ) -> None:
        super().__init__()
        self.pool = max(2, images.shape[-1] // 14)
        pixels = functional.avg_pool2d(images, self.pool).flatten(1).numpy()
        kmeans = faiss.Kmeans(
            pixels.shape[1], cells, niter=12, seed=0, verbose=False, min_points_per_centroid=1
        )
        kmeans.train(np.ascontiguousarray(pixels))
        self.centroids: Tensor
        self.register_buffer("centroids", torch.from_numpy(np.array(kmeans.centroids)))
        self.cells = nn.Sequential(nn.Linear(bottleneck, 256), nn.SiLU(), nn.Linear(256, cells))
        self.content = nn.Sequential(nn.Linear(bottleneck, 256), nn.SiLU(), nn.Linear(256, content))
        self.record = nn.Linear(embed_dim, content)

    def set_loss(self, code: Tensor, images: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropies of unseen records under what the code foretells.

        Args:
            code: float32 [G, bottleneck].
            images: float32 [G, N, C, H, W].
            content: int64 [G, N].

        Returns:
            Of their cells and of their content, in nats.
        """
        groups, count = images.shape[:2]
        pixels = functional.avg_pool2d(images.flatten(0, 1), self.pool).flatten(1)
        cell = torch.cdist(pixels, self.centroids).argmin(1).view(groups, count)
        of_cells = functional.log_softmax(self.cells(code).float(), 1).gather(1, cell)
        of_content = functional.log_softmax(self.content(code).float(), 1).gather(1, content)
        return -of_cells.mean(), -of_content.mean()

    def record_loss(self, embeddings: Tensor, content: Tensor) -> Tensor:
        """Cross entropy of each record's own content, [M, k] and int64 [M], in nats."""
        logits = self.record(embeddings * embeddings.shape[1] ** 0.5)
        return functional.cross_entropy(logits.float(), content)
