"""The encoder φ of text: one document's tokens → one embedding, without a look at another's."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.errors import BundleError
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import lora_output

SHORTEST = 2  # tokens that a loss needs
PAD = -1  # after a document's end; no vocabulary holds it


@dataclass(frozen=True, kw_only=True)
class TokenEncoderConfig:
    """Shape of the encoder that is trained end to end with ρ.

    Attributes:
        vocab_size: V. text_length: L. embed_dim: k.
        width: channels of a token.
        layers: residual convolutions over neighbouring tokens. kernel: their width, odd.
        hidden: width of the layer before the embedding.
    """

    vocab_size: int
    text_length: int
    embed_dim: int
    width: int = 128
    layers: int = 2
    kernel: int = 5
    hidden: int = 256


class TokenEncoder(nn.Module):
    """Token embeddings, convolutions with layer norm (per token), a masked mean, two layers."""

    def __init__(self, config: TokenEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(config.layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.width, config.width, config.kernel, padding=config.kernel // 2)
            for _ in range(config.layers)
        )
        self.hidden = nn.Linear(config.width, config.hidden)
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds documents.

        Args:
            tokens: int64 [B, L], negative after a document's end.

        Returns:
            float32 [B, k], before clipping; exactly 0 for a document without a token.
        """
        there = (tokens >= 0)[..., None]  # [B, L, 1]
        x = self.tokens(tokens.clamp(min=0)) * there  # [B, L, width]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            near = convolution((norm(x) * there).transpose(1, 2)).transpose(1, 2)
            x = x + functional.silu(near) * there
        count = there.sum(1)  # [B, 1]
        mean = x.sum(1) / count.clamp(min=1)  # [B, width]
        features = self.norm(functional.silu(self.hidden(mean)))
        embeddings: Tensor = self.head(features) * (2.0 / math.sqrt(self.config.embed_dim))
        return embeddings * (count > 0)


@dataclass(frozen=True, kw_only=True)
class GradientEncoderConfig:
    """Shape of the encoder that asks the base model itself.

    Attributes:
        vocab_size: V. text_length: L. embed_dim: k, the numbers that ρ emits.
    """

    vocab_size: int
    text_length: int
    embed_dim: int


class _Asked(threading.local):
    """The weights that the record of a thread is asked with; a copy begins with none."""

    weights: list[tuple[Tensor, Tensor]]

    def __reduce__(self) -> tuple[type[_Asked], tuple[()]]:
        return (_Asked, ())


class _Adding:
    """The hook of one site; not a closure, so that a copy of the encoder has hooks of its own."""

    def __init__(self, asked: _Asked, index: int) -> None:
        self.asked, self.index = asked, index

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + lora_output(module, inputs[0], *self.asked.weights[self.index])


