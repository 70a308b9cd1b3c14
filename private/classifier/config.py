"""What a DP-SGD classifier run is: public numbers, each ingredient of De et al. 2022 a switch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from hyperdp.classifier_certificate import config_hash
from hyperdp.errors import UsageError
from hyperdp.private.classifier.network import NetworkConfig
from hyperdp.subsampled import MOST_STEPS


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The recipe of arXiv 2204.13650, section 4; the defaults are its CIFAR-10 run at ε = 1.

    Attributes:
        network: with the switches of its own.
        batch_size: expected size of a Poisson batch, and the fixed divisor of every sum.
        steps: T updates; the noise multiplier follows from it, the budget and batch_size.
        lr: constant, of plain SGD without momentum or weight decay; on gradients of norm ≤ 1.
        multiplicity: K views of an example, whose gradients are averaged *before* clipping, so that
            they cost no privacy; 0 takes the image as it is.
        pad: pixels of reflected margin that views are cropped from. flip: views may be mirrored.
        clip_norm: C, on the norm of one example's averaged gradient.
        rescale: divide the clipped gradient by C, so that lr does not depend on C.
        ema: μ of the weight average that is released, warmed up as min(μ, (1+t)/(10+t)); 0 releases
            the last weights.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    batch_size: int = 4096
    steps: int = 875
    lr: float = 2.0
    multiplicity: int = 16
    pad: int = 4
    flip: bool = True
    clip_norm: float = 1.0
    rescale: bool = True
    ema: float = 0.9999

    def __post_init__(self) -> None:
        legal = {
            "batch_size >= 1": self.batch_size >= 1,
            "steps >= 1": self.steps >= 1,
            f"steps <= {MOST_STEPS:,}": self.steps <= MOST_STEPS,
            "lr > 0": 0 < self.lr < math.inf,
            "multiplicity >= 0": self.multiplicity >= 0,
            "0 <= pad < side of the image": 0 <= self.pad < min(self.network.image_shape[1:]),
            "clip_norm > 0": 0 < self.clip_norm < math.inf,
            "0 <= ema < 1": 0 <= self.ema < 1,
        }
        for rule, holds in legal.items():
            if not holds:
                raise UsageError(
                    expected=rule, found=f"{asdict(self)}", todo="Correct the configuration."
                )

    @property
    def hash(self) -> str:
        """SHA-256 over every value: what the ledger's entry is bound to, as there is no bundle."""
        return config_hash(asdict(self))

    def probability(self, expected_units: int) -> float:
        """Sampling probability q = batch_size / expected_units.

        Args:
            expected_units: public; a guess of the number of records. The promise does not depend on
                its being right, as q and the divisor are made of public numbers alone.

        Raises:
            UsageError: the batch is larger than that.
        """
        if not self.batch_size <= expected_units:
            raise UsageError(
                expected=f"batch_size <= {expected_units}, the number of units expected",
                found=f"batch_size={self.batch_size}",
                todo="Lower batch_size.",
            )
        return self.batch_size / expected_units
