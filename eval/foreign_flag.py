"""The guard's finding as a flag of the report."""

from __future__ import annotations

from hyperdp.bundle import Bundle
from hyperdp.eval.flags import Flag
from hyperdp.private.emit import judge_release
from hyperdp.private.release import Release


def foreign_flag(release: Release, bundle: Bundle) -> Flag | None:
    """Whether a release is foreign to the bundle; for `ReportInput.flags`, costs no privacy.

    Args:
        release: made with the bundle.
        bundle: with its calibration data beside it.

    Returns:
        The flag; None where the bundle has no calibration data.
    """
    finding = judge_release(release, bundle)
    if finding is None:
        return None
    return Flag(
        name="foreign data",
        raised=finding.flagged,
        p_value=finding.p_value,
        text=finding.sentence(),
    )
