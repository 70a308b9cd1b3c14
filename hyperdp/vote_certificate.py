"""The signed statement beside images that were steered by noisy votes, and its verification."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import opendp.prelude as dp
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget
from hyperdp.mechanism import discretisation_delta
from hyperdp.statement import Claim, Statement, failed
from hyperdp.subsampled import subsampled_epsilon
from hyperdp.votes import VoteSpec

IMAGES_FILE = "images.safetensors"
_PLD_TOLERANCE = 1e-6  # up to ε = 16; beyond, the intervals and their error grow
_FOURIER_TOLERANCE = 1e-3  # in ε below 1, relative above: the grid's rounding


@dataclass(frozen=True, kw_only=True)
class VoteCertificate(Statement):
    """Everything needed to recompute ε of a run of noisy votes. All of it is public.

    Attributes:
        format: version of this file's format.
        created: ISO 8601, UTC; when the budget was reserved, before anything was read.
        code_version: of hyperdp.
        mechanism: "discrete-gaussian-votes".
        method: "evolution".
        adjacency: which datasets are neighbours.
        unit: whom the promise protects.
        epsilon: ε of all iterations together.
        delta: δ as promised; at least the sum of the next two.
        delta_gaussian: δ of the continuous Gaussians at ε.
        delta_discretisation: what the integer lattice adds, over all iterations.
        noise_multiplier: τ = σ / Δ of one histogram.
        sensitivity: Δ of one histogram, in votes.
        sigma_lattice: noise std of one histogram, in lattice steps.
        lattice_bits: a lattice step is 2^-lattice_bits of a vote.
        candidates: N, numbers in one histogram.
        iterations: T.
        config: all settings, as the operator gave them.
        inverted: whether dark was made light in every record before it was embedded.
        bundle_name: name of the bundle.
        bundle_hash: SHA-256 of the bundle.
        encoder_hash: SHA-256 over the encoder's weights as used.
        event: the mechanism as a `DpEvent`, as the ledger accounts for it.
        ledger_id: random name of the ledger.
        ledger_seq: number of the reservation there.
        ledger_seal: seal of that entry.
        dataset: keyed fingerprint of the dataset's name.
        images_sha256: of images.safetensors, byte for byte.
        public_key: ed25519, hex; whoever holds the private half vouches for the lines above.
        signature: ed25519, hex, over all of the above.
    """

    FORMAT: ClassVar[str] = "hyperdp-vote-certificate/1"

    format: str = FORMAT
    created: str
    code_version: str
    mechanism: str = "discrete-gaussian-votes"
    method: str = "evolution"
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
    candidates: int
    iterations: int
    config: dict[str, Any]
    inverted: bool
    bundle_name: str
    bundle_hash: str
    encoder_hash: str
    event: dict[str, Any]
    ledger_id: str
    ledger_seq: int
    ledger_seal: str
    dataset: str
    images_sha256: str
    public_key: str = ""
    signature: str = ""

    @property
    def spec(self) -> VoteSpec:
        """The query that was asked."""
        return VoteSpec(
            candidates=self.candidates,
            iterations=self.iterations,
            adjacency=self.adjacency,  # type: ignore[arg-type]  # checked by VoteSpec
        )


def check_votes(folder: Path, statement: bytes) -> tuple[VoteCertificate, list[Claim]]:
    """Recompute every claim of a run of votes: Δ, τ, ρ by OpenDP, ε by PLD, δ, hash and shapes.

    Args:
        folder: with certificate.json and images.safetensors.
        statement: bytes of the certificate.

    Returns:
        The certificate and its claims, all of which hold.

    Raises:
        VerificationError: one of them does not.
        UsageError: a number that is not legal.
    """
    c = VoteCertificate.from_bytes(statement)
    try:
        data = (folder / IMAGES_FILE).read_bytes()
    except OSError as error:
        raise failed(f"a folder with {IMAGES_FILE}", f"{folder} ({error.strerror})") from error
    found = hashlib.sha256(data).hexdigest()
    claims = [
        Claim(name="signature (ed25519)", claimed=c.public_key, recomputed="holds"),
        Claim.checked(f"{IMAGES_FILE} (SHA-256)", c.images_sha256, found, c.images_sha256 == found),
    ]
    try:
        tensors = load_tensors(data)
        shape = tuple(tensors["votes"].shape)
        whole = set(tensors) == {"images", "votes"} and tensors["images"].dim() == 4
    except (SafetensorError, KeyError) as error:
        raise failed("tensors images and votes", type(error).__name__) from None
    wanted = (c.iterations, c.candidates)
    claims.append(Claim.checked("votes", wanted, shape, whole and shape == wanted))
    return c, claims + _numbers(c)


def _numbers(c: VoteCertificate) -> list[Claim]:
    """Δ by its definition, the event from τ and T, and ε from the event."""
    PrivacyBudget(epsilon=c.epsilon, delta=c.delta, adjacency=c.adjacency, unit=c.unit)  # type: ignore[arg-type]
    if c.lattice_bits != 24 or not 1 <= c.sigma_lattice < 2**62:
        raise failed("24 lattice bits and a noise std of 1 to 2^62 steps", "other numbers")
    spec = c.spec  # refuses numbers that would take for ever
    sensitivity = math.sqrt({"add-remove": 1, "replace-one": 2}[c.adjacency])
    tau = c.sigma_lattice / (sensitivity * 2**24)
    event = {
        "type": "repeat",
        "count": c.iterations,
        "event": {"type": "gaussian", "noise_multiplier": c.noise_multiplier},
    }
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    one = dp.m.make_gaussian(*space, scale=c.sigma_lattice).map(sensitivity * 2**24)
    rho, wanted = c.iterations * one, c.iterations * 0.5 / c.noise_multiplier**2
    lattice_cost = c.iterations * discretisation_delta(spec, c.sigma_lattice)
    kind = "discrete-gaussian-votes"
    claims = [
        Claim.checked("mechanism", c.mechanism, kind, c.mechanism == kind),
        Claim.checked(
            "sensitivity", c.sensitivity, sensitivity,
            math.isclose(c.sensitivity, sensitivity, rel_tol=1e-12),
        ),
        Claim.checked(
            "noise multiplier", c.noise_multiplier, tau,
            math.isclose(tau, c.noise_multiplier, rel_tol=1e-12),
        ),
        Claim.checked("event of the ledger", c.event, "iterations and τ", c.event == event),
        Claim.checked("zCDP rho (OpenDP)", wanted, rho, math.isclose(rho, wanted, rel_tol=1e-9)),
        Claim.checked(
            "delta of the lattice", c.delta_discretisation, lattice_cost,
            lattice_cost <= c.delta_discretisation,
        ),
        Claim.checked(
            "delta in total", c.delta, c.delta_gaussian + c.delta_discretisation,
            c.delta_gaussian > 0 and c.delta_gaussian + c.delta_discretisation <= c.delta < 1,
        ),
    ]  # fmt: skip
    # Last, as it takes time and memory that only legal numbers keep in bounds.
    scale = max(1.0, c.epsilon / 16)
    own = accounting.event_from_json(c.event)
    epsilon = accounting.pld_epsilon([own], c.delta_gaussian, interval=1e-4 * scale)
    slack = _PLD_TOLERANCE * scale**2
    # All T convolved, where the other adds 1/τ² up.
    fourier = subsampled_epsilon(c.noise_multiplier, 1.0, c.iterations, c.delta_gaussian)
    grid = _FOURIER_TOLERANCE * max(1.0, c.epsilon)
    return [
        *claims,
        Claim.checked("epsilon (PLD)", c.epsilon, epsilon, epsilon <= c.epsilon + slack),
        Claim.checked("epsilon (Fourier)", c.epsilon, fourier, fourier <= c.epsilon + grid),
    ]