class GradientEncoder(nn.Module):
    """φ(x) = -s · ∂ loss(x) / ∂ M at M = 0: where the document would move each number that ρ emits.

    M are the cores of `hyperdp.hypernetwork.Hypernetwork`, s a public scale. What a document is
    like is then said in the units of what an adapter can do about it, also where it is unlike every
    public one. It is one example's gradient, and only clipped and noised sums of it leave, so the
    release is one step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133) in the span of public tasks;
    what adapter lies in that direction, ρ has learned.

    Records go through the base model one at a time: some kernels round a record according to its
    place in a batch, and some models (mixtures of experts) according to its companions. The base
    model is not a part of this module's state: `attach` gives it one.
    """

    def __init__(self, config: GradientEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(config.embed_dim))
        self._asked = _Asked()
        self._model: Any = None
        self._bases: list[tuple[Tensor, Tensor]] = []
        self._sizes: list[int] = []

    def attach(self, model: nn.Module, hypernetwork: Hypernetwork) -> None:
        """Gives it the model that it asks.

        Args:
            model: a causal language model of `transformers`; copied, and never trained.
            hypernetwork: ρ, whose A and U say what its cores mean; copied too.

        Raises:
            BundleError: ρ emits another number of cores than k.
        """
        if sum(hypernetwork.sizes) != self.config.embed_dim:
            raise BundleError(
                expected=f"an encoder of {sum(hypernetwork.sizes)} numbers, as many as ρ emits",
                found=str(self.config.embed_dim),
                todo="Correct embed_dim in the recipe.",
            )
        own: Any = copy.deepcopy(model).eval().requires_grad_(False)
        modules = dict(own.named_modules())
        for index, site in enumerate(hypernetwork.sites):
            modules[site.name].register_forward_hook(_Adding(self._asked, index))
        # Around nn.Module, so that it is not saved with the encoder.
        object.__setattr__(self, "_model", own)
        self._bases = [
            (a.detach().clone()[None], u.detach().clone())
            for a, u in zip(hypernetwork.a, hypernetwork.u, strict=True)
        ]
        self._sizes = list(hypernetwork.sizes)

    def relied_on(self) -> dict[str, Tensor]:
        """What embeddings hang on beside the state: A and U of every site, and the base model."""
        if self._model is None:
            return {}
        factors = {
            f"site.{i}.{j}": x for i, pair in enumerate(self._bases) for j, x in enumerate(pair)
        }
        own = (*self._model.named_parameters(), *self._model.named_buffers())
        return factors | {f"base.{name}": value for name, value in own}

    def _apply(self, fn: Any, recurse: bool = True) -> GradientEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._model is not None:
            self._model._apply(fn)
            self._bases = [(fn(a), fn(u)) for a, u in self._bases]
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds documents; the gradients are taken here, also under `torch.no_grad`.

        Args:
            tokens: int64 [B, L], negative after a document's end.

        Returns:
            float32 [B, k], before clipping; exactly 0 for a document of less than two tokens.

        Raises:
            RuntimeError: nothing is attached.
        """
        if self._model is None:
            raise RuntimeError("a gradient encoder needs its base model: call attach")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(tokens.device.type, enabled=False),
        ):
            return torch.cat([self._one(own[None].clone()) for own in tokens])

    def _one(self, tokens: Tensor) -> Tensor:
        """[1, L] → [1, k]; what lies after a document's end is not computed with."""
        held = (tokens[0] >= 0).nonzero().flatten()  # places of its tokens
        if len(held) < SHORTEST:
            return torch.zeros(1, self.config.embed_dim, device=tokens.device)
        tokens = tokens[:, : int(held[-1]) + 1]
        targets = tokens[:, 1:]
        there = targets >= 0
        cores = torch.zeros(1, self.config.embed_dim, device=tokens.device, requires_grad=True)
        self._asked.weights = [
            (a, torch.matmul(u, part.view(1, u.shape[1], -1)))
            for (a, u), part in zip(self._bases, torch.split(cores, self._sizes, 1), strict=True)
        ]
        try:
            asked = tokens[:, :-1].clamp(min=0)
            logits = self._model(input_ids=asked, use_cache=False).logits[0]
        finally:
            del self._asked.weights
        each = functional.cross_entropy(logits.float(), targets[0].clamp(min=0), reduction="none")
        loss = (each * there[0]).sum() / there.sum().clamp(min=1)
        (gradient,) = torch.autograd.grad(loss, cores)
        return -gradient * self.scale * (there.sum() > 0)


# name → (configuration, module). Another φ is one more entry: int64 [B, L] → float32 [B, k].
TEXT_ENCODERS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "tokens": (TokenEncoderConfig, TokenEncoder),
    "gradient": (GradientEncoderConfig, GradientEncoder),
}


def build_text_encoder(kind: str, values: dict[str, Any]) -> nn.Module:
    """A freshly initialised φ.

    Args:
        kind: a key of `TEXT_ENCODERS`.
        values: of its configuration.

    Raises:
        BundleError: there is no such kind, or a value that it does not know.
    """
    if kind not in TEXT_ENCODERS:
        raise BundleError(
            expected=f"a text encoder out of {', '.join(TEXT_ENCODERS)}",
            found=repr(kind),
            todo="Correct the recipe, or use the hyperdp version that the bundle was made with.",
        )
    config, module = TEXT_ENCODERS[kind]
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(values) - known):
        raise BundleError(
            expected=f"values of {config.__name__}: {', '.join(sorted(known))}",
            found=", ".join(unknown),
            todo="Remove or rename them.",
        )
    return module(config(**values))
