"""Whether a release looks like nothing the public stage has seen; post-processing of z, free.

A hypernetwork that is given the mean of something foreign still emits an adapter, and nothing in
the adapter tells. So z is asked whether it lies among the means of public tasks or of foreign data,
by densities that know how far noise and sampling alone would have carried it. The p-value is
calibrated on held-out public tasks, so false alarms are rare whatever the foreign data were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.special import logsumexp

from hyperdp import keys
from hyperdp.errors import BundleError, UsageError

Float = npt.NDArray[np.float64]

GUARD_FILE = "guard.safetensors"
FORMAT = "hyperdp-guard/1"
LEVEL = 0.03  # p-value at which a release is flagged: below the 0.05 of false alarms allowed
COUNT_WEIGHT = 0.25  # w / C, the same in every release (`hyperdp.mechanism`)
BANDWIDTH = 0.4  # of the kernels, in units of the means' scatter; 0.2 to 0.8 differ little
_TENSORS = ("reference", "foreign", "calibration", "spectra", "scatter")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the guard says of one release.

    Attributes:
        p_values: of each class (one where the release is unlabelled): how often a public task's
            release is at least as far from the public tasks.
        p_value: of all of them together, by Simes' test (1986, Biometrika 73(3)).
        flagged: p_value <= `LEVEL`.
    """

    p_values: tuple[float, ...]
    p_value: float
    flagged: bool

    def sentence(self) -> str:
        """One line for `emit` and the report."""
        level = f"p = {self.p_value:.2g}, flagged at {LEVEL:g} or less"
        if self.flagged:
            return (
                f"Unlike the public data ({level}): the release lies where public tasks do not, by "
                "more than its noise explains. The bundle was not trained for such data, and what "
                "the adapter draws may have little to do with it."
            )
        return (
            f"Not told apart from public tasks ({level}): the release lies within what the bundle "
            "was trained for, as far as its noise lets one see."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """The public tasks that a release is held against.

    Attributes:
        bundle_hash: of the bundle whose encoder made the means.
        clip_norm: C, in the embedding's units.
        records: behind each mean.
        reference: float64 [M, k], means of training tasks.
        foreign: float64 [F, k], means of data that is nothing like the public tasks.
        calibration: float64 [N, k], means of held-out tasks.
        spectra: float64 [N, k], eigenvalues of the records' covariance in each held-out task.
        scatter: float64 [k, k], covariance of records about their task's mean, trace 1.
    """

    bundle_hash: str
    clip_norm: float
    records: int
    reference: Float
    foreign: Float
    calibration: Float
    spectra: Float
    scatter: Float

    @cached_property
    def spread(self) -> Float:
        """Covariance of means about the mean of their kind, float64 [k, k]."""
        kinds = (self.reference, self.foreign)
        centred = np.concatenate([means - means.mean(0) for means in kinds])
        return np.atleast_2d(np.cov(centred, rowvar=False)) + 1e-9 * np.eye(centred.shape[1])

    def sampling_trace(self, means: Float) -> Float:
        """Trace of the records' covariance about each mean, float64 [G].

        An embedding has norm C at most, so the trace is at most C² − ‖mean‖², and equal to it where
        every embedding is clipped.
        """
        floor = 1e-3 * self.clip_norm**2
        return np.asarray(np.maximum(self.clip_norm**2 - np.square(means).sum(1), floor))

    def distance(self, means: Float, *, noise_std: float, units: float) -> Float:
        """Log density of noisy means among foreign data over that among public tasks.

        Both are Gaussian kernel densities, convolved with what noise and sampling of `units` units
        add.

        Args:
            means: float64 [G, k], noisy.
            noise_std: std of the noise on each coordinate.
            units: n behind each mean.

        Returns:
            float64 [G]; larger is more foreign.
        """
        identity = np.eye(means.shape[1])
        trace = float(self.sampling_trace(self.reference).mean())
        released = noise_std**2 * identity + self.scatter * trace / units
        kernel = BANDWIDTH**2 * self.spread + released
        foreign = _log_density(means, self.foreign, kernel)
        return np.asarray(foreign - _log_density(means, self.reference, kernel))

    def as_released(
        self, means: Float, *, noise_std: float, units: float, noisy_count: bool, seed: int
    ) -> Float:
        """What releases of these public means would look like.

        Args:
            means: float64 [G, k], each of `records` records.
            noise_std: std of the noise on each coordinate of the mean, after the noisy division.
            units: n behind each release; fewer than `records` adds sampling error.
            noisy_count: whether the divisor is noisy too, as under add-remove.
            seed: of the draw; these are public data.

        Returns:
            float64 [G, k].
        """
        rng = np.random.default_rng(seed)
        groups, k = means.shape
        missing = max(1 / max(units, 1.0) - 1 / self.records, 0.0)
        lower = np.linalg.cholesky(_definite(self.scatter) + 1e-9 * np.eye(k))
        sampling = rng.standard_normal((groups, k)) @ lower.T
        sampling *= np.sqrt(self.sampling_trace(means) * missing)[:, None]
        ratio = noise_std / (COUNT_WEIGHT * self.clip_norm) if noisy_count else 0.0
        scale = np.maximum(1 + ratio * rng.standard_normal((groups, 1)), 0.0)  # n / n̂
        return (means + sampling) * scale + noise_std * rng.standard_normal((groups, k))

    def p_value(
        self, mean: Float, *, noise_std: float, units: float, noisy_count: bool = True
    ) -> float:
        """How often a held-out public task's release is at least as far out.

        The held-out tasks get the very noise of the release, so the p-value is valid at any noise
        level for a task exchangeable with them (Vovk, Gammerman & Shafer 2005, conformal p-value).

        Args:
            mean: float [k], the released mean.
            noise_std: std of its noise.
            units: noisy number of units behind it.
            noisy_count: whether that number is noisy.

        Returns:
            In (0, 1]; the smallest possible is 1 / (N + 1).
        """
        if mean.shape != self.calibration.shape[1:]:
            raise UsageError(
                expected=f"a mean of {self.calibration.shape[1]} coordinates",
                found=str(mean.shape),
                todo="Use the bundle that the release was made with.",
            )
        count = max(units, 1.0)
        others = self.as_released(
            self.calibration, noise_std=noise_std, units=count, noisy_count=noisy_count, seed=0
        )
        both = np.concatenate([np.asarray(mean, dtype=np.float64)[None], others])
        distance = self.distance(both, noise_std=noise_std, units=count)
        return float((1 + (distance[1:] >= distance[0]).sum()) / len(both))

    def judge(
        self, means: Float, noise_std: Float, units: Float, *, noisy_count: bool = True
    ) -> Finding:
        """Judges a release.

        Args:
            means: float [L, k], released means, one a class.
            noise_std: float [L].
            units: float [L], noisy numbers of units.
            noisy_count: whether these numbers are noisy.
        """
        values = tuple(
            self.p_value(mean, noise_std=float(std), units=float(n), noisy_count=noisy_count)
            for mean, std, n in zip(means, noise_std, units, strict=True)
        )
        together = simes(values)
        return Finding(p_values=values, p_value=together, flagged=together <= LEVEL)

    def save(self, folder: Path) -> Path:
        """Writes `guard.safetensors`, whole or not at all, and returns its path.

        Means are float16; the scatter is float32, as a rounded one may have lost its last, smallest
        eigenvalues to negative ones.
        """
        path = folder / GUARD_FILE
        kinds = {name: np.float32 if name == "scatter" else np.float16 for name in _TENSORS}
        tensors = {name: getattr(self, name).astype(kind) for name, kind in kinds.items()}
        metadata = {
            "format": FORMAT,
            "bundle_hash": self.bundle_hash,
            "clip_norm": repr(self.clip_norm),
            "records": str(self.records),
        }
        keys.write_durably(path, save(tensors, metadata=metadata), mode=keys.PUBLIC)
        return path


def _definite(scatter: Float) -> Float:
    """A covariance whose least eigenvalues rounding may have made negative: these become nought."""
    values, vectors = np.linalg.eigh(scatter)
    if values[0] >= 0:
        return scatter
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def simes(p_values: tuple[float, ...]) -> float:
    """One p-value for all: min over i of L · p_(i) / i (Simes 1986, Biometrika 73(3))."""
    ordered = np.sort(p_values)
    return float(min(1.0, (len(ordered) * ordered / np.arange(1, len(ordered) + 1)).min()))


def load_guard(folder: Path, bundle_hash: str) -> Guard | None:
    """The guard beside a bundle; None where the bundle has none.

    Args:
        folder: the bundle's.
        bundle_hash: of the bundle.

    Raises:
        BundleError: it is damaged, or was made for another bundle.
    """
    path = folder / GUARD_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name).astype(np.float64) for name in _TENSORS}
        clip_norm, records = float(facts["clip_norm"]), int(facts["records"])
        found = facts["bundle_hash"]
        if facts["format"] != FORMAT:
            raise ValueError(facts["format"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(
            expected=f"calibration data of the guard in {path}",
            found=repr(error)[:200],
            todo="Make it again: `hyperdp pretrain forecast`.",
        ) from error
    check_bundle(path, found, bundle_hash)
    return Guard(bundle_hash=found, clip_norm=clip_norm, records=records, **tensors)


def check_bundle(
    path: Path, found: str, bundle_hash: str, *, command: str = "hyperdp pretrain forecast"
) -> None:
    """Raises BundleError where what lies beside a bundle was made for another one."""
    if found != bundle_hash:
        raise BundleError(
            expected=f"{path.name} made for this bundle, {bundle_hash[:12]}",
            found=f"one made for bundle {found[:12]}",
            todo=f"Make it again (`{command}`), or remove {path}.",
        )


def _log_density(points: Float, centres: Float, covariance: Float) -> Float:
    """Log of a Gaussian kernel density at [G, k] with kernels at [M, k], up to (2π)^(−k/2): [G]."""
    lower = np.linalg.cholesky(covariance)
    x, m = np.linalg.solve(lower, points.T).T, np.linalg.solve(lower, centres.T).T
    square = np.square(x).sum(1)[:, None] - 2 * x @ m.T + np.square(m).sum(1)  # [G, M]
    density = logsumexp(-square / 2, axis=1) - math.log(len(centres))
    return np.asarray(density - np.log(np.diag(lower)).sum())
