"""Base models that share their weights and not their hooks, for shares of a step side by side."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

from torch import nn


class HasModel(Protocol):
    """A base model, of images or of documents."""

    model: nn.Module


T = TypeVar("T", bound=HasModel)


def twin(family: T) -> T:
    """The same base with a network of its own: its weights are shared, its hooks are not."""
    other = copy.copy(family)
    other.model = copy.deepcopy(family.model, {id(p): p for p in family.model.parameters()})
    return other
