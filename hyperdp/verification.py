"""The second computation of every claim of a certificate, from its own files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import opendp.prelude as dp

from hyperdp import accounting, keys
from hyperdp.adapter_files import ADAPTER_FILES, PIPELINE_FILE
from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import CERTIFICATE_FILE, RELEASE_FILE, Certificate, read_release
from hyperdp.classifier_certificate import (
    CLASSIFIER_FILES,
    ClassifierCertificate,
    check_classifier,
)
from hyperdp.errors import HyperdpError, UsageError, VerificationError
from hyperdp.mechanism import discretisation_delta
from hyperdp.own_statement import certificate_digest, check_reservation
from hyperdp.statement import SIGNATURE_FIELDS, Claim, failed, format_of
from hyperdp.training_certificate import TrainingCertificate
from hyperdp.training_verification import check_training
from hyperdp.vote_certificate import IMAGES_FILE, VoteCertificate, check_votes

Signed: TypeAlias = Certificate | TrainingCertificate | VoteCertificate | ClassifierCertificate
"""The certificate of a release, of a fit, of votes, or of a classifier."""

_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".npy", ".onnx", ".pkl",
    ".pickle", ".h5", ".hdf5", ".msgpack", ".joblib", ".zip", ".tar",
}  # fmt: skip
_PLD_TOLERANCE = 1e-6  # up to ε = 16; beyond, the intervals and their error grow


def verify(
    release_dir: str | Path, *, ledger: str | Path | None = None, public_key: str | None = None
) -> list[Claim]:
    """Recompute every claim of a certificate, each by another way than the one that made it.

    Args:
        release_dir: folder of a release, an evolution or a classifier; or a fit's PEFT directory.
        ledger: a ledger's SQLite file (on its operator's account), or its JSON export (anywhere).
        public_key: the signer's ed25519 key in hex, where the caller knows it.

    Returns:
        The claims, all of which hold.

    Raises:
        VerificationError: one of them does not.
    """
    try:
        c, claims = _claims(Path(release_dir))
    except HyperdpError as error:
        if isinstance(error, VerificationError):
            raise
        raise failed("a certificate whose numbers are legal", str(error)) from error
    except (MemoryError, OverflowError) as error:
        raise failed("a certificate whose numbers can be computed with", str(error)) from error
    promise = f"({c.epsilon:g}, {c.delta:g})-DP, {c.adjacency}, one {c.unit}"
    claims.insert(1, Claim(name="promise", claimed=promise, recomputed="signed"))
    if public_key is not None and public_key != c.public_key:
        raise failed(f"a signature by {public_key}", c.public_key)
    if ledger is not None:
        check_entry(c, Path(ledger))
        claims.append(
            Claim(name="ledger entry", claimed=f"{c.ledger_id}#{c.ledger_seq}", recomputed="found")
        )
    return claims


def _refuse_others(folder: Path, covered: Sequence[str]) -> None:
    """Refuse weights beside or below a certificate that says nothing of them: nobody vouches.

    Raises:
        VerificationError: there are such files, or a link to a folder, where some could be.
    """
    others = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (
            path.suffix.lower() in _WEIGHTS
            or path.name.startswith("adapter_")
            or (path.is_symlink() and path.is_dir())
        )
        and not (path.parent == folder and path.name in covered)
    )
    if others:
        raise failed(f"no weights but {', '.join(covered)}", ", ".join(others[:3]))


def _claims(folder: Path) -> tuple[Signed, list[Claim]]:
    """The claims of what the certificate says it is about; of a release where it does not say."""
    path = folder / CERTIFICATE_FILE
    statement = path.read_bytes() if path.is_file() else b""
    if format_of(statement) == TrainingCertificate.FORMAT:
        _refuse_others(folder, (*ADAPTER_FILES, PIPELINE_FILE))
        return check_training(folder, statement)
    if format_of(statement) == VoteCertificate.FORMAT:
        _refuse_others(folder, (IMAGES_FILE,))
        return check_votes(folder, statement)
    if format_of(statement) == ClassifierCertificate.FORMAT:
        _refuse_others(folder, CLASSIFIER_FILES)
        return check_classifier(folder, statement)
    c, _, _ = read_release(folder)
    _refuse_others(folder, (RELEASE_FILE,))
    claims = [
        Claim(name="signature (ed25519)", claimed=c.public_key, recomputed="holds"),
        Claim(name="release.safetensors (SHA-256)", claimed=c.release_sha256, recomputed="equal"),
    ]
    return c, claims + _recompute(c)


def _recompute(c: Certificate) -> list[Claim]:
    """Δ in rationals, τ as their quotient, ρ by OpenDP's own map, ε by PLD, δ term by term."""
    PrivacyBudget(epsilon=c.epsilon, delta=c.delta, adjacency=c.adjacency, unit=c.unit)  # type: ignore[arg-type]
    if c.lattice_bits != 24 or not 1 <= c.sigma_lattice < 2**62:
        raise failed("24 lattice bits and a noise std of 1 to 2^62 steps", "other numbers")
    spec = c.spec  # refuses numbers that would take for ever
    steps = Fraction(c.clip_norm) * 2**24
    clip, weight = math.floor(steps), math.floor(steps / 4)
    counted = c.adjacency == "add-remove" or c.num_classes > 1
    on_sum, on_count = {"add-remove": (1, 1), "replace-one": (4, 2)}[c.adjacency]
    squared = on_sum * clip**2 + on_count * counted * weight**2
    sensitivity = math.sqrt(squared)
    tau = c.sigma_lattice / sensitivity

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    rho = dp.m.make_gaussian(*space, scale=c.sigma_lattice).map(sensitivity)
    lattice_cost = discretisation_delta(spec, c.sigma_lattice)

    checks = [
        ("mechanism", c.mechanism, "discrete-gaussian", c.mechanism == "discrete-gaussian"),
        ("count weight w", c.count_weight, c.clip_norm / 4, c.count_weight == c.clip_norm / 4),
        ("sensitivity (rationals)", c.sensitivity, sensitivity / 2**24,
         math.isclose(c.sensitivity, sensitivity / 2**24, rel_tol=1e-12)),
        ("noise multiplier", c.noise_multiplier, tau,
         math.isclose(tau, c.noise_multiplier, rel_tol=1e-12)),
        ("event of the ledger", c.event, "the same noise multiplier",
         c.event == {"type": "gaussian", "noise_multiplier": c.noise_multiplier}),
        ("zCDP rho (OpenDP)", 0.5 / tau**2, rho, math.isclose(rho, 0.5 / tau**2, rel_tol=1e-9)),
        ("delta of the lattice", c.delta_discretisation, lattice_cost,
         lattice_cost <= c.delta_discretisation),
        ("delta in total", c.delta, c.delta_gaussian + c.delta_discretisation,
         c.delta_gaussian > 0 and c.delta_gaussian + c.delta_discretisation <= c.delta < 1),
        ("class names", len(c.classes), c.num_classes if c.classes else 0,
         len(set(c.classes)) == len(c.classes) and len(c.classes) in {0, c.num_classes}),
    ]  # fmt: skip
    claims = [Claim.checked(*check) for check in checks]
    # Last, as it takes time and memory that only legal numbers keep in bounds.
    scale = max(1.0, c.epsilon / 16)
    event = accounting.event_from_json(c.event)
    epsilon = accounting.pld_epsilon([event], c.delta_gaussian, interval=1e-4 * scale)
    holds = epsilon <= c.epsilon + _PLD_TOLERANCE * scale**2
    return [*claims, Claim.checked("epsilon (PLD)", c.epsilon, epsilon, holds)]


