"""A noisy mean of per-record conditions, in the manner of DPAgg-TI.

Textual inversion of each private image, and one noisy mean of what was found (arXiv 2411.14639;
its full text was not at hand). Our base model has no text encoder: its one input beside the image
is the embedding of the time, so the condition is a vector added to that. A record's vector is found
by a few steps of gradient descent on the frozen base model's own loss of that record, from zero, at
fixed times and noises. It is an embedding like any other: a function of its record alone, clipped,
added up and noised by `hyperdp.private.release`, ledger and certificate included. docs/learners.md
says where this departs from the paper.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperdp import keys
from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError, settings_error
from hyperdp.families import need_flow
from hyperdp.family import UNetFlow

_SITE = "time_embedding"


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Chosen on public tasks, and before anything of this dataset was released.

    Attributes:
        steps: of gradient descent for each record.
        draws: times and noises that a record's loss is averaged over.
        lr: length of the first step, as a share of the clip norm; it falls to zero linearly.
        clip_norm: C, of a record's condition.
        seed: of the noises, the same for every record. Public: nothing secret hangs on it.
    """

    steps: int = 4
    draws: int = 4
    lr: float = 0.5
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        legal = {
            "steps >= 1": self.steps >= 1,
            "draws >= 1": self.draws >= 1,
            "0 < lr": 0 < self.lr < math.inf,
            "2^-10 <= clip_norm <= 64": 2.0**-10 <= self.clip_norm <= 64,
        }
        if broken := [rule for rule, kept in legal.items() if not kept]:
            raise settings_error(self, broken)


class _Asked(threading.local):
    """The conditions that the records of a thread are asked with; a copy begins with none."""

    conditions: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Asked], tuple[()]]:
        return (_Asked, ())


class _Adding:
    """The encoder's hook; not a closure, so that a copy of the encoder has a hook of its own."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        conditions = self.asked.conditions
        return output if conditions is None else output + conditions


class InversionEncoder(nn.Module):
    """Images → the conditions that explain them to the frozen base model.

    Several threads may call it at a time, each with a batch of its own: what a thread asks with is
    that thread's, or the records of one batch would enter another's embeddings.

    Args:
        family: a base model of one's own, which is frozen.
        config: see `InversionConfig`.
    """

    def __init__(self, family: UNetFlow, config: InversionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = family.model.requires_grad_(False).eval()
        self._family = family
        self._asked = _Asked()
        _time_embedding(self.model).register_forward_hook(_Adding(self._asked))
        rng = torch.Generator().manual_seed(config.seed)
        self.register_buffer("noise", torch.randn(config.draws, *family.image_shape, generator=rng))
        self.register_buffer("times", (torch.arange(config.draws) + 0.5) / config.draws)

    @property
    def dim(self) -> int:
        """d, numbers of a condition."""
        return condition_dim(self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Conditions of each image.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].

        Returns:
            float32 [B, d]; not finite where the image was not.
        """
        count, draws = len(images), self.config.draws
        records = images.repeat_interleave(draws, 0)  # [B·draws, C, H, W]
        noise, times = self.noise.repeat(count, 1, 1, 1), self.times.repeat(count)  # type: ignore[operator]
        condition = images.new_zeros(count, self.dim)
        for step in range(self.config.steps):
            with torch.enable_grad():
                moving = condition.requires_grad_(True)
                self._asked.conditions = moving.repeat_interleave(draws, 0)
                try:
                    losses = self._family.loss_at(records, times, noise)
                finally:
                    self._asked.conditions = None
                (slope,) = torch.autograd.grad(losses.sum(), moving)
            length = slope.norm(dim=1, keepdim=True).clamp(min=1e-30)
            reach = self.config.lr * self.config.clip_norm * (1 - step / self.config.steps)
            condition = (condition - reach * slope / length).detach()
        return condition


@dataclass(frozen=True, kw_only=True)
class InversionBundle:
    """What a release needs of a bundle, with conditions for embeddings.

    Attributes:
        name: of the bundle whose base model it is.
        hash: SHA-256 over that bundle's hash and the settings.
        encoder: see `InversionEncoder`.
        config: what a release needs to know.
    """

    name: str
    hash: str
    encoder: nn.Module
    config: InversionShape

    @classmethod
    def of(cls, bundle: Bundle, config: InversionConfig) -> InversionBundle:
        """Over a fresh copy of a bundle's base model, on the CPU."""
        family = need_flow(bundle.load_base(), "the noisy mean of conditions")
        family.to(torch.device("cpu"))  # as every encoder of a release
        encoder = InversionEncoder(family, config)
        what = {"bundle": bundle.hash, "inversion": dataclasses.asdict(config)}
        return cls(
            name=bundle.name,
            hash=hashlib.sha256(keys.canonical_json(what)).hexdigest(),
            encoder=encoder,
            config=InversionShape(
                embed_dim=encoder.dim,
                clip_norm=config.clip_norm,
                image_shape=bundle.config.image_shape,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class InversionShape:
    """See `hyperdp.private.release_bundle.BundleConfig`."""

    embed_dim: int
    clip_norm: float
    image_shape: tuple[int, int, int]


def condition_dim(model: nn.Module) -> int:
    """Numbers of a condition of this base model.

    Raises:
        UsageError: it embeds no time.
    """
    modules = _time_embedding(model).modules()
    return [module for module in modules if isinstance(module, nn.Linear)][-1].out_features


def _time_embedding(model: nn.Module) -> nn.Module:
    site: nn.Module | None = dict(model.named_modules()).get(_SITE)
    if site is None:
        raise UsageError(
            expected=f"a base model with a module {_SITE}",
            found=type(model).__name__,
            todo="Use another method for this base model.",
        )
    return site


@contextmanager
def conditioned(model: nn.Module, condition: Tensor | None) -> Iterator[None]:
    """Adds a condition to the base model's embedding of the time, for the time of the context.

    For drawing: it holds for every thread that uses the model meanwhile.

    Args:
        model: the base model.
        condition: float32 [d], or [B, d] for the B records of a batch; None changes nothing.
    """
    if condition is None:
        yield
        return

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + condition.to(output.device)

    handle = _time_embedding(model).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
