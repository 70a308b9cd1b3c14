"""A finished release and its folder: everything here is post-processing and costs no privacy."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperdp import keys
from hyperdp.certificate import Certificate, read_release
from hyperdp.errors import UsageError
from hyperdp.mechanism import STEPS_PER_UNIT, MechanismSpec


class SignalWarning(UserWarning):
    """The noise drowns whatever the release can say, or its δ is weak."""


# Below it a class's mean is too vague for an adapter of its own: with 50 units a class at ε = 1
# (1.6), what such adapters drew took away from public records, with 200 (6.6) it did not
# (`labelled-quick` in docs/benchmarks.md).
CLASS_SIGNAL = 3.0
_HELD = ".room"  # in a draft: the disk's bytes for what is to come
ROOM = 1 << 20  # bytes of a certificate and its file system's own, with much to spare
MOST_DELTA = 0.1  # public, and above 1 / n of any dataset that a release says something of


def check_public_delta(delta: float, *, allow: bool) -> None:
    """Refuse, before anything is spent, a δ that no number of units could make a promise.

    Whether a smaller one is below 1 / n can only be told from the noisy count, when the budget is
    spent.

    Args:
        delta: of the budget.
        allow: take it all the same.

    Raises:
        UsageError: δ > 0.1.
    """
    if delta > MOST_DELTA and not allow:
        raise UsageError(
            expected=f"delta well below 1 / number of units, and {MOST_DELTA:g} at most",
            found=f"delta={delta:g}, which allows one unit to be published outright",
            todo="Nothing is spent. Use a delta such as 1e-5, or --allow-weak-delta.",
        )


def mean_and_noise(
    sums: NDArray[np.int64], counts: NDArray[np.int64], spec: MechanismSpec, sigma: float
) -> tuple[Tensor, Tensor]:
    """What ρ is given: the noisy mean of each class, and the noise on it.

    Args:
        sums: int64 [L, k], noisy, in lattice steps.
        counts: int64 [L], noisy, in lattice steps.
        spec: the query.
        sigma: noise std, in lattice steps.

    Returns:
        mean float32 [L, k] and its noise std float32 [L], in the embedding's units.
    """
    divisor = np.maximum(counts / spec.count_bound, 1.0) * STEPS_PER_UNIT  # [L]
    mean, std = sums / divisor[:, None], sigma / divisor
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """The noisy measurement and its certificate; may be published.

    Attributes:
        certificate: what was promised, and how.
        sums: int64 [L, k], noisy, in lattice steps.
        counts: int64 [L], noisy (exact where n is public), in lattice steps.
    """

    certificate: Certificate
    sums: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def load(cls, folder: str | Path) -> Release:
        """Read a release; signature and hash are checked.

        Args:
            folder: with certificate.json and release.safetensors.

        Raises:
            VerificationError: a byte was changed, or a file is missing.
        """
        certificate, sums, counts = read_release(folder)
        return cls(certificate=certificate, sums=sums, counts=counts)

    def count(self) -> NDArray[np.float64]:
        """Noisy number of units in each class, float64 [L]; may be negative."""
        return self.counts / float(self.certificate.spec.count_bound)

    @property
    def classes(self) -> list[str] | None:
        """Names of the L classes, or None where the release is unlabelled."""
        return self.certificate.classes or None

    def mean(self) -> Tensor:
        """Noisy mean clipped embedding of each class.

        Returns:
            float32 [L, k], in the embedding's units: noisy sum / max(noisy count, 1). Dividing by
            the true count instead would leave the promise (docs/privacy.md, pitfall 1).
        """
        return self._mean_and_noise()[0]

    def mean_noise_std(self) -> Tensor:
        """Std of the noise on each coordinate of `mean`, given the noisy count.

        Returns:
            float32 [L], in the embedding's units: σ / max(noisy count, 1).
        """
        return self._mean_and_noise()[1]

    def _mean_and_noise(self) -> tuple[Tensor, Tensor]:
        c = self.certificate
        return mean_and_noise(self.sums, self.counts, c.spec, c.sigma_lattice)

    def signal_to_noise(self) -> float:
        """Best signal-to-noise ratio that the largest class can have.

        Returns:
            C / (noise std of the mean · √k): the norm of a mean on which all units agree, over the
            expected norm of its noise.
        """
        return float(self.class_signals().max())

    def class_signals(self) -> NDArray[np.float64]:
        """Best signal-to-noise ratio of each class, float64 [L]; see `signal_to_noise`."""
        c = self.certificate
        noise = self.mean_noise_std().double().numpy() * c.embedding_dim**0.5
        return np.asarray(c.clip_norm / noise, dtype=np.float64)

    def judge(self, *, allow_weak_delta: bool) -> None:
        """Warn of a release that is nearly all noise, and refuse one whose δ promises little.

        Both look at noisy values only. n is private, so δ can be compared with 1 / n̂ only when the
        budget is already spent; the remedy is a smaller δ from the start.

        Raises:
            UsageError: δ >= 1 / n̂, where n̂ is the noisy number of units, and it is not allowed.
        """
        delta, units = self.certificate.delta, max(float(self.count().sum()), 1.0)
        if delta * units >= 1:
            if not allow_weak_delta:
                raise UsageError(
                    expected=f"delta < 1 / (noisy number of units) = {1 / units:.1e}",
                    found=f"delta={delta:g}, which allows one unit to be published outright",
                    todo="The budget is spent and the release was dropped. The next one, with a "
                    "smaller delta or with --allow-weak-delta, needs a larger cap first (`hyperdp "
                    "ledger set-cap`).",
                )
            warnings.warn(
                f"delta={delta:g} is not below 1/n = {1 / units:.1e}: a weak promise",
                SignalWarning,
                stacklevel=3,
            )
        ratio, doubt = self.signal_to_noise(), 2 * self._count_noise_std()
        if ratio < 1 or units < doubt:
            warnings.warn(
                f"signal-to-noise ratio of the mean is at most {ratio:.2g} by a noisy count of "
                f"{units:.3g} ± {doubt:.2g}: too few units for this budget; expect little more "
                "than the bundle's own average",
                SignalWarning,
                stacklevel=3,
            )
        elif self.classes is None and ratio < CLASS_SIGNAL:
            warnings.warn(
                f"the mean is vague (signal-to-noise ratio {ratio:.2g}, below {CLASS_SIGNAL:g}): "
                "what the adapter draws will owe more to the bundle than to the data; more units, "
                "or a larger epsilon, say more",
                SignalWarning,
                stacklevel=3,
            )
        elif self.classes is not None and (self.class_signals() < CLASS_SIGNAL).any():
            signals = zip(self.classes, self.class_signals(), strict=True)
            vague = [name for name, signal in signals if signal < CLASS_SIGNAL]
            warnings.warn(
                f"the mean is vague (signal-to-noise ratio below {CLASS_SIGNAL:g}) of "
                f"{len(vague)} of {len(self.classes)} classes: {', '.join(vague[:10])}. What their "
                "adapters draw may be worth less than public records of the class: train them on "
                "such records (`hyperdp emit --public`)",
                SignalWarning,
                stacklevel=3,
            )

    def _count_noise_std(self) -> float:
        """Std of the noise on the number of units over all classes; 0 where it is public."""
        spec = self.certificate.spec
        sigma = self.certificate.sigma_lattice * spec.counts_are_private
        return float(sigma * spec.num_classes**0.5 / spec.count_bound)


@dataclass
class NewFolder:
    """A folder that appears with all of its files, or not at all.

    Attributes:
        target: where it will be.
        draft: hidden folder beside it, which holds the files until they are all on disk.
        paid: whether a budget has been reserved for what is to come, so that an error says so.
    """

    target: Path
    draft: Path
    paid: bool = False

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Write the files durably and put the folder in its place in one step."""
        (self.draft / _HELD).unlink()
        for name, data in files.items():
            keys.write_durably(self.draft / name, data, mode=keys.PUBLIC)
        self.draft.chmod(0o755)
        self.draft.rename(self.target)
        keys.sync_folder(self.target.parent)


