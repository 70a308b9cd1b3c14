"""Base models of text: any causal language model of `transformers` that lies in a local folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from hyperdp.errors import UsageError
from hyperdp.text import DocumentTokenizer


class CausalText:
    """A causal language model and its tokenizer; documents of at most `length` tokens.

    Args:
        model: a `transformers` causal language model.
        tokenizer: brings documents to the fixed length.
    """

    name = "causal-lm"

    def __init__(self, model: Any, tokenizer: DocumentTokenizer) -> None:
        self.model: nn.Module = model
        self.tokenizer = tokenizer

    @property
    def length(self) -> int:
        """L, tokens of a record."""
        return self.tokenizer.length

    @classmethod
    def create(cls, tokenizer: DocumentTokenizer, **llama_config: Any) -> CausalText:
        """A freshly initialised Llama; `llama_config` goes to `LlamaConfig`."""
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.begin,
            eos_token_id=tokenizer.end,
            pad_token_id=tokenizer.end,
            max_position_embeddings=max(tokenizer.length, 128),
            **llama_config,
        )
        return cls(LlamaForCausalLM(config), tokenizer)

    @classmethod
    def load(cls, folder: Path, length: int) -> CausalText:
        """Loads model and tokenizer of a local folder, as float32; nothing is fetched or run.

        Args:
            folder: as `save_pretrained` writes it, weights in safetensors.
            length: L.

        Raises:
            UsageError: the folder holds no such model.
        """
        if not (folder / "config.json").is_file():
            raise UsageError(
                expected="a folder of a transformers causal language model with config.json",
                found=f"'{folder}'",
                todo="Make one with `hyperdp pretrain base text-tiny-base`, or name another.",
            )
        with _without_bar():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,  # left out, it would be asked for on the terminal
            )
        return cls(model.eval(), DocumentTokenizer.load(folder, length))

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer as stock `transformers` reads them."""
        model: Any = self.model
        model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.stock.save_pretrained(folder)

    def loss(self, tokens: Tensor) -> Tensor:
        """Each document's own loss: the mean over its tokens.

        Never a mean over the batch's tokens, by which one document would change another's share.

        Args:
            tokens: int64 [B, L], negative after a document's end.

        Returns:
            float32 [B], nats a token; 0 for a document without a token.
        """
        targets = tokens[:, 1:]
        logits = self.model(input_ids=tokens[:, :-1].clamp(min=0), use_cache=False).logits
        there = targets >= 0  # [B, L - 1]; padding comes last, so causal attention never sees it
        each = functional.cross_entropy(
            logits.float().flatten(0, 1), targets.clamp(min=0).flatten(), reduction="none"
        ).view(targets.shape)
        mean: Tensor = (each * there).sum(1) / there.sum(1).clamp(min=1)
        return mean

    def adapter_loss(self, images: Tensor, pool: Tensor, rng: torch.Generator) -> Tensor:
        """Per-document loss that adapters are trained with.

        Args:
            images: int64 [G, b, L], documents; the name is `UNetFlow`'s.
            pool: not used.
            rng: not used.

        Returns:
            float32 [G·b].
        """
        return self.loss(images.flatten(0, 1))

    def prepare_training(self) -> None:
        """Nothing: `transformers` already takes the kernel that is fast both ways."""

    @torch.no_grad()
    def response(self, model: nn.Module) -> Tensor:
        """What a network answers to fixed public tokens; tells whether two are the same.

        Args:
            model: the base, with or without an adapter in it.
        """
        rng = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.tokenizer.vocab_size, (2, self.length), generator=rng)
        answer: Tensor = model(input_ids=tokens, use_cache=False).logits
        return answer

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        seed: int,
        model: nn.Module | None = None,
        temperature: float = 1.0,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Draws documents token by token.

        Args:
            count: number of documents.
            seed: of the draws, on the CPU; public, it protects nothing.
            model: the base with an adapter in it; the base itself when None.
            temperature: of the softmax.
            batch_size: documents at once.
            progress: called with (documents written, documents in all).

        Returns:
            `count` texts, of at most L tokens each.
        """
        network: Any = self.model if model is None else model
        rng = torch.Generator().manual_seed(seed)
        device = next(network.parameters()).device
        known: Any = self.model.forward
        # What keeps the tokens before is called `cache` since transformers 5.24.
        kept = "cache" if "cache" in inspect.signature(known).parameters else "past_key_values"
        texts: list[str] = []
        while len(texts) < count:
            size = min(batch_size, count - len(texts))
            drawn = torch.full((size, 1), self.tokenizer.begin)  # [b, 1]
            cache = None
            for _ in range(self.length - 1):
                fresh = drawn if cache is None else drawn[:, -1:]
                out = network(input_ids=fresh.to(device), use_cache=True, **{kept: cache})
                cache = out[kept]
                chances = torch.softmax(out.logits[:, -1].float().cpu() / temperature, 1)
                drawn = torch.cat([drawn, torch.multinomial(chances, 1, generator=rng)], 1)
                if bool((drawn[:, 1:] == self.tokenizer.end).any(1).all()):
                    break
            texts += [self.tokenizer.decode(row[1:].tolist()) for row in drawn]
            if progress is not None:
                progress(len(texts), count)
        return texts

    def sites(self, *, outlet: bool = False) -> list[str]:
        """Attention and MLP projections, by the names that PEFT knows them by.

        Args:
            outlet: the projection to the vocabulary too, by which an adapter says which words are
                common; it is last.

        Raises:
            UsageError: the model's projections are `Conv1D` modules, as GPT-2's are.
        """
        model: Any = self.model
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise UsageError(
                expected="a language model whose projections are nn.Linear modules",
                found=f"transformers Conv1D modules in {type(model).__name__}",
                todo="Use a Llama-like model; GPT-2's transposed projections are not supported.",
            )
        last = model.get_output_embeddings()
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and (outlet or module is not last)
        ]


@contextmanager
def _without_bar() -> Iterator[None]:
    """Without the bar of transformers, which would be drawn through the command's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
