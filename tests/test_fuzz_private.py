"""Damaged and hostile files into every loader of the private core: no traceback, no hang.

A short run by default; `pytest -m slow` puts in 50,000 inputs.
"""

import dataclasses
import hashlib
import json
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import Certificate, read_release
from hyperdp.ledger import Ledger
from hyperdp.private.release import release
from hyperdp.verification import ledger_entries, verify
from tests.damage import damage, outcome
from tests.private_world import TinyBundle, records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDP_CONFIG_DIR", str(folder / "config"))
        ledger = Ledger(folder / "ledger.db")
        release(
            records(300),
            bundle=TinyBundle(),
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
            ledger=ledger,
            out=folder / "out",
            dataset="digits",
        )
        (folder / "export.json").write_bytes(ledger.export())
        yield folder


VALUES = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 0.0, -0.0, 1e-300, 1e300, -1.5, 0.5, 24, "", "x",
    "add-remove", "replace-one", "user", [], {}, ["a", "b"], [[]], {"type": "gaussian"},
    {"type": "gaussian", "noise_multiplier": 1e-9}, {"type": "repeat", "count": 10**12, "event":
    {"type": "gaussian", "noise_multiplier": 1.0}}, "\ud800", "é" * 50,
]  # fmt: skip


def fuzz_certificate(made, rng, count):
    data = (made / "out/certificate.json").read_bytes()
    for _ in range(count):
        changed = damage(rng, data)
        assert outcome(Certificate.from_bytes, changed) == (changed != data)


def fuzz_signed_certificate(made, rng, count):
    """Any JSON values, signed by an operator who lies: verified, or refused for what is false."""
    path = made / "out/certificate.json"
    data = path.read_bytes()
    names = [f.name for f in dataclasses.fields(Certificate)]
    try:
        for _ in range(count):
            fields = json.loads(data)
            for name in rng.sample(names[:-2], rng.randint(1, 3)):
                old = fields[name]
                alike = [v for v in VALUES if type(v) is type(old)] or VALUES
                fields[name] = rng.choice(alike if rng.random() < 0.8 else VALUES)
            signed = {k: v for k, v in fields.items() if k not in {"public_key", "signature"}}
            try:
                message = keys.canonical_json(signed)
            except ValueError:
                continue
            fields["public_key"], fields["signature"] = keys.sign(message)
            path.write_bytes(keys.canonical_json(fields))
            outcome(verify, made / "out")
    finally:
        path.write_bytes(data)


def fuzz_release(made, rng, count):
    """Tensors that are damaged but match the hash of their certificate."""
    statement, tensors = made / "out/certificate.json", made / "out/release.safetensors"
    before = statement.read_bytes(), tensors.read_bytes()
    sound = Certificate.from_bytes(before[0])
    other = save({"sums": np.zeros((1, 8), np.int64), "counts": np.zeros(1, np.float64)})
    try:
        for _ in range(count):
            changed = damage(rng, rng.choice([before[1], other]))
            tensors.write_bytes(changed)
            digest = hashlib.sha256(changed).hexdigest()
            certificate = dataclasses.replace(sound, release_sha256=digest)
            key, mark = keys.sign(certificate._signed_part())
            certificate = dataclasses.replace(certificate, public_key=key, signature=mark)
            statement.write_bytes(certificate.to_bytes())
            outcome(read_release, made / "out")
    finally:
        statement.write_bytes(before[0])
        tensors.write_bytes(before[1])


def fuzz_ledger(made, rng, count):
    """With the hash of the damaged file noted as right, so that what lies deeper has to notice."""
    data = (made / "ledger.db").read_bytes()
    (anchor,) = (made / "config").glob("anchor-*.json")
    state = anchor.read_bytes()
    sound = [entry["seal"] for entry in json.loads((made / "export.json").read_bytes())["entries"]]
    path = made / "fuzzed.db"
    try:
        for _ in range(count):
            changed = damage(rng, data)
            path.write_bytes(changed)
            digest = hashlib.sha256(changed).hexdigest()
            anchor.write_bytes(keys.canonical_json({**json.loads(state), "sha256": digest}))
            if not outcome(Ledger(path).history):
                assert [entry.seal for entry in Ledger(path).history()] == sound
    finally:
        anchor.write_bytes(state)
        for stray in (made / "config").glob("anchor-*.json"):
            if stray != anchor:
                stray.unlink()


def fuzz_export(made, rng, count):
    data = (made / "export.json").read_bytes()
    key = json.loads(data)["public_key"]
    path = made / "fuzzed.json"
    for _ in range(count):
        changed = damage(rng, data)
        path.write_bytes(changed)
        assert outcome(lambda: ledger_entries(path, public_key=key)) == (changed != data)


FUZZERS = {
    fuzz_certificate: (200, 25_000),
    fuzz_signed_certificate: (40, 3_000),
    fuzz_release: (100, 10_000),
    fuzz_ledger: (40, 3_000),
    fuzz_export: (100, 10_000),
}


@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_traceback_and_no_hang(made, fuzzer):
    fuzzer(made, random.Random(0), FUZZERS[fuzzer][0])


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_traceback_and_no_hang_in_50_000_inputs(made, fuzzer):
    fuzzer(made, random.Random(1), FUZZERS[fuzzer][1])


def test_the_fuzzed_world_is_as_it_was(made):
    verify(made / "out", ledger=made / "ledger.db")
    shutil.rmtree(made / "out")
