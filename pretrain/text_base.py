"""Trains a small causal language model and its tokenizer on the public texts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperdp.pretrain import text_corpus as corpus_module
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig, shared_out
from hyperdp.pretrain.text_corpus import TextCorpus
from hyperdp.pretrain.text_tasks import TextRowSampler
from hyperdp.text import DocumentTokenizer, train_tokenizer
from hyperdp.text_family import CausalText

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class TextBaseConfig:
    """Recipe of a small base model of text.

    Attributes:
        family: `causal-lm`.
        length: L, tokens of a record.
        vocab_size: V of the byte-level BPE tokenizer.
        batch_size: documents a step.
        loop: see `LoopConfig`.
        model: arguments of `LlamaConfig`.
    """

    family: str = CausalText.name
    length: int = 96
    vocab_size: int = 2048
    batch_size: int = 32
    loop: LoopConfig
    model: dict[str, Any] = field(default_factory=dict)


def tokenise(corpus: TextCorpus, tokenizer: DocumentTokenizer) -> npt.NDArray[np.int64]:
    """All documents of a corpus, int64 [N, L]."""
    return tokenizer.encode_all(corpus.documents)


def own_tokenizer(config: TextBaseConfig, folder: Path, corpus: TextCorpus) -> DocumentTokenizer:
    """The tokenizer in `folder`; trained on the corpus's training split where there is none."""
    if not (folder / TOKENIZER).is_file():
        texts = [corpus.documents[i] for i in np.nonzero(corpus.split == 0)[0]]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            train_tokenizer(texts, config.vocab_size).save_pretrained(draft)
            files = sorted(Path(draft).iterdir(), key=lambda file: file.name == TOKENIZER)
            for file in files:  # what says that there is one comes last
                file.replace(folder / file.name)
    return DocumentTokenizer.load(folder, config.length)


def train_text_base(
    config: TextBaseConfig, folder: Path, corpus: TextCorpus | None = None
) -> CausalText:
    """Trains (or goes on training) a base model and saves it, with its tokenizer, in `folder`.

    Args:
        config: the recipe.
        folder: model, tokenizer, checkpoint and `log.jsonl` go here.
        corpus: the public corpus; from the cache when None.

    Returns:
        The trained family with averaged weights.
    """
    corpus = corpus_module.open_text_corpus() if corpus is None else corpus
    tokenizer = own_tokenizer(config, folder, corpus)
    tokens = tokenise(corpus, tokenizer)
    torch.manual_seed(config.loop.seed)
    family = CausalText.create(tokenizer, **config.model)
    train, held_out = TextRowSampler(corpus, 0), TextRowSampler(corpus, 1)

    count = shared_out(config.batch_size, config.loop.workers, "batch_size")

    def step(rng: torch.Generator, worker: int) -> tuple[Tensor, dict[str, float]]:
        rows = train.draw(count, rng)
        return family.loss(torch.from_numpy(tokens[rows])).mean(), {}

    def validate() -> dict[str, float]:
        rows = held_out.draw(256, torch.Generator().manual_seed(1))
        family.model.eval()
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(tokens[rows]), 32)
            losses = torch.cat([family.loss(part) for part in parts])
        family.model.train()
        return {"validation_loss": float(losses.mean())}

    family.model.train()
    Loop(config.loop, family.model, step, folder, validate).run("base")
    family.model.eval()
    family.save(folder)
    return family
