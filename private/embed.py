"""From images to embeddings, one fixed-shape batch at a time.

An embedding is a function of its record alone: batches have one shape, short ones are filled up
with zeros, the encoder is in eval mode, and `check_independence` tries it on public noise first.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperdp.errors import BundleError
from hyperdp.private.release_bundle import ReleaseBundle

BATCH_SIZE = 64


def embed_batch(
    encoder: nn.Module, images: NDArray[np.float32], *, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Embed up to `batch_size` images in a batch of exactly that size.

    Args:
        encoder: float32 [B, C, H, W] → float32 [B, k]; put into eval mode.
        images: float32 [b, C, H, W], b <= batch_size; clipped to [-1, 1].
        batch_size: B, the one shape that the encoder ever sees.

    Returns:
        float32 [b, k], un-noised and private.
    """
    # Allocated by torch, which aligns it: where numpy's memory begins depends on what came before,
    # and a kernel that takes another path for it would round this record accordingly.
    padded = torch.zeros((batch_size, *images.shape[1:]), dtype=torch.float32)
    np.clip(images, -1, 1, out=padded.numpy()[: len(images)])  # a NaN stays one
    encoder.eval()
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    with torch.no_grad():
        embeddings = encoder(padded.to(device))  # [B, k]
    result: NDArray[np.float32] = embeddings.float().cpu().numpy()[: len(images)]
    return result


def weights_hash(module: nn.Module | None) -> str:
    """SHA-256 over a module's weights: names, shapes, types and values, in the order of the names.

    Args:
        module: public.

    Returns:
        64 hex digits, or "" for no module.
    """
    if module is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_independence(bundle: ReleaseBundle, *, batch_size: int = BATCH_SIZE) -> None:
    """Refuse an encoder in which one record changes another's embedding. Reads no private data.

    Random public images are embedded in two orders, beside other companions, extreme ones among
    them, and once more at the end; every embedding must be the same to the bit.

    Raises:
        BundleError: one is not, or the shape is not the bundle's.
    """
    shape, half = bundle.config.image_shape, batch_size // 2
    noise = np.random.default_rng(0).uniform(-1, 1, (batch_size, *shape)).astype(np.float32)
    first = embed_batch(bundle.encoder, noise, batch_size=batch_size)
    order = np.random.default_rng(1).permutation(batch_size)
    permuted = embed_batch(bundle.encoder, noise[order], batch_size=batch_size)
    alone = embed_batch(bundle.encoder, noise[:half], batch_size=batch_size)
    beside = []
    for companion in (np.nan, np.inf, -1.0, 1.0, 0.0):
        other = noise.copy()
        other[half:] = companion
        beside.append(embed_batch(bundle.encoder, other, batch_size=batch_size)[:half])
    again = embed_batch(bundle.encoder, noise, batch_size=batch_size)
    expected = (batch_size, bundle.config.embed_dim)
    if first.shape != expected:
        raise BundleError(
            expected=f"embeddings {expected}",
            found=f"{first.shape}",
            todo="The bundle's encoder does not fit its configuration: take a fresh copy.",
        )
    pairs = [(first[order], permuted), (first, again)]
    pairs += [(first[:half], other) for other in (alone, *beside)]
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise BundleError(
            expected="an encoder in which every embedding depends on its own record alone",
            found="embeddings that change with the other records of a batch",
            todo="Use an encoder without batch statistics; the sensitivity would not hold.",
        )
