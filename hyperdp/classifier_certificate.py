"""The signed statement beside a private classifier, and the second computation of its claims."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from hyperdp.statement import Claim, failed
from hyperdp.training_certificate import SteppedStatement
from hyperdp.training_verification import check_steps

CLASSIFIER_FILES = ("classifier.json", "classifier.safetensors")


@dataclass(frozen=True, kw_only=True)
class ClassifierCertificate(SteppedStatement):
    """Everything needed to recompute ε of a classifier's training. All of it is public.

    Attributes:
        format: version of this file's format.
        created: ISO 8601, UTC; when the budget was reserved, before anything was read.
        code_version: of hyperdp.
        mechanism: "poisson-sampled-gaussian".
        adjacency: "add-remove".
        unit: whom the promise protects.
        epsilon: ε.
        delta: δ.
        delta_discretisation: 0; the noise is float64 (docs/privacy.md says what that means).
        noise_multiplier: σ, noise std over the clip norm.
        sampling_probability: q, with which a unit is in a batch.
        steps: T.
        clip_norm: C, on the norm of one example's gradient, averaged over its views.
        size: N, the public number that q is the expected batch over; not the number of units.
        expected_batch: qN, the divisor of every step.
        config: the whole recipe, network and all.
        bundle_hash: SHA-256 of the recipe, which the ledger's entry is bound to; no bundle is used.
        classes: names of the outputs, given beforehand.
        start_sha256: SHA-256 of the public weights that training began with; "" for fresh ones.
        event: the training as a `DpEvent`, as the ledger accounts for it.
        ledger_id: random name of the ledger.
        ledger_seq: number of the reservation there.
        ledger_seal: seal of that entry.
        dataset: keyed fingerprint of the dataset's name.
        files_sha256: file name → SHA-256 of the weights and of their description.
        public_key: ed25519, hex; whoever holds the private half vouches for the lines above.
        signature: ed25519, hex, over all of the above.
    """

    FORMAT: ClassVar[str] = "hyperdp-classifier-certificate/1"

    format: str = FORMAT
    created: str
    code_version: str
    mechanism: str = "poisson-sampled-gaussian"
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
    bundle_hash: str
    classes: list[str]
    start_sha256: str
    event: dict[str, Any]
    ledger_id: str
    ledger_seq: int
    ledger_seal: str
    dataset: str
    files_sha256: dict[str, Any]
    public_key: str = ""
    signature: str = ""


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 over every value of a recipe, hex."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def check_classifier(folder: Path, statement: bytes) -> tuple[ClassifierCertificate, list[Claim]]:
    """Recompute every claim of a classifier: ε by Fourier transforms and by PLD, hashes, recipe.

    Args:
        folder: with the certificate, `classifier.safetensors` and `classifier.json`.
        statement: bytes of the certificate.

    Returns:
        The certificate and its claims, all of which hold.

    Raises:
        VerificationError: one of them does not.
        UsageError: a number that is not legal.
    """
    c = ClassifierCertificate.from_bytes(statement)
    claims = [Claim(name="signature (ed25519)", claimed=c.public_key, recomputed="holds")]
    contents = {}
    for name in CLASSIFIER_FILES:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise failed(f"a folder with {name}", f"{folder} ({error.strerror})") from error
        found = hashlib.sha256(contents[name]).hexdigest()
        claimed = c.files_sha256.get(name)
        claims.append(Claim.checked(f"{name} (SHA-256)", claimed, found, claimed == found))
    claims += _description(c, *(contents[name] for name in CLASSIFIER_FILES))
    return c, claims + check_steps(c)


def _description(c: ClassifierCertificate, about: bytes, weights: bytes) -> list[Claim]:
    """Recipe and classes, as the files themselves say them."""
    try:
        told, tensors = json.loads(about), load_tensors(weights)
        config, classes = told["config"], told["classes"]
        in_recipe = (c.config["steps"], c.config["batch_size"], c.config["clip_norm"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise failed("a private classifier", type(error).__name__) from None
    recipe = config_hash(c.config)
    numbers = (c.steps, c.expected_batch, c.clip_norm)
    finite = all(bool(value.isfinite().all()) for value in tensors.values())
    return [
        Claim.checked("recipe (SHA-256)", c.bundle_hash, recipe, c.bundle_hash == recipe),
        Claim.checked("recipe of the description", "equal", "equal", config == c.config),
        Claim.checked("steps, batch and clip of the recipe", numbers, in_recipe,
                      numbers == in_recipe),
        Claim.checked("classes", c.classes, classes, c.classes == classes),
        Claim.checked("finite weights", True, finite, finite),
    ]  # fmt: skip
