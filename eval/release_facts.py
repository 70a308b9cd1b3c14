"""What a report may say of a release: the certificate's facts, and what several cost together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperdp.accounting import epsilon, event_from_json
from hyperdp.mechanism import STEPS_PER_UNIT
from hyperdp.private.release import Release


@dataclass(frozen=True, kw_only=True)
class ReleaseFacts:
    """What a certificate states and the noise let out; all of it may be published.

    Attributes:
        name: what the report calls the release, for example "n = 128".
        epsilon, delta: the promise. adjacency, unit: what it is about.
        noise_multiplier: τ = σ / Δ.
        sensitivity: Δ. sigma: σ, noise std of the sum. clip_norm: C. All in the embedding's units.
        embedding_dim: k. num_classes: L, 1 for an unlabelled release.
        noisy_count: n̂ over all classes. count_is_noisy: False where n is public.
        signal_to_noise: the best that the mean can have, see `Release.signal_to_noise`.
        bundle, created, release_sha256: of the certificate.
        event, delta_discretisation: how the release counts in a composition.
    """

    name: str
    epsilon: float
    delta: float
    adjacency: str
    unit: str
    noise_multiplier: float
    sensitivity: float
    sigma: float
    clip_norm: float
    embedding_dim: int
    num_classes: int
    noisy_count: float
    count_is_noisy: bool
    signal_to_noise: float
    bundle: str
    created: str
    release_sha256: str
    event: dict[str, Any]
    delta_discretisation: float

    @classmethod
    def of(cls, release: Release, name: str) -> ReleaseFacts:
        """The facts of a release.

        Args:
            release: with its certificate.
            name: what the report calls it.
        """
        c = release.certificate
        return cls(
            name=name,
            epsilon=c.epsilon,
            delta=c.delta,
            adjacency=c.adjacency,
            unit=c.unit,
            noise_multiplier=c.noise_multiplier,
            sensitivity=c.sensitivity,
            sigma=c.sigma_lattice / STEPS_PER_UNIT,
            clip_norm=c.clip_norm,
            embedding_dim=c.embedding_dim,
            num_classes=c.num_classes,
            noisy_count=float(release.count().sum()),
            count_is_noisy=c.spec.counts_are_private,
            signal_to_noise=release.signal_to_noise(),
            bundle=c.bundle_name,
            created=c.created,
            release_sha256=c.release_sha256,
            event=c.event,
            delta_discretisation=c.delta_discretisation,
        )


def composed_epsilon(releases: Sequence[ReleaseFacts]) -> float | None:
    """What the releases cost a unit that is in all of them, at the largest of their δ.

    Args:
        releases: any number.

    Returns:
        ε; None for fewer than two releases, or where adjacency or unit differ and nothing adds up.
    """
    if len(releases) < 2 or len({(r.adjacency, r.unit) for r in releases}) > 1:
        return None
    delta = max(r.delta for r in releases) - sum(r.delta_discretisation for r in releases)
    return epsilon([event_from_json(r.event) for r in releases], delta)
