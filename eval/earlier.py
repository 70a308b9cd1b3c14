"""Rows that outlive a bundle: a table is of the bundle there is, or says of which."""

from __future__ import annotations

from collections.abc import Iterable

from hyperdp.bundle import Bundle
from hyperdp.eval.results import Row


def base_name(bundle: Bundle) -> str:
    """What a row says of its bundle: name and the first eight digits of the hash."""
    return f"{bundle.name}-{bundle.hash[:8]}"


def measured_base(rows: Iterable[Row], bench: str, base: str) -> str:
    """The bundle that a table of these rows is of: the present one, or else the one before.

    Measuring all again takes days and a new bundle minutes, so the tables of a bundle stay until
    its successor has its own; rows of two bundles are never in one table.

    Args:
        rows: of a results file, in the order they were measured in.
        bench: the recipe.
        base: `base_name` of the bundle as it is now.

    Returns:
        `base` where there are rows of it or none at all, else the last bundle of that name.
    """
    name, digest = base.rsplit("-", 1)
    last = base
    for row in rows:
        if row.bench != bench or not row.base.startswith(f"{name}-"):
            continue
        last = f"{name}-{row.base.removeprefix(f'{name}-')[: len(digest)]}"
        if last == base:
            return base
    return last


def caption(measured: str, present: str) -> str:
    """A line above a table of another bundle's rows; nothing above one of the present bundle's."""
    if measured == present:
        return ""
    return f"Measured with the bundle {measured}; not yet again with {present}.\n\n"
