"""Documents as token arrays of one fixed length; each is a function of its document alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hyperdp.errors import BundleError
from hyperdp.text_encoder import PAD

CHARACTERS_PER_TOKEN = 64  # of a document; no language's prose has so many
_SURROGATES = re.compile("[\ud800-\udfff]")


class DocumentTokenizer:
    """A `transformers` tokenizer brought to one fixed shape.

    A document's line ends become newlines, blanks around it are dropped, unpaired surrogates become
    U+FFFD; everything else (control characters, any script, emoji) is kept. What begins beyond
    `length` tokens is cut off. A document with nothing in it is all `PAD`.

    Args:
        tokenizer: a fast tokenizer; its text form of special tokens is read as plain text.
        length: L, tokens of a record, its beginning and end marks among them.

    Raises:
        BundleError: the tokenizer has no end mark, or is not a fast one.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.stock, self.length = tokenizer, length
        if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
            raise BundleError(
                expected="a fast tokenizer (tokenizer.json) with an end-of-text token",
                found=type(tokenizer).__name__,
                todo="Save the model's fast tokenizer beside it.",
            )
        self.end = int(tokenizer.eos_token_id)
        begin = tokenizer.bos_token_id
        self.begin = self.end if begin is None else int(begin)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True

    @classmethod
    def load(cls, folder: Path, length: int) -> DocumentTokenizer:
        """Loads the tokenizer of a model's folder; nothing is fetched and no code in it is run."""
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return cls(found, length)

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""
        return len(self.stock)

    def encode(self, text: str) -> NDArray[np.int64]:
        """One document as tokens.

        Args:
            text: the document.

        Returns:
            int64 [L]: begin, its tokens, end where it is reached, then `PAD`.
        """
        # A long document is cut before it is tokenised: its end could not reach the array anyway.
        head = text.strip()[: CHARACTERS_PER_TOKEN * self.length]
        clean = _SURROGATES.sub("\ufffd", head.replace("\r\n", "\n").replace("\r", "\n")).strip()
        tokens = np.full(self.length, PAD, dtype=np.int64)
        if clean:
            found = self._backend.encode(clean, add_special_tokens=False).ids
            ids = [self.begin, *found, self.end][: self.length]
            tokens[: len(ids)] = ids
        return tokens

    def encode_all(self, texts: list[str]) -> NDArray[np.int64]:
        """Several documents, int64 [N, L], each as `encode` gives it."""
        return np.stack([self.encode(text) for text in texts])

    def decode(self, tokens: list[int]) -> str:
        """The text of generated token ids, up to the end mark."""
        ids = tokens[: tokens.index(self.end)] if self.end in tokens else tokens
        return str(self._backend.decode([i for i in ids if i >= 0], skip_special_tokens=True))


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909) of public text.

    Args:
        texts: public documents.
        vocab_size: V, the two marks and the 256 bytes among them.

    Returns:
        The tokenizer, as stock `transformers` loads it; every text can be written with it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106
