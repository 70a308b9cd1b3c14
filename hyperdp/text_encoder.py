"""The encoder φ of text: one document's tokens → one embedding, without a look at another's."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from hyperdp.errors import BundleError

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


# name → (configuration, module). Another φ is one more entry: int64 [B, L] → float32 [B, k].
TEXT_ENCODERS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "tokens": (TokenEncoderConfig, TokenEncoder),
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
