"""A learner's adapter for each class of labelled records, together at the price of one.

A record has one label, out of a public list, and touches the adapter of its class alone. This is
one DP-SGD run over the stacked adapters, in which a record's gradient is zero outside its own
block, so that the stacked sum has the sensitivity C of a single one. It is also parallel
composition: under add-remove, neighbours differ in one record, hence in one class; the fits of all
other classes have the same law on both, and are independent of that one (docs/learners.md;
McSherry 2009, theorem 4). A hybrid, being a release and steps of one class's records alone, is such
a fit too.

It does not hold under replace-one, where a record may leave one class and come into another, nor
for users with records in several classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.errors import UsageError
from hyperdp.eval.hybrids import HybridConfig, hybrid_records
from hyperdp.eval.rivals import fit_records
from hyperdp.eval.study import to_records
from hyperdp.lora import Weights, pick
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.records import AnyRecord
from hyperdp.text_bundle import TextBundle

Progress = Callable[[int, int], None]


def class_config(values: dict[str, Any], *, n: int, classes: int) -> FitConfig:
    """The settings of each class's fit, from public numbers alone.

    Args:
        values: of `FitConfig`, or of `HybridConfig` where `fraction` is among them, with `share` in
            place of `size` and `expected_batch`: the expected batch over the size.
        n: records of all classes, public in a benchmark.
        classes: L.

    Returns:
        Settings with size n / L: how many records a class really has stays private, and a wrong
        size costs accuracy, never privacy.
    """
    kind = HybridConfig if "fraction" in values else FitConfig
    known = {field.name for field in dataclasses.fields(kind)} | {"share"}
    if unknown := sorted(set(values) - known | set(values) & {"size", "expected_batch"}):
        raise UsageError(
            expected="`share` and values of FitConfig other than size and batch",
            found=", ".join(unknown),
            todo="Correct the recipe.",
        )
    own = dict(values)
    share, size = own.pop("share", 0.25), max(1, n // classes)
    return kind(**own, size=size, expected_batch=min(size, max(1, round(share * size))))


def class_fits(
    bundle: Bundle,
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    config: FitConfig,
    budget: PrivacyBudget,
    progress: Progress,
) -> list[Weights]:
    """`fits_by_class` of labelled images.

    Args:
        bundle: its base model.
        images: float32 [n, C, H, W], private.
        labels: int64 [n] in 0 … L - 1, private.
        classes: L.
        config: see there.
        budget: see there.
        progress: see there.

    Returns:
        L adapters, each A [1, r, in, …] and B [1, out, r] in its group.
    """
    groups = [to_records(images[labels == c]) for c in range(classes)]
    return fits_by_class(bundle, groups, config=config, budget=budget, progress=progress)


def fits_by_class(
    bundle: Bundle | TextBundle,
    groups: Sequence[Sequence[AnyRecord]],
    *,
    config: FitConfig,
    budget: PrivacyBudget,
    progress: Progress,
) -> list[Weights]:
    """Trains an adapter on each class's records; all of them together cost `budget`.

    Args:
        bundle: its base model.
        groups: the records of each of L classes, images or documents, private; no record is in two.
            A class without records is trained all the same, on noise alone, as its absence is
            private.
        config: of every class, see `class_config`; a hybrid's has each class's release as well.
        budget: ε and δ under add-remove, unit record.
        progress: called with (steps done, steps of all classes).

    Returns:
        L adapters, each A [1, r, in, …] and B [1, out, r].

    Raises:
        UsageError: another adjacency or unit, for which the classes do not compose in parallel.
    """
    if (budget.adjacency, budget.unit) != ("add-remove", "record"):
        raise UsageError(
            expected="add-remove adjacency with the record as the unit",
            found=f"{budget.adjacency}, unit {budget.unit}",
            todo="Under these one unit may touch several classes, and their budgets add up.",
        )
    total = len(groups) * config.steps
    # A microbatch is filled up to its one shape: no larger than a class's batch mostly is.
    pace = Pace(microbatch=min(Pace.microbatch, -(-config.expected_batch // 8) * 8))
    made = []
    for c, records in enumerate(groups):

        def tell(done: int, _: int, before: int = c * config.steps) -> None:
            progress(before + done, total)

        if isinstance(config, HybridConfig):
            found = hybrid_records(bundle, records, config, budget, pace=pace, progress=tell)
        else:
            found = fit_records(bundle, records, config, budget, pace=pace, progress=tell)
        made.append(pick(found, 0))
    return made
