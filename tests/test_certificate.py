import dataclasses
import json
import pickle
import shutil
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from hyperdp import keys
from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import Certificate, read_release
from hyperdp.errors import HyperdpError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.private.release import release
from hyperdp.verification import check_entry, verify
from tests.private_world import TinyBundle, records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One labelled release and its ledger, made under keys of their own."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDP_CONFIG_DIR", str(folder / "config"))
        ledger = Ledger(folder / "ledger.db")
        release(
            records(300, classes=2),
            bundle=TinyBundle(),
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
            ledger=ledger,
            out=folder / "out",
            dataset="digits",
            classes=["0", "1"],
        )
        (folder / "export.json").write_bytes(ledger.export())
        yield folder


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_verify_recomputes_every_claim(made):
    claims = {c.name: c for c in verify(made / "out", ledger=made / "ledger.db")}
    assert float(claims["epsilon (PLD)"].recomputed) == pytest.approx(1.0, abs=1e-6)
    assert len(claims) == 14
    assert len(verify(made / "out", ledger=made / "export.json")) == 14
    assert len(verify(made / "out")) == 13


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "cat/adapter_config.json", "x.PT"])
def test_weights_that_the_certificate_says_nothing_of_are_refused(copy, name):
    """An emitted adapter bears its release's certificate, which vouches for no weights."""
    (copy / "out" / "README.md").write_text("mine")
    verify(copy / "out")
    (copy / "out" / name).parent.mkdir(exist_ok=True)
    (copy / "out" / name).write_bytes(b"anything at all")
    with pytest.raises(VerificationError, match=name):
        verify(copy / "out")


def test_verify_needs_no_keys_of_the_operator(made, tmp_path, monkeypatch):
    """A third party: release and export alone, on another account."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "third party"))
    verify(made / "out", ledger=made / "export.json")
    with pytest.raises(HyperdpError):
        verify(made / "out", ledger=made / "ledger.db")


def test_verify_holds_the_signer_to_a_known_key(made):
    key = json.loads((made / "out/certificate.json").read_bytes())["public_key"]
    verify(made / "out", public_key=key)
    with pytest.raises(VerificationError, match="signature by"):
        verify(made / "out", public_key="00" * 32)


@settings(max_examples=1000)
@given(data=st.data())
def test_every_flip_of_one_byte_is_detected(made, tmp_path_factory, data):
    """In certificate, release, ledger or its export; 1,000 flips."""
    name = data.draw(
        st.sampled_from(
            ["out/certificate.json", "out/release.safetensors", "ledger.db", "export.json"]
        )
    )
    path = made / name
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        with pytest.raises(HyperdpError):
            # What `verify` does, but for the numbers, which take longer and find nothing here.
            certificate, _, _ = read_release(made / "out")
            check_entry(certificate, path)
    finally:
        path.write_bytes(content)


def resigned(copy, change):
    """A certificate that a dishonest operator signed: only recomputation can catch it."""
    path = copy / "out" / "certificate.json"
    certificate = dataclasses.replace(Certificate.from_bytes(path.read_bytes()), **change)
    public_key, signature = keys.sign(certificate._signed_part())
    certificate = dataclasses.replace(certificate, public_key=public_key, signature=signature)
    path.write_bytes(certificate.to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.99},
        {"delta": 0.9e-5},
        {"delta_gaussian": 0.9e-5},
        {"delta_discretisation": 0.0},
        {"delta_gaussian": -1.0},
        {"delta": 1.0},
        {"epsilon": -1.0},
        {"embedding_dim": 7},
        {"noise_multiplier": 3.8},
        {"sensitivity": 1.0},
        {"sigma_lattice": 1e7},
        {"clip_norm": 1.01},
        {"clip_norm": -1.0},
        {"clip_norm": 1e300},
        {"count_weight": 0.5},
        {"lattice_bits": 23},
        {"lattice_bits": 10**9},
        {"adjacency": "replace-one"},
        {"adjacency": "swap"},
        {"unit": "household"},
        {"mechanism": "laplace"},
        {"classes": ["0", "0"]},
        {"classes": ["0"]},
        {"event": {}},
        {"event": {"type": "gaussian", "noise_multiplier": 9.0}},
        {"sigma_lattice": -1.0},
        {"sigma_lattice": 0.0},
    ],
)
def test_a_false_claim_is_found_although_it_is_signed(copy, change):
    resigned(copy, change)
    with pytest.raises(VerificationError):
        verify(copy / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"ledger_seq": 1},
        {"ledger_seq": 3},
        {"ledger_seq": 0},
        {"ledger_seq": 99},
        {"ledger_seal": "00" * 32},
        {"dataset": "00" * 32},
        {"bundle_hash": "00" * 32},
        {"unit": "user"},
        {"code_version": "9"},
    ],
)
@pytest.mark.parametrize("ledger", ["ledger.db", "export.json"])
def test_a_certificate_that_is_not_the_ledgers_is_found(made, copy, change, ledger):
    """Against the ledger; alone each of these certificates is consistent."""
    resigned(copy, change)
    verify(copy / "out")
    with pytest.raises(VerificationError, match=r"ledger|commit"):
        verify(copy / "out", ledger=made / ledger)


def test_an_export_of_another_signer_is_refused(made, copy, tmp_path, monkeypatch):
    export = json.loads((made / "export.json").read_bytes())
    del export["public_key"], export["signature"]
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "forger"))
    public_key, signature = keys.sign(keys.canonical_json(export))
    forged = keys.canonical_json({**export, "public_key": public_key, "signature": signature})
    (copy / "export.json").write_bytes(forged)
    with pytest.raises(VerificationError, match="signed by"):
        verify(copy / "out", ledger=copy / "export.json")


def test_tensors_must_be_those_of_the_certificate(copy):
    import hashlib

    good = {"sums": np.zeros((2, 8), np.int64), "counts": np.zeros(2, np.int64)}
    for change in (
        {"sums": np.zeros((2, 8), np.int32)},
        {"sums": np.zeros((8, 2), np.int64)},
        {"counts": np.zeros(3, np.int64)},
        {"more": np.zeros(1, np.int64)},
    ):
        data = save({**good, **change})
        (copy / "out" / "release.safetensors").write_bytes(data)
        resigned(copy, {"release_sha256": hashlib.sha256(data).hexdigest()})
        with pytest.raises(VerificationError, match="other tensors"):
            read_release(copy / "out")


class Trap:
    """Unpickling this sets the trap off."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("signed", [False, True])