@contextmanager
def new_folder(target: Path, *, room: int = 0) -> Iterator[NewFolder]:
    """Lend a folder to publish into, and take away every trace of it on an error.

    Args:
        target: must not exist.
        room: bytes of the files to come beyond their certificate. They are held on the disk until
            then: one that is full must refuse before a budget is spent and not after.

    Raises:
        UsageError: it exists, or the disk refuses.
    """
    target = target.expanduser().resolve()
    try:
        if target.exists():
            raise FileExistsError("it exists already")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise _unwritable(target, error, paid=False) from error
    folder, started = NewFolder(target, draft), draft.stat().st_ino
    try:
        _hold(draft / _HELD, room + ROOM)
        yield folder
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if target.exists() and target.stat().st_ino == started:  # ours, published before the error
            shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(target, error, paid=folder.paid) from None
        raise


def _hold(place: Path, size: int) -> None:
    """Take bytes of the disk, for files that are still to come."""
    with place.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        os.fsync(file.fileno())


def _unwritable(target: Path, error: OSError, *, paid: bool) -> UsageError:
    spent = "The budget that was reserved stays spent." if paid else "Nothing has been spent."
    return UsageError(
        expected=f"a new folder that can be written at {target}",
        found=error.strerror or str(error),
        todo=f"Choose another folder, or make room; a release is never overwritten. {spent}",
    )