def check_entry(c: Signed, ledger: Path) -> None:
    """Hold a certificate to its entry in a ledger.

    Args:
        c: the certificate.
        ledger: the SQLite file or its export.

    Raises:
        VerificationError: there is no such entry, or it is of another release.
    """
    entries = ledger_entries(ledger, public_key=c.public_key)
    if not 1 <= c.ledger_seq <= len(entries):
        raise failed(f"entry {c.ledger_seq} in the ledger", f"{len(entries)} entries")
    check_reservation(c, entries[c.ledger_seq - 1])
    if isinstance(c, TrainingCertificate) and c.start_certificate:
        _check_start(c, entries)
    digest = certificate_digest(c)
    commits = [
        e["body"] for e in entries
        if e["kind"] == "commit" and e["body"].get("reservation") == c.ledger_seal
    ]  # fmt: skip
    # None at all is a crash just after the release was finished: it is paid for all the same.
    if any(body.get("certificate_sha256") != digest for body in commits):
        raise failed("the ledger to have committed this certificate", "another one")


def _check_start(c: TrainingCertificate, entries: list[dict[str, Any]]) -> None:
    """Hold what a fit says of the release that it started from to that release's own entry.

    One of the same dataset was committed before the fit began, or no fit would have started there.
    """
    seals = {
        e["body"].get("reservation") for e in entries
        if e["kind"] == "commit" and e["body"].get("certificate_sha256") == c.start_certificate
    }  # fmt: skip
    claimed = {"event": c.start_event, "delta_discretisation": c.start_delta_discretisation}
    known = [e["body"] for e in entries if e["seal"] in seals and e["dataset"] == c.dataset]
    if c.start_event and not known:
        raise failed("a start that the ledger has committed", "one that it does not know")
    for body in known:
        found = {name: body.get(name) for name in claimed}
        if found != claimed:
            raise failed(f"the start that the ledger knows, {found}", f"{claimed}")


