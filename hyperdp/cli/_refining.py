"""What `hyperdp private --refine` settles before anything is read: the share, and the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.private.learners.config import FitConfig
    from hyperdp.text_bundle import TextBundle

GUESSED_FRACTION = 0.5  # where nobody says and no table was made: half to either part


@dataclass(frozen=True, kw_only=True)
class RefineRequest:
    """The command line of the steps; None where it does not say.

    Attributes:
        method: `prism` or `dpsgd`.
        fraction: f.
        size: N, the public number of units.
        steps, batch, clip_norm, lr: of the steps.

    Raises:
        UsageError: a fraction that is none.
    """

    method: Literal["prism", "dpsgd"]
    fraction: float | None
    size: int | None
    steps: int | None
    batch: int | None
    clip_norm: float | None
    lr: float | None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 <= self.fraction < 1:
            raise UsageError(
                expected="0 <= --refine-fraction < 1",
                found=f"{self.fraction:g}",
                todo="0 is one release alone; for steps alone use `hyperdp fit`.",
            )


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What was settled; public.

    Attributes:
        fraction: f; 0 is one release alone.
        config: of the steps, or None where f = 0.
        source: whence f comes: `asked`, `table` or `guess`.
        told: the same in a sentence.
    """

    fraction: float
    config: FitConfig | None
    source: Literal["asked", "table", "guess"]
    told: str


def settle(request: RefineRequest, bundle: Bundle | TextBundle, epsilon: float) -> Refinement:
    """Choose the share and the settings of the steps from what is public alone.

    What the command line says stands; the rest is the bundle's table's, where it has one, and the
    defaults of `FitConfig` otherwise.

    Args:
        request: the command line.
        bundle: beside which the table lies.
        epsilon: ε of the whole budget.

    Raises:
        UsageError: no public size, or one that is none; bad settings.
        BundleError: the table is damaged or another bundle's.
    """
    from hyperdp.hybrid_table import load_hybrid
    from hyperdp.private.learners.config import FitConfig

    if request.fraction == 0:
        return Refinement(
            fraction=0.0, config=None, source="asked", told="f = 0: one release alone, no steps"
        )
    if request.size is None:
        raise UsageError(
            expected="--size with --refine: the number of units as far as it is public",
            found="none",
            todo="Give what everybody knows, or a guess; a wrong one costs accuracy, never "
            "privacy. It cannot be counted from the data, which is private.",
        )
    if request.size < 1:
        raise UsageError(
            expected="--size of at least 1", found=str(request.size), todo="Correct --size."
        )
    table = load_hybrid(bundle.path, bundle.hash)
    cell = None
    if table is not None:
        cell = table.at(request.method, size=request.size, epsilon=epsilon)
    given = {
        "steps": request.steps,
        "expected_batch": request.batch,
        "clip_norm": request.clip_norm,
        "lr": request.lr,
    }
    usual = FitConfig(size=FitConfig.expected_batch) if cell is None else cell
    found = {name: getattr(usual, name) for name in given}
    found["expected_batch"] = min(found["expected_batch"], request.size)
    found |= {name: value for name, value in given.items() if value is not None}
    config = FitConfig(method=request.method, size=request.size, **found)
    if request.fraction is not None:
        told = f"f = {request.fraction:g} of the budget goes to steps, as asked"
        return Refinement(fraction=request.fraction, config=config, source="asked", told=told)
    if cell is None:
        told = (
            f"f = {GUESSED_FRACTION:g} of the budget goes to steps: a guess, as the bundle has no "
            f"table for {request.method} (`hyperdp pretrain hybrid` makes it from public tasks)"
        )
        return Refinement(fraction=GUESSED_FRACTION, config=config, source="guess", told=told)
    told = (
        f"f = {cell.fraction:g} of the budget goes to steps, as the bundle's table has it for "
        f"n = {cell.size} and ε = {cell.epsilon:g}, the nearest to what is asked"
    )
    return Refinement(
        fraction=cell.fraction,
        config=config if cell.fraction > 0 else None,
        source="table",
        told=told,
    )
