"""How much of a budget goes to steps after a release: a table made once, on public tasks.

It lies beside a bundle as `hybrid.json`, names the bundle by its hash, and is refused beside any
other. Nothing in it was chosen on private data, so reading it costs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperdp.errors import BundleError, UsageError
from hyperdp.guard import check_bundle

HYBRID_FILE = "hybrid.json"
FORMAT = "hyperdp-hybrid/1"


@dataclass(frozen=True, kw_only=True)
class HybridCell:
    """The best split found for one method, public size and budget.

    Attributes:
        method: what refines: `prism` or `dpsgd`.
        size: N, the public number of units.
        epsilon: ε of the whole budget.
        fraction: f, the share of μ² that the steps get; 0 where one release alone is best.
        steps, expected_batch, clip_norm, lr: of the steps, as `FitConfig` has them; where f = 0,
            those that did best of all with steps.
        gain: mean recovered gain on the public tasks, in units of what non-private LoRA gains.
        one_shot: the same of one release alone.
        tasks: public tasks behind both.
    """

    method: str
    size: int
    epsilon: float
    fraction: float
    steps: int
    expected_batch: int
    clip_norm: float
    lr: float
    gain: float
    one_shot: float
    tasks: int

    def __post_init__(self) -> None:
        counts = (self.size, self.steps, self.expected_batch, self.tasks)
        reals = (self.epsilon, self.fraction, self.clip_norm, self.lr, self.gain, self.one_shot)
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in reals)
        whole = all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in counts)
        if not (
            whole
            and numbers
            and all(math.isfinite(x) for x in reals)
            and isinstance(self.method, str)
            and 0 <= self.fraction < 1
            and min(self.epsilon, self.clip_norm, self.lr) > 0
            and self.expected_batch <= self.size
        ):
            raise UsageError(
                expected="a method, counts >= 1, 0 <= fraction < 1, and a batch of at most the "
                "size; epsilon, clip_norm and lr above 0",
                found=str(self),
                todo="Make the table again: `hyperdp pretrain hybrid`.",
            )


@dataclass(frozen=True, kw_only=True)
class HybridTable:
    """The cells of a bundle.

    Attributes:
        bundle, bundle_hash: whose they are.
        delta: δ of every budget in it.
        cells: at least one.
        made: command, commit, hardware, seconds and settings.
    """

    bundle: str
    bundle_hash: str
    delta: float
    cells: list[HybridCell]
    made: dict[str, Any]

    def at(self, method: str, *, size: int, epsilon: float) -> HybridCell | None:
        """The cell nearest to a size and a budget, both on a logarithmic scale.

        Args:
            method: what refines.
            size: N.
            epsilon: ε of the whole budget.

        Returns:
            The cell, the one with the smaller share of steps where two are equally near; None where
            the table has none of that method.
        """

        def distance(cell: HybridCell) -> tuple[float, float]:
            apart = math.hypot(math.log(cell.size / size), math.log(cell.epsilon / epsilon))
            return round(apart, 9), cell.fraction

        own = [cell for cell in self.cells if cell.method == method]
        return min(own, key=distance) if own else None

    def save(self, folder: Path) -> Path:
        """Writes `hybrid.json` in one step and returns its path."""
        path = folder / HYBRID_FILE
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, allow_nan=False, indent=1)
        draft = path.with_suffix(".tmp")
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
        return path


def load_hybrid(folder: Path, bundle_hash: str) -> HybridTable | None:
    """The table beside a bundle.

    Args:
        folder: the bundle's.
        bundle_hash: of the bundle.

    Returns:
        The table, or None where there is no file.

    Raises:
        BundleError: it is damaged, or was made for another bundle.
    """
    path = folder / HYBRID_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        cells = [HybridCell(**cell) for cell in values.pop("cells")]
        table = HybridTable(**values, cells=cells)
        if not cells or not isinstance(table.delta, float) or not 0 < table.delta < 1:
            raise ValueError("no cells, or no delta")
        if not isinstance(table.bundle_hash, str):
            raise TypeError("bundle_hash")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BundleError(
            expected=f"a table of splits in {path}",
            found=repr(error)[:200],
            todo="Make it again: `hyperdp pretrain hybrid`.",
        ) from error
    check_bundle(path, table.bundle_hash, bundle_hash, command="hyperdp pretrain hybrid")
    return table
