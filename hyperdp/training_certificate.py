"""The signed statement beside what was trained by many noisy steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hyperdp.statement import Statement


class SteppedStatement(Statement):
    """A statement about Poisson-sampled Gaussian steps: what recomputing their ε takes of it.

    The attributes are those of `TrainingCertificate`.
    """

    mechanism: str
    adjacency: str
    unit: str
    epsilon: float
    delta: float
    delta_discretisation: float
    noise_multiplier: float
    sampling_probability: float
    steps: int
    clip_norm: float
    size: int
    expected_batch: int
    event: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingCertificate(SteppedStatement):
    """Everything needed to recompute ε of a fit. All of it is public.

    Attributes:
        format: version of this file's format.
        created: ISO 8601, UTC; when the budget was reserved, before anything was read.
        code_version: of hyperdp.
        mechanism: "poisson-sampled-gaussian".
        method: name of the step rule, such as "dpsgd".
        adjacency: "add-remove".
        unit: whom the promise protects.
        epsilon: ε of the fit alone.
        delta: δ of the fit alone.
        delta_discretisation: 0; the noise is float64 (docs/privacy.md says what that means).
        noise_multiplier: σ, noise std over the clip norm.
        sampling_probability: q, with which a unit is in a batch.
        steps: T.
        clip_norm: C, in the norm of the step rule.
        size: N, the public number that q is the expected batch over; not the number of units.
        expected_batch: qN, the divisor of every step.
        config: all settings of the fit, as the operator gave them.
        sites: LoRA sites, by module name, sorted.
        rank: r of the adapter.
        bundle_name: name of the bundle.
        bundle_hash: SHA-256 of the bundle.
        start_certificate: SHA-256 of the certificate of the release that the fit started from; ""
            where it started from public things alone.
        start_event: that release's event where it is of the same dataset; otherwise {}.
        start_delta_discretisation: what that release's lattice cost.
        total_epsilon: ε of that release and the fit together.
        total_delta: the δ at which `total_epsilon` holds.
        event: the fit as a `DpEvent`, as the ledger accounts for it.
        ledger_id: random name of the ledger.
        ledger_seq: number of the reservation there.
        ledger_seal: seal of that entry.
        dataset: keyed fingerprint of the dataset's name.
        adapter_sha256: file name → SHA-256 of the two files of the PEFT directory, and of the one
            that a stock pipeline loads, where there is one.
        public_key: ed25519, hex; whoever holds the private half vouches for the lines above.
        signature: ed25519, hex, over all of the above.
    """

    FORMAT: ClassVar[str] = "hyperdp-training-certificate/1"

    format: str = FORMAT
    created: str
    code_version: str
    mechanism: str = "poisson-sampled-gaussian"
    method: str
    adjacency: str
    unit: str
    epsilon: float
    delta: float
    delta_discretisation: float = 0.0
    noise_multiplier: float
    sampling_probability: float
    steps: int
    clip_norm: float
    size: int
    expected_batch: int
    config: dict[str, Any]
    sites: list[str]
    rank: int
    bundle_name: str
    bundle_hash: str
    start_certificate: str
    start_event: dict[str, Any]
    start_delta_discretisation: float
    total_epsilon: float
    total_delta: float
    event: dict[str, Any]
    ledger_id: str
    ledger_seq: int
    ledger_seal: str
    dataset: str
    adapter_sha256: dict[str, Any]
    public_key: str = ""
    signature: str = ""
