"""The second computation of every claim of a fit, from its PEFT directory alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from hyperdp import accounting
from hyperdp.adapter_files import ADAPTER_FILES, PEFT_PREFIX, PIPELINE_FILE
from hyperdp.budget import PrivacyBudget
from hyperdp.statement import Claim, failed
from hyperdp.subsampled import MOST_STEPS, subsampled_epsilon
from hyperdp.training_certificate import SteppedStatement, TrainingCertificate

MOST_DELTA = 0.5  # of a certificate: beyond it, nothing is promised
_PLD_TOLERANCE = 1e-6  # what the ledger allows as well
_FOURIER_TOLERANCE = 1e-3  # in ε below 1, relative above: the grid's rounding


def check_training(folder: Path, statement: bytes) -> tuple[TrainingCertificate, list[Claim]]:
    """Recompute every claim of a fit: ε by Fourier transforms and by PLD, hashes, settings.

    Args:
        folder: the PEFT directory.
        statement: bytes of its certificate.

    Returns:
        The certificate and its claims, all of which hold.

    Raises:
        VerificationError: one of them does not.
        UsageError: a number that is not legal.
    """
    c = TrainingCertificate.from_bytes(statement)
    claims = [Claim(name="signature (ed25519)", claimed=c.public_key, recomputed="holds")]
    contents = {}
    for name in ADAPTER_FILES:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise failed(f"a folder with {name}", f"{folder} ({error.strerror})") from error
        found = hashlib.sha256(contents[name]).hexdigest()
        claimed = c.adapter_sha256.get(name)
        claims.append(Claim.checked(f"{name} (SHA-256)", claimed, found, claimed == found))
    claims += _adapter(c, *(contents[name] for name in ADAPTER_FILES))
    claims += _for_pipeline(c, folder, contents[ADAPTER_FILES[1]])
    claims.append(_settings(c))
    return c, claims + check_steps(c) + _total(c)


def _for_pipeline(c: TrainingCertificate, folder: Path, weights: bytes) -> list[Claim]:
    """The file that a stock pipeline loads: the same tensors, under its own names for the sites."""
    path, claimed = folder / PIPELINE_FILE, c.adapter_sha256.get(PIPELINE_FILE)
    if claimed is None and not path.exists():
        return []
    try:
        data = path.read_bytes()
        found, ours = load_tensors(data), load_tensors(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise failed(f"{PIPELINE_FILE}, as the certificate says", type(error).__name__) from error
    digest = hashlib.sha256(data).hexdigest()
    same = {key.partition(".")[2]: value for key, value in found.items()}
    alike = same.keys() == {key.removeprefix(PEFT_PREFIX) for key in ours} and all(
        torch.equal(same[key.removeprefix(PEFT_PREFIX)], value) for key, value in ours.items()
    )
    return [
        Claim.checked(f"{PIPELINE_FILE} (SHA-256)", claimed, digest, claimed == digest),
        Claim.checked(
            f"{PIPELINE_FILE}", "the same weights", "equal" if alike else "others", alike
        ),
    ]


def _settings(c: TrainingCertificate) -> Claim:
    """What the certificate says twice: among the fit's settings, and where ε is computed from."""
    names = ("method", "size", "expected_batch", "steps", "clip_norm")
    stated = [getattr(c, name) for name in names]
    found = [c.config.get(name) for name in names]
    return Claim.checked(f"settings ({', '.join(names)})", stated, found, stated == found)


