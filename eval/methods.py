"""The methods that the bench compares: what each of them depends on, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyperdp.private.learners.methods import METHODS as STEP_RULES

Needs = Literal["set", "n", "budget"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of the bench.

    Attributes:
        needs: what its result depends on: the private set alone, the number of private records
            too, or the budget as well. A cell is measured once for each.
        settings: field of a bench recipe that holds its settings; "" where it has none.
    """

    needs: Needs
    settings: str = ""


LEARNERS = tuple(STEP_RULES)
"""Step-trained learners; a recipe has their settings in `fits`, by name."""

HYBRIDS = tuple(f"hybrid_{name}" for name in ("dpsgd", "prism"))
"""A release and steps from its adapter; a recipe has their settings in `hybrids`, by name."""

METHODS: dict[str, Method] = {
    "floor": Method(needs="set"),
    "base": Method(needs="set"),
    "lora": Method(needs="set", settings="finetune"),
    "public_mean": Method(needs="set"),
    "other_task": Method(needs="set"),
    "lora_n": Method(needs="n", settings="finetune"),
    "full": Method(needs="set", settings="full"),
    "shared": Method(needs="set", settings="finetune"),
    "hyper": Method(needs="budget"),
    "reweighted": Method(needs="budget", settings="reweight"),
    "dpagg": Method(needs="budget", settings="inversion"),
    "nearest": Method(needs="budget", settings="nearest"),
    "evolution": Method(needs="budget", settings="evolution"),
    **{name: Method(needs="budget", settings="fits") for name in LEARNERS},
    **{name: Method(needs="budget", settings="hybrids") for name in HYBRIDS},
}
"""In the order of a table: references, controls, what reads public data alone, private methods."""
