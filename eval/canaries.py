"""Whether planted secrets can be read out of a language model.

The rank of each among secrets that were never planted (Carlini et al. 2019, arXiv 1802.08232).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hyperdp.eval.text_study import document_losses, to_tokens
from hyperdp.lora import Weights
from hyperdp.text_bundle import TextBundle

FORM = "The access code of the vault is {}."
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SECRET_LENGTH = 10
CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Secrets drawn alike, some of them planted.

    Attributes:
        planted: documents with a secret, all different.
        others: as many candidates that no data holds.
    """

    planted: list[str]
    others: list[str]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where the planted secrets stand.

    Attributes:
        ranks: of each among the candidates, 1 the likeliest.
        candidates: R, number of the others.
    """

    ranks: list[int]
    candidates: int

    @property
    def exposures(self) -> list[float]:
        """log2 (R + 1) - log2 rank, bits, of each; 1.44 on average where nothing was learnt."""
        return [math.log2(self.candidates + 1) - math.log2(rank) for rank in self.ranks]

    @property
    def smallest_p(self) -> float:
        """Chance of a rank as good as the best of them, had none been planted (Bonferroni).

        A secret that was not learnt is exchangeable with the others: its rank is uniform.
        """
        return min(1.0, len(self.ranks) * min(self.ranks) / (self.candidates + 1))

    @property
    def found(self) -> int:
        """How many rank above chance, at 99 % confidence over all of them together."""
        level = (1 - CONFIDENCE) / len(self.ranks)
        return sum(rank / (self.candidates + 1) <= level for rank in self.ranks)


def make_canaries(count: int, candidates: int, *, seed: int) -> Canaries:
    """Draws secrets of `SECRET_LENGTH` letters and digits.

    Args:
        count: how many are planted.
        candidates: how many are not.
        seed: of the draw; test data only.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < count + candidates:
        letters = rng.integers(0, len(LETTERS), SECRET_LENGTH)
        drawn[FORM.format("".join(LETTERS[int(i)] for i in letters))] = None
    texts = list(drawn)
    return Canaries(planted=texts[:count], others=texts[count:])


def rank_canaries(bundle: TextBundle, weights: Weights, secrets: Canaries) -> Ranks:
    """Ranks the planted secrets by their likelihood under an adapter.

    Args:
        bundle: its base model.
        weights: one adapter, or {}.
        secrets: of `make_canaries`.

    Returns:
        Ranks; a tie counts against the secret's being found.
    """
    texts = [*secrets.planted, *secrets.others]
    tokens = to_tokens(bundle, texts)
    tokens = tokens[:, : int((tokens >= 0).sum(1).max())]  # all of it: what follows is padding
    lengths = (tokens[:, 1:] >= 0).sum(1)
    surprise = document_losses(bundle, weights, tokens) * lengths  # nats of the whole secret
    mine, others = surprise[: len(secrets.planted)], surprise[len(secrets.planted) :]
    ranks = [1 + int((others <= value).sum()) for value in mine]
    return Ranks(ranks=ranks, candidates=len(others))