def _adapter(c: TrainingCertificate, config: bytes, weights: bytes) -> list[Claim]:
    """Sites, rank and finiteness, as the files themselves say them."""
    try:
        settings, tensors = json.loads(config), load_tensors(weights)
        scale = settings["lora_alpha"] / settings["r"]
        rank = settings["r"]
    except (ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise failed("a PEFT adapter", type(error).__name__) from None
    ends = {f"{end}.weight" for end in ("lora_A", "lora_B")}
    split = [key.removeprefix("base_model.model.").rsplit(".", 2) for key in tensors]
    sites = sorted({parts[0] for parts in split})
    whole = len(tensors) == 2 * len(sites) and {".".join(p[1:]) for p in split} == ends
    ranks = {_rank_of(key, value) for key, value in tensors.items()}
    finite = all(bool(value.isfinite().all()) for value in tensors.values())
    return [
        Claim.checked("sites", len(c.sites), len(sites), whole and sites == c.sites),
        Claim.checked("rank", c.rank, sorted(ranks), ranks == {c.rank} and rank == c.rank),
        Claim.checked("alpha / r", 1, scale, scale == 1),
        Claim.checked("finite weights", True, finite, finite),
    ]


def _rank_of(key: str, value: Tensor) -> int:
    return value.shape[0] if key.endswith("lora_A.weight") else value.shape[1]


def check_steps(c: SteppedStatement) -> list[Claim]:
    """The event from the sampling, and ε from the event, by two ways.

    Args:
        c: the statement; its signature has been checked.

    Raises:
        VerificationError: a claim does not hold, or a number is out of bounds.
        UsageError: a number that is not legal.
    """
    PrivacyBudget(epsilon=c.epsilon, delta=c.delta, adjacency=c.adjacency, unit=c.unit)  # type: ignore[arg-type]
    q, sigma = c.sampling_probability, c.noise_multiplier
    # Bounds that keep what follows within time and memory, whoever wrote the certificate.
    if not (0.05 <= sigma <= 1e4 and 1 <= c.steps <= MOST_STEPS and 1e-30 <= c.delta <= MOST_DELTA):
        bounds = "0.05 <= noise multiplier <= 10^4, 1 <= steps <= 10^6, 1e-30 <= delta <= 1/2"
        raise failed(bounds, "other numbers")
    if not (1 <= c.expected_batch <= c.size and 0 < c.clip_norm < math.inf):
        raise failed("1 <= expected batch <= size, 0 < clip norm", "other numbers")
    event = {
        "type": "repeat",
        "count": c.steps,
        "event": {
            "type": "poisson",
            "probability": q,
            "event": {"type": "gaussian", "noise_multiplier": sigma},
        },
    }
    kind = "poisson-sampled-gaussian"
    estimate = subsampled_epsilon(sigma, q, c.steps, c.delta)
    slack = _FOURIER_TOLERANCE * max(1.0, c.epsilon)
    claims = [
        Claim.checked("mechanism", c.mechanism, kind, c.mechanism == kind),
        Claim.checked("adjacency", c.adjacency, "add-remove", c.adjacency == "add-remove"),
        Claim.checked(
            "sampling probability", q, c.expected_batch / c.size, q == c.expected_batch / c.size
        ),
        Claim.checked("event of the ledger", c.event, "sampling, σ and steps", c.event == event),
        Claim.checked(
            "delta of a lattice", c.delta_discretisation, 0.0, c.delta_discretisation == 0.0
        ),
        Claim.checked("epsilon (Fourier)", c.epsilon, estimate, estimate <= c.epsilon + slack),
    ]
    own = accounting.event_from_json(c.event)
    exact = accounting.pld_epsilon([own], c.delta)
    claims.append(
        Claim.checked("epsilon (PLD)", c.epsilon, exact, exact <= c.epsilon + _PLD_TOLERANCE)
    )
    return claims


def _total(c: TrainingCertificate) -> list[Claim]:
    """ε of the steps and of the release that they started from, together."""
    own = accounting.event_from_json(c.event)
    _check_start(c)  # first: what follows takes memory by what the start says of itself
    before = [accounting.event_from_json(c.start_event)] if c.start_event else []
    if not 0 <= c.start_delta_discretisation < c.total_delta <= MOST_DELTA:
        raise failed("0 <= the lattice's delta < the total delta <= 1/2", "other numbers")
    total = accounting.epsilon([*before, own], c.total_delta - c.start_delta_discretisation)
    holds = total <= c.total_epsilon + _PLD_TOLERANCE
    return [
        Claim.checked(
            "delta with the start", c.total_delta, f">= {c.delta:g}", c.total_delta >= c.delta
        ),
        Claim.checked("epsilon with the start", c.total_epsilon, total, holds),
        *_with_the_start(c),
    ]


def _check_start(c: TrainingCertificate) -> None:
    """Refuses a start that is no release, or one of so little noise that ε has no bound in time."""
    if not c.start_event:
        return
    tau = c.start_event.get("noise_multiplier")
    if c.start_event.get("type") != "gaussian" or not isinstance(tau, float) or not tau >= 0.02:
        raise failed("a start by one Gaussian release of noise multiplier >= 0.02", "another start")


def _with_the_start(c: TrainingCertificate) -> list[Claim]:
    """ε of release and steps together by Fourier transforms, where the start was a release."""
    if not c.start_event:
        return []
    estimate = subsampled_epsilon(
        c.noise_multiplier,
        c.sampling_probability,
        c.steps,
        c.total_delta - c.start_delta_discretisation,
        release_multiplier=float(c.start_event["noise_multiplier"]),
    )
    slack = _FOURIER_TOLERANCE * max(1.0, c.total_epsilon)
    holds = estimate <= c.total_epsilon + slack
    name = "epsilon with the start (Fourier)"
    return [Claim.checked(name, c.total_epsilon, estimate, holds)]
