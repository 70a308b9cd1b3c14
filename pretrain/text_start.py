"""A start of the token encoder that tells documents apart before any step of training.

Token vectors by latent semantic analysis (Deerwester et al. 1990), then a whitened head: without
it, what all documents have in common drowns their differences, and the code is slow to wake.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from hyperdp.pretrain.text_tasks import Tokens
from hyperdp.text_encoder import TokenEncoder

MEDIAN_NORM = 1.0  # of an embedding, in units of C


def token_vectors(tokens: Tokens, vocab_size: int, width: int) -> Tensor:
    """Right singular vectors of the documents' tf-idf, float32 [V, width].

    Args:
        tokens: int64 [N, L], public documents.
        vocab_size: V.
        width: at most V - 1.

    Returns:
        Vectors whose sum over a document's tokens is its place; root mean square 1.
    """
    rows, places = np.nonzero(tokens >= 0)
    counts = csr_matrix(
        (np.ones(len(rows)), (rows, tokens[rows, places])), shape=(len(tokens), vocab_size)
    )
    counts.sum_duplicates()
    spread = np.bincount(counts.indices, minlength=vocab_size)  # documents with each token
    rarity = np.log((1 + len(tokens)) / (1 + spread))  # [V]
    weighted = counts.multiply(rarity).tocsr()
    weighted.data = np.log1p(weighted.data)
    start = np.random.default_rng(0).standard_normal(min(weighted.shape))
    _, _, right = svds(weighted, k=width, v0=start)
    vectors = right.T * rarity[:, None]
    return torch.from_numpy(vectors / np.sqrt((vectors**2).mean())).float()


@torch.no_grad()
def start_encoder(encoder: TokenEncoder, tokens: Tokens) -> None:
    """Gives an encoder that start, in place.

    Args:
        encoder: freshly initialised.
        tokens: int64 [N, L], public documents.
    """
    c = encoder.config
    encoder.tokens.weight.copy_(token_vectors(tokens, c.vocab_size, c.width))
    for convolution in encoder.convolutions:  # nothing of the neighbours at first
        for parameter in convolution.parameters():
            nn.init.zeros_(parameter)
    found: list[Tensor] = []
    hook = encoder.norm.register_forward_hook(lambda *call: found.append(call[2]))
    for part in torch.split(torch.from_numpy(tokens), 256):
        encoder(part)
    hook.remove()
    features = torch.cat(found)[torch.from_numpy((tokens >= 0).any(1))]  # [N, hidden]
    mean = features.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(features.T))  # ascending
    head = (axes[:, -c.embed_dim :] / values[-c.embed_dim :].clamp(min=1e-8).sqrt()).T
    encoder.head.weight.copy_(head)
    encoder.head.bias.copy_(-head @ mean)
    norms = torch.cat([encoder(part) for part in torch.split(torch.from_numpy(tokens), 256)])
    scale = MEDIAN_NORM / norms.norm(dim=1).median()
    encoder.head.weight.mul_(scale)
    encoder.head.bias.mul_(scale)
