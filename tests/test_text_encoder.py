"""φ of text: an embedding is a function of its document alone, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperdp.errors import BundleError
from hyperdp.private.embed import BATCH_SIZE, embed_batch
from hyperdp.text_encoder import PAD, build_text_encoder
from tests.text_world import DIM, LENGTH, TEXTS, encoder, tokenizer

TOKENIZER = tokenizer()
PHI = encoder(TOKENIZER.vocab_size)


def random_documents(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TOKENIZER.vocab_size, (count, LENGTH))
    ends = rng.integers(1, LENGTH + 1, (count, 1))
    return np.where(np.arange(LENGTH) < ends, tokens, PAD)


@given(st.integers(0, 2**31), st.integers(1, BATCH_SIZE))
def test_neither_order_nor_companions_change_a_bit(seed: int, kept: int):
    tokens = random_documents(BATCH_SIZE, seed)
    all_together = embed_batch(PHI, tokens)
    order = np.random.default_rng(seed).permutation(BATCH_SIZE)
    assert np.array_equal(embed_batch(PHI, tokens[order]), all_together[order])
    assert np.array_equal(embed_batch(PHI, tokens[:kept]), all_together[:kept])
    others = random_documents(BATCH_SIZE, seed + 1)
    others[:kept] = tokens[:kept]
    assert np.array_equal(embed_batch(PHI, others)[:kept], all_together[:kept])


def test_a_document_without_a_token_is_embedded_as_zero_and_others_are_not():
    tokens = np.stack([np.full(LENGTH, PAD), TOKENIZER.encode(TEXTS[0])])
    found = embed_batch(PHI, tokens)
    assert found.shape == (2, DIM)
    assert (found[0] == 0).all() and np.linalg.norm(found[1]) > 0.1


def test_padding_adds_nothing_to_the_mean():
    # Two encoders of one weight, the document at two lengths: only rounding may differ.
    tokens = torch.from_numpy(TOKENIZER.encode("Rain fell."))[None]
    with torch.no_grad():
        short, full = PHI(tokens[:, : int((tokens >= 0).sum())]), PHI(tokens)
    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-6)


def test_an_unknown_kind_or_value_is_refused():
    with pytest.raises(BundleError, match="tokens"):
        build_text_encoder("none", {})
    with pytest.raises(BundleError, match="depth"):
        build_text_encoder("tokens", {"depth": 3})
