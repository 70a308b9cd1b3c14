"""The signed statement beside every release: everything needed to recompute its ε."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from hyperdp.budget import PrivacyBudget
from hyperdp.chain import Entry
from hyperdp.errors import VerificationError
from hyperdp.mechanism import FRACTIONAL_BITS, Calibration, MechanismSpec
from hyperdp.statement import Statement, failed

CERTIFICATE_FILE = "certificate.json"
RELEASE_FILE = "release.safetensors"


@dataclass(frozen=True, kw_only=True)
class Certificate(Statement):
    """Everything needed to recompute ε, in the order a reader wants it. All of it is public.

    Attributes:
        format: version of this file's format.
        created: ISO 8601, UTC; when the budget was reserved, before anything was read.
        code_version: of hyperdp.
        mechanism: "discrete-gaussian".
        adjacency: which datasets are neighbours.
        unit: whom the promise protects.
        epsilon: ε.
        delta: δ as promised; at least the sum of the next two.
        delta_gaussian: δ of the continuous Gaussian with this noise multiplier, at ε.
        delta_discretisation: what the integer lattice adds.
        noise_multiplier: τ = σ / Δ.
        sensitivity: Δ, in the embedding's units.
        sigma_lattice: noise std, in lattice steps.
        lattice_bits: a lattice step is 2^-lattice_bits.
        clip_norm: C, in the embedding's units.
        count_weight: w = C/4, what one unit counts for, in the embedding's units.
        embedding_dim: k.
        num_classes: L; 1 is unlabelled.
        classes: the L class names given beforehand, or [] where unlabelled.
        inverted: whether dark was made light in every record before it was embedded.
        bundle_name: name of the bundle.
        bundle_hash: SHA-256 of the bundle.
        encoder_hash: SHA-256 over the encoder's weights as used.
        hypernetwork_hash: the same over ρ; "" where the bundle has none.
        event: the mechanism as a `DpEvent`, as the ledger accounts for it.
        ledger_id: random name of the ledger.
        ledger_seq: number of the reservation there.
        ledger_seal: seal of that entry.
        dataset: keyed fingerprint of the dataset's name.
        release_sha256: of release.safetensors, byte for byte.
        public_key: ed25519, hex; whoever holds the private half vouches for the lines above.
        signature: ed25519, hex, over all of the above.
    """

    FORMAT: ClassVar[str] = "hyperdp-certificate/1"

    format: str = FORMAT
    created: str
    code_version: str
    mechanism: str = "discrete-gaussian"
    adjacency: str
    unit: str
    epsilon: float
    delta: float
    delta_gaussian: float
    delta_discretisation: float
    noise_multiplier: float
    sensitivity: float
    sigma_lattice: float
    lattice_bits: int
    clip_norm: float
    count_weight: float
    embedding_dim: int
    num_classes: int
    classes: list[str]
    inverted: bool
    bundle_name: str
    bundle_hash: str
    encoder_hash: str
    hypernetwork_hash: str
    event: dict[str, Any]
    ledger_id: str
    ledger_seq: int
    ledger_seal: str
    dataset: str
    release_sha256: str
    public_key: str = ""
    signature: str = ""

    @property
    def spec(self) -> MechanismSpec:
        """The query that was measured."""
        return MechanismSpec(
            embedding_dim=self.embedding_dim,
            clip_norm=self.clip_norm,
            num_classes=self.num_classes,
            adjacency=self.adjacency,  # type: ignore[arg-type]  # checked by MechanismSpec
        )

    @classmethod
    def of(
        cls,
        *,
        budget: PrivacyBudget,
        spec: MechanismSpec,
        calibration: Calibration,
        entry: Entry,
        **facts: Any,
    ) -> Certificate:
        """State and sign what a release was made with.

        Args:
            budget: the promise.
            spec: the query.
            calibration: its noise.
            entry: the reservation in the ledger.
            facts: the fields that stand in none of these, by name.

        Returns:
            The certificate, signed with the operator's key.
        """
        draft = cls(
            created=entry.time,
            code_version=version("hyperdp"),
            adjacency=budget.adjacency,
            unit=budget.unit,
            epsilon=float(budget.epsilon),
            delta=float(budget.delta),
            delta_gaussian=calibration.delta_gaussian,
            delta_discretisation=calibration.delta_discretisation,
            noise_multiplier=calibration.noise_multiplier,
            sensitivity=spec.sensitivity,
            sigma_lattice=calibration.sigma,
            lattice_bits=FRACTIONAL_BITS,
            clip_norm=spec.clip_norm,
            count_weight=spec.clip_norm / 4,
            embedding_dim=spec.embedding_dim,
            num_classes=spec.num_classes,
            event=entry.body["event"],
            ledger_id=entry.body["ledger_id"],
            ledger_seq=entry.seq,
            ledger_seal=entry.seal,
            dataset=entry.dataset,
            **facts,
        )
        return draft.signed()


def read_release(
    release_dir: str | Path,
) -> tuple[Certificate, NDArray[np.int64], NDArray[np.int64]]:
    """Read a release and check signature, hash and shapes.

    Args:
        release_dir: the folder with certificate.json and release.safetensors.

    Returns:
        The certificate, noisy sums int64 [L, k] and noisy counts int64 [L], in lattice steps.

    Raises:
        VerificationError: any byte of either file was changed, or a file is missing.
    """
    folder = Path(release_dir)
    try:
        statement = (folder / CERTIFICATE_FILE).read_bytes()
        tensors = (folder / RELEASE_FILE).read_bytes()
    except OSError as error:
        missing = f"{error.filename or folder}: {error.strerror}"
        raise VerificationError(
            expected=f"the folder of a release, with {CERTIFICATE_FILE} and {RELEASE_FILE}",
            found=missing,
            todo="Name the folder that `hyperdp release` wrote; an adapter made of it is another.",
        ) from error
    certificate = Certificate.from_bytes(statement)
    found = hashlib.sha256(tensors).hexdigest()
    if found != certificate.release_sha256:
        raise failed(f"{RELEASE_FILE} with SHA-256 {certificate.release_sha256}", found)
    try:
        arrays = load_tensors(tensors)
        sums, counts = arrays.pop("sums"), arrays.pop("counts")
    except Exception as error:  # noqa: BLE001  # safetensors' own errors have no common base
        raise failed("tensors sums and counts", type(error).__name__) from None
    shape = (certificate.num_classes, certificate.embedding_dim)
    if (
        arrays
        or {sums.dtype, counts.dtype} != {np.dtype(np.int64)}
        or (sums.shape, counts.shape) != (shape, shape[:1])
    ):
        raise failed(f"int64 sums {shape} and counts {shape[:1]} alone", "other tensors")
    return certificate, sums, counts
