"""What a benchmark's recovered gains say in plain words: from the numbers alone, and never more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperdp.eval.reading import Sentence
from hyperdp.eval.results import Row, mean_std

LABELS = {
    "floor": "real images",
    "base": "base model",
    "public_mean": "ρ(public mean)",
    "other_task": "ρ(another task)",
    "lora": "non-private LoRA",
    "hyper": "hyperdp",
    "reweighted": "hyperdp on public records",
    "dpsgd": "DP-SGD LoRA",
}


def read_gains(rows: Sequence[Row]) -> list[Sentence]:
    """A sentence for each method and n: its gains over ε, and whether they beat the control.

    A gain is above the control where it is so by more than its std over seeds; with one seed
    nothing is said to be shown.

    Args:
        rows: of one private set.

    Returns:
        Sentences; one that says so where no gain can be spoken of.
    """
    gains: dict[tuple[str, int], dict[float, list[float]]] = {}
    control: list[float] = []
    for row in rows:
        if row.metric != "recovered_gain":
            continue
        if row.method == "public_mean":
            control.append(row.value)
        if row.n is not None and row.epsilon is not None:
            gains.setdefault((row.method, row.n), {}).setdefault(row.epsilon, []).append(row.value)
    if not gains:
        return [
            Sentence(
                text="No recovered gain can be told: it takes rows of the base model and of "
                "non-private LoRA, and LoRA must be closer than the base."
            )
        ]
    return [
        _sentence(f"{LABELS.get(method, method)}, n = {n:,}", sorted(found.items()), control)
        for (method, n), found in gains.items()
    ]


def _sentence(
    name: str, points: Sequence[tuple[float, list[float]]], control: Sequence[float]
) -> Sentence:
    told = ", ".join(f"{mean_std(values)} at ε = {epsilon:g}" for epsilon, values in points)
    text = f"{name}: recovered gain {told}."
    if not control:
        return Sentence(text=text + " Without ρ(public mean) beside it, it shows nothing.")
    mark = sum(control) / len(control)
    text += f" ρ(public mean), which sees no private data, recovers {mean_std(list(control))}."
    above = [epsilon for epsilon, values in points if _surely_above(values, mark)]
    below = [epsilon for epsilon, values in points if sum(values) / len(values) <= mark]
    if len(above) == len(points):
        return Sentence(text=text + " Every ε is above that by more than its std.", tone="good")
    if below:
        listed = ", ".join(f"{epsilon:g}" for epsilon in below)
        return Sentence(
            text=text + f" At ε = {listed} the private measurement is not shown to help.",
            tone="bad",
        )
    return Sentence(text=text + " Not every ε is above that by more than its std.")


def _surely_above(values: Sequence[float], mark: float) -> bool:
    if len(values) < 2:
        return False
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean - std > mark