def ledger_entries(path: Path, *, public_key: str) -> list[dict[str, Any]]:
    """Entries of a ledger, from the SQLite file or from its signed JSON export.

    Args:
        path: either.
        public_key: whose signature an export must bear, hex.

    Returns:
        Plain dictionaries with the fields of `hyperdp.chain.Entry`.

    Raises:
        VerificationError: the ledger was changed, or another key signed it.
        UsageError: there is no such file, or one that is neither.
    """
    from hyperdp.ledger import Ledger  # noqa: PLC0415  # SQLite is not needed to check an export
    from hyperdp.sealed_log import HEADER  # noqa: PLC0415

    try:
        data = path.read_bytes()
    except OSError as error:
        raise _no_ledger(path, error.strerror or "a refusal") from error
    if data.startswith(HEADER):
        return [dict(vars(entry)) for entry in Ledger(path).history()]
    if not data.startswith(b"{"):
        raise _no_ledger(path, "a file that is neither")
    try:
        export = json.loads(data)
        entries: list[dict[str, Any]] = export["entries"]
        signed = {k: v for k, v in export.items() if k not in SIGNATURE_FIELDS}
        if not all(_is_entry(entry) for entry in entries):
            raise TypeError
        holds = keys.canonical_json(export) == data and keys.signature_holds(
            keys.canonical_json(signed), public_key=public_key, signature=export["signature"]
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise failed("an export of a ledger", "something else") from None
    if not holds or export["public_key"] != public_key:
        raise failed("an export signed by the certificate's key, unchanged", "another")
    return entries


def _is_entry(entry: object) -> bool:
    """Whether a value of an export has the fields of `hyperdp.chain.Entry`, of their types."""
    types = {"seq": int, "time": str, "kind": str, "dataset": str, "body": dict, "seal": str}
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in types.items()
    )


def _no_ledger(path: Path, found: str) -> UsageError:
    return UsageError(
        expected=f"a ledger or its export at {path}",
        found=found,
        todo="Check --ledger; of the release nothing was found out.",
    )
