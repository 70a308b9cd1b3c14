"""Failures that a good FID hides, each raised by a calibrated test: memorisation and collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperdp.errors import UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.metrics.conditioning import Conditioning, conditioning
from hyperdp.eval.metrics.memorisation import Memorisation, memorisation

LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One test and how it came out.

    Attributes:
        name: `memorisation` or `collapse`.
        raised: whether the images fail it.
        p_value: of the test.
        text: the finding, in a sentence.
    """

    name: str
    raised: bool
    p_value: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All flags, and the figures that they rest on.

    Attributes:
        flags: one for each test that could be made, raised or not.
        memorisation: None where there are no private or no held-out records.
        conditioning: one for each control.
    """

    flags: tuple[Flag, ...]
    memorisation: Memorisation | None
    conditioning: tuple[Conditioning, ...]


def flags(
    generated: Features,
    *,
    train: Features | None = None,
    held_out: Features | None = None,
    controls: Mapping[str, Features] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Findings:
    """Tests images for memorised records and for a measurement that went unused.

    Memorisation is raised where images are nearer to private records than exchanged labels explain
    (p ≤ level): where nothing is memorised this happens in at most that share of runs. Collapse is
    raised where exchanged labels explain all distance to the control (p > level): where z is
    ignored it is missed in at most that share of runs.

    Args:
        generated: features of the images that were made from the release.
        train: of the private records; with `held_out`, of records of the same source that are not
            in them.
        held_out: see `train`.
        controls: name → features of images made without the private measurement, best ρ's answer to
            another embedding at the release's noise level.
        level: in (0, 1).
        seed: of the permutations.

    Returns:
        Flags and figures.

    Raises:
        DataError: features of different extractors, or too few images.
        UsageError: only one of `train` and `held_out`.
    """
    if (train is None) != (held_out is None):
        raise UsageError(
            expected="private and held-out records together",
            found="one of them",
            todo="Give records of the same source that the generator has not seen.",
        )
    found: list[Flag] = []
    memory = None
    if train is not None and held_out is not None:
        memory = memorisation(generated, train, held_out, seed=seed)
        found.append(_memory_flag(memory, level))
    tests = tuple(
        conditioning(generated, images, name=name, seed=seed)
        for name, images in (controls or {}).items()
    )
    found += [_collapse_flag(test, level) for test in tests]
    return Findings(flags=tuple(found), memorisation=memory, conditioning=tests)


def _memory_flag(found: Memorisation, level: float) -> Flag:
    raised = found.p_value <= level
    figures = (
        f"{found.share:.1%} of images are nearer to a private record than to any held-out one "
        f"({found.expected_share:.1%} by chance); mean distance ratio {found.ratio:.2f} "
        f"({found.expected_ratio:.2f} by chance); p = {found.p_value:.2g}, {found.extractor} "
        "features"
    )
    lead = "Private records are repeated" if raised else "No sign of repeated private records"
    return Flag(
        name="memorisation", raised=raised, p_value=found.p_value, text=f"{lead}: {figures}."
    )


def _collapse_flag(found: Conditioning, level: float) -> Flag:
    raised = found.p_value > level
    figures = f"kernel distance {found.distance:.3g}, p = {found.p_value:.2g}, {found.extractor} "
    figures += f"features, {found.images:,} images on either side"
    lead = (
        f"The images cannot be told from {found.control}'s, so nothing shows that the private "
        "measurement was used"
        if raised
        else f"The private measurement shows: the images differ from {found.control}'s"
    )
    return Flag(name="collapse", raised=raised, p_value=found.p_value, text=f"{lead} ({figures}).")