def test_a_planted_pickle_is_never_loaded(copy, signed):
    import hashlib

    data = pickle.dumps(Trap())
    (copy / "out" / "release.safetensors").write_bytes(data)
    if signed:
        resigned(copy, {"release_sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(VerificationError):
        read_release(copy / "out")
    (copy / "out" / "certificate.json").write_bytes(data)
    with pytest.raises(VerificationError):
        read_release(copy / "out")
    (copy / "ledger.db").write_bytes(data)
    with pytest.raises(HyperdpError):
        Ledger(copy / "ledger.db").history()


@pytest.mark.parametrize("name", ["certificate.json", "release.safetensors"])
def test_a_missing_file_is_said_to_be_missing(copy, name):
    (copy / "out" / name).unlink()
    with pytest.raises(VerificationError, match="No such file"):
        verify(copy / "out")


def test_verifying_against_another_sqlite_file_writes_nothing_into_it(made, tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("PRAGMA user_version = 7")  # a header, and no table
    db.close()
    before, config = other.read_bytes(), sorted((made / "config").iterdir())
    assert before.startswith(b"SQLite format 3")
    with pytest.raises(VerificationError, match="no ledger"):
        verify(made / "out", ledger=other)
    assert other.read_bytes() == before
    assert sorted((made / "config").iterdir()) == config
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("other")] == ["other.db"]


def test_a_missing_ledger_is_said_to_be_missing(made, tmp_path):
    with pytest.raises(UsageError, match="No such file"):  # no finding about the release
        verify(made / "out", ledger=tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 1},
        {"num_classes": True},
        {"classes": "01"},
        {"classes": [[], []]},
        {"event": []},
    ],
)
def test_types_are_exact(made, change):
    statement = json.loads((made / "out/certificate.json").read_bytes())
    with pytest.raises(VerificationError):
        Certificate.from_bytes(keys.canonical_json({**statement, **change}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()))
def test_certificates_of_anything_are_refused_without_a_traceback(data):
    with pytest.raises(VerificationError):
        Certificate.from_bytes(data)


def test_deep_and_long_json_is_refused():
    for data in (b"[" * 100_000, b'"' + b"x" * 2**21 + b'"', b"1" * 5000):
        with pytest.raises(VerificationError):
            Certificate.from_bytes(data)
