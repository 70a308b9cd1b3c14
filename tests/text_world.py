"""A small world of text for tests: a byte-level tokenizer, a random Llama, a bundle of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites
from hyperdp.text import DocumentTokenizer, train_tokenizer
from hyperdp.text_bundle import TextBundle, TextBundleConfig, save_text_bundle
from hyperdp.text_encoder import TokenEncoder, TokenEncoderConfig
from hyperdp.text_family import CausalText

LENGTH, DIM = 24, 8
TEXTS = [
    "The noise enters once, and once only.",
    "A sum of clipped vectors is what leaves.",
    "Rain fell on the harbour all that night.",
    "Nobody had counted the boats since spring.",
    "Buy now and save! Offers end on Friday.",
    "Dear friend, your prize is waiting for you.",
]


def tokenizer(length: int = LENGTH) -> DocumentTokenizer:
    return DocumentTokenizer(train_tokenizer(TEXTS, 280), length)


def family(length: int = LENGTH) -> CausalText:
    torch.manual_seed(0)
    made = CausalText.create(
        tokenizer(length),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    made.model.eval()
    return made


def encoder(vocab_size: int, seed: int = 0, length: int = LENGTH) -> TokenEncoder:
    torch.manual_seed(seed)
    config = TokenEncoderConfig(
        vocab_size=vocab_size, text_length=length, embed_dim=DIM, width=16, layers=2, hidden=16
    )
    return TokenEncoder(config).eval()


def text_bundle(folder: Path, *, name: str = "tiny-text", length: int = LENGTH) -> TextBundle:
    """A bundle that nobody trained, its hypernetwork's heads drawn at random so that ΔW ≠ 0."""
    base = family(length)
    sites = base.sites()
    config = HypernetworkConfig(embed_dim=DIM, rank=2, basis=4, width=16, depth=1, bottleneck=8)
    torch.manual_seed(1)
    hyper = Hypernetwork(config, describe_sites(base.model, sites))
    torch.nn.init.normal_(hyper.head.weight, std=0.5)
    phi = encoder(base.tokenizer.vocab_size, length=length)
    return save_text_bundle(
        folder,
        TextBundleConfig(
            name=name,
            family=base.name,
            embed_dim=DIM,
            clip_norm=1.0,
            text_length=length,
            vocab_size=base.tokenizer.vocab_size,
            sites=sites,
            encoder_kind="tokens",
            encoder=dataclasses.asdict(phi.config),
            hypernetwork=dataclasses.asdict(config),
            public_mean=[0.1] * DIM,
            other_task_mean=[0.2] * DIM,
        ),
        encoder=phi,
        hypernetwork=hyper,
        base=base,
        training={},
    )
