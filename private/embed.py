"""From records to embeddings, one fixed-shape batch at a time.

An embedding is a function of its record alone: batches have one shape, short ones are filled up
with zeros (documents with padding), the encoder is in eval mode, and `check_independence` tries it
on public noise first. Nor does it depend on the number of threads: kernels divide their sums among
operator threads and round accordingly, so each batch is embedded by one, and the threads that this
process may use take different batches.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperdp.compute import device_of, one_thread
from hyperdp.errors import BundleError
from hyperdp.private.forms import Form
from hyperdp.private.release_bundle import ReleaseBundle
from hyperdp.text_encoder import PAD

BATCH_SIZE = 64
UNFIT = bytes(32)  # what `arithmetic` says where companions change an embedding
Batch = NDArray[Any]
Embed = Callable[[Iterable[Batch]], Iterator[NDArray[np.float32]]]
"""Batches of at most B images or documents → their embeddings, in the same order."""


@contextmanager
def silent_logs() -> Iterator[None]:
    """A context without a line of any log: a library's may tell of a record."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


def embed_batch(
    encoder: nn.Module, records: NDArray[Any], *, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Embed up to `batch_size` records in a batch of exactly that size.

    Args:
        encoder: records [B, …] → float32 [B, k]; put into eval mode.
        records: images float32 [b, C, H, W], clipped to [-1, 1], or documents int64 [b, L];
            b <= batch_size.
        batch_size: B, the one shape that the encoder ever sees.

    Returns:
        float32 [b, k], un-noised and private.
    """
    return _embed(encoder.eval(), records, batch_size)


def _embed(encoder: nn.Module, records: NDArray[Any], batch_size: int) -> NDArray[np.float32]:
    """`embed_batch` by an encoder that is in eval mode: to say so again takes time."""
    # Allocated by torch, which aligns it: where numpy's memory begins depends on what came before,
    # and a kernel that takes another path for it would round this record accordingly.
    shape, count = (batch_size, *records.shape[1:]), len(records)
    if records.dtype == np.int64:
        padded = torch.empty(shape, dtype=torch.int64)
        padded.numpy()[:count] = records
        padded[count:] = PAD
    else:
        padded = torch.empty(shape, dtype=torch.float32)
        np.clip(records, -1, 1, out=padded.numpy()[:count])  # a NaN stays one
        padded[count:] = 0
    with torch.no_grad(), one_thread():
        embeddings = encoder(padded.to(device_of(encoder)))  # [B, k]
    result: NDArray[np.float32] = embeddings.float().cpu().numpy()[:count]
    return result


@contextmanager
def embedding_here(encoder: nn.Module, *, batch_size: int = BATCH_SIZE) -> Iterator[Embed]:
    """A context in which this process embeds batch after batch, on all the threads it may use.

    Args:
        encoder: as for `embed_batch`.
        batch_size: B, likewise.
    """
    encoder.eval()

    def one(values: Batch) -> NDArray[np.float32]:
        return _embed(encoder, values, batch_size)

    # Held at one from outside, or a thread that ends a batch would set another's number back.
    with one_thread() as count:
        if count == 1 or device_of(encoder).type != "cpu":
            yield lambda batches: map(one, batches)
            return
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def embed(batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
                due: deque[Future[NDArray[np.float32]]] = deque()
                for values in batches:
                    due.append(pool.submit(one, values))
                    if len(due) > count:  # one more than they work at, so that none waits
                        yield due.popleft().result()
                while due:
                    yield due.popleft().result()

            yield embed


def weights_hash(module: nn.Module | None) -> str:
    """SHA-256 over a module's weights: names, shapes, types and values, in the order of the names.

    What it computes with beside its state counts too, where it says so (`relied_on`).

    Args:
        module: public.

    Returns:
        64 hex digits, or "" for no module.
    """
    if module is None:
        return ""
    digest = hashlib.sha256()
    further: Any = getattr(module, "relied_on", dict)
    for name, value in sorted({**module.state_dict(), **further()}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_independence(bundle: ReleaseBundle, *, batch_size: int = BATCH_SIZE) -> None:
    """Refuse an encoder in which one record changes another's embedding. Reads no private data.

    Random public records are embedded in several orders, once more unchanged, and beside other
    companions, extreme ones among them; the orders at the same time, on the threads of a release.
    Every embedding must be the same to the bit.

    Raises:
        BundleError: one is not, or the shape is not the bundle's.
    """
    first, pairs = _tried(bundle.encoder, Form.of(bundle.config), batch_size)
    expected = (batch_size, bundle.config.embed_dim)
    if first.shape != expected:
        raise BundleError(
            expected=f"embeddings {expected}",
            found=f"{first.shape}",
            todo="The bundle's encoder does not fit its configuration: take a fresh copy.",
        )
    if not np.isfinite(first).all() or not first.any():
        raise BundleError(
            expected="finite embeddings of random public records, and not all of them 0",
            found="others",
            todo="The bundle's encoder is damaged: take a fresh copy.",
        )
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise BundleError(
            expected="an encoder in which every embedding depends on its own record alone",
            found="embeddings that change with other records, of its batch or of another thread's",
            todo="Use an encoder without batch statistics or a state that its calls share; the "
            "sensitivity would not hold.",
        )


def _tried(
    encoder: nn.Module, form: Form, batch_size: int
) -> tuple[NDArray[np.float32], list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Embeddings of public noise, and pairs of them that must be equal whatever lay beside."""
    half = batch_size // 2
    noise = form.probes(batch_size)
    first = embed_batch(encoder, noise, batch_size=batch_size)
    order = np.random.default_rng(1).permutation(batch_size)
    # At the same time, on as many threads as a release will use.
    with embedding_here(encoder, batch_size=batch_size) as embed:
        permuted, moved, again = embed([noise[order], np.roll(noise, 1, 0), noise])
    alone = embed_batch(encoder, noise[:half], batch_size=batch_size)
    beside = []
    for companion in form.extremes():
        other = noise.copy()
        other[half:] = companion
        beside.append(embed_batch(encoder, other, batch_size=batch_size)[:half])
    pairs = [(first[order], permuted), (np.roll(first, 1, 0), moved), (first, again)]
    return first, pairs + [(first[:half], other) for other in (alone, *beside)]


def arithmetic(encoder: nn.Module, form: Form) -> bytes:
    """How this process rounds: a digest of the embeddings of public noise, and of the weights.

    Where records are divided among processes, all must round alike: else an embedding would depend
    on which process a record met, and so on the other records. Nor may it depend on companions in
    any of them.

    Args:
        encoder: public.
        form: of a record.

    Returns:
        32 bytes; `UNFIT` where companions change an embedding, which is to be refused.
    """
    digest = hashlib.sha256(weights_hash(encoder).encode())
    first, pairs = _tried(encoder, form, BATCH_SIZE)
    if not all(np.array_equal(a, b) for a, b in pairs):
        return UNFIT
    digest.update(first.tobytes())
    return digest.digest()
