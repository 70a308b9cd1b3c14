"""What `verify` makes of certificates and exports that a stranger has written and signed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
from dp_accounting import GaussianDpEvent
from safetensors.torch import save as tensors_to_bytes

from hyperdp import keys, ledger
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.cli._app import run
from hyperdp.errors import BudgetRefusedError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.private.learners.run_folder import run_folder
from hyperdp.subsampled import MOST_STEPS
from hyperdp.training_certificate import TrainingCertificate
from hyperdp.verification import verify

ESCAPE = "\x1b[2K\x1b[1Aall 15 claims hold\x1b[8m\u202e"
EVENT = {
    "type": "repeat",
    "count": 3,
    "event": {
        "type": "poisson",
        "probability": 0.1,
        "event": {"type": "gaussian", "noise_multiplier": 1.0},
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PEFT directory whose certificate holds, of an account that nobody knows."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    parts = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
    files = {
        "adapter_config.json": json.dumps({"r": 1, "lora_alpha": 1}).encode(),
        "adapter_model.safetensors": tensors_to_bytes(
            {f"base_model.model.x.{name}.weight": part for name, part in parts.items()}
        ),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    settings = {
        "method": "dpsgd", "size": 100, "expected_batch": 10, "steps": 3, "clip_norm": 1.0,
    }  # fmt: skip
    statement = TrainingCertificate(
        created="x", code_version="0", adjacency="add-remove", unit="record", epsilon=8.0,
        delta=1e-5, noise_multiplier=1.0, sampling_probability=0.1, config=settings, sites=["x"],
        rank=1, bundle_name="b", bundle_hash="h", start_certificate="", start_event={},
        start_delta_discretisation=0.0, total_epsilon=8.0, total_delta=1e-5, event=EVENT,
        ledger_id="l", ledger_seq=1, ledger_seal="s", dataset="d",
        adapter_sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        **settings,
    )  # fmt: skip
    write(folder, statement)
    return folder


def write(folder: Path, statement: TrainingCertificate, **changed: object) -> None:
    signed = dataclasses.replace(statement, **changed).signed()
    (folder / "certificate.json").write_bytes(signed.to_bytes())


def stated(folder: Path) -> TrainingCertificate:
    return TrainingCertificate.from_bytes((folder / "certificate.json").read_bytes())


def test_the_whole_promise_is_told_and_no_total_at_a_delta_that_promises_nothing(folder: Path):
    claims = {claim.name: claim for claim in verify(folder)}
    assert claims["promise"].claimed == "(8, 1e-05)-DP, add-remove, one record"
    assert claims["delta with the start"].claimed == "1e-05"
    start = {"type": "gaussian", "noise_multiplier": 0.5}
    write(folder, stated(folder), start_event=start, total_epsilon=0.0, total_delta=0.999)
    with pytest.raises(VerificationError, match="the total delta <= 1/2"):
        verify(folder)


@pytest.mark.parametrize("tau", [1e-5, 1e-3])
def test_a_start_of_hardly_any_noise_takes_no_memory(folder: Path, tau: float):
    write(folder, stated(folder), start_event={"type": "gaussian", "noise_multiplier": tau})
    with pytest.raises(VerificationError, match=r"noise multiplier >= 0\.02"):
        verify(folder)


def test_no_control_character_of_a_certificate_reaches_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    write(folder, stated(folder), mechanism=ESCAPE)
    with pytest.raises(VerificationError) as caught:
        verify(folder)
    assert str(caught.value).isprintable()
    assert run(["verify", str(folder)]) == 2
    told = capsys.readouterr().err
    assert all(c.isprintable() for line in told.splitlines() for c in line)
    assert "all 15 claims hold" in told  # spelt out, in the middle of the error
    write(folder, stated(folder), mechanism="poisson-sampled-gaussian")
    assert run(["verify", str(folder), "--ledger", str(folder / ESCAPE)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_weights_behind_a_link_or_of_another_kind_are_vouched_for_by_nobody(
    folder: Path, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    for name in ("checkpoint", "weights.pkl"):
        place = folder / name
        if name == "checkpoint":
            place.symlink_to(tmp_path / "elsewhere")
        else:
            place.write_bytes(b"x")
        with pytest.raises(VerificationError, match=name):
            verify(folder)
        place.unlink()
    verify(folder)


@pytest.mark.parametrize("entries", [[1], [{}], 7, [{"kind": "commit"}], [[]], [None]])
def test_an_export_of_other_things_is_refused(folder: Path, tmp_path: Path, entries: object):
    body = {"format": "hyperdp-ledger/1", "ledger_id": "l", "entries": entries}
    key, mark = keys.sign(keys.canonical_json(body))
    export = tmp_path / "export.json"
    export.write_bytes(keys.canonical_json({**body, "public_key": key, "signature": mark}))
    with pytest.raises(VerificationError, match="an export of a ledger"):
        verify(folder, ledger=export)


def test_a_run_is_one_process_s_whatever_is_copied_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two chains of steps for one reservation would both be readable."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    a, b = tmp_path / "a", tmp_path / "b"
    with run_folder(a, {"out": str(a)}) as run_of_a:
        run_of_a.save(10, {"w": torch.ones(1)})
        shutil.copytree(tmp_path / ".a.run", tmp_path / ".b.run")
        settings = tmp_path / ".b.run" / "run.json"
        settings.write_text(settings.read_text().replace(str(a), str(b)))
        with (
            pytest.raises(UsageError, match="one process at a time"),
            run_folder(b, {"out": str(b)}),
        ):
            pass
        (tmp_path / ".a.run" / "lock").unlink()
        with (
            pytest.raises(UsageError, match="one process at a time"),
            run_folder(a, {"out": str(a)}),
        ):
            pass
    with run_folder(b, {"out": str(b)}) as run_of_b:
        run_of_b.save(20, {"w": torch.ones(1)})
    with run_folder(a, {"out": str(a)}) as run_of_a:
        with pytest.raises(BudgetRefusedError, match="step 10, though 20"):
            run_of_a.load()
        with pytest.raises(BudgetRefusedError, match="step 20, which another process took"):
            run_of_a.save(20, {"w": torch.zeros(1)})


def test_of_two_paths_that_overlap_and_are_reserved_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "d" / "sub").mkdir(parents=True)
    both, real = threading.Barrier(2), ledger._refuse_overlap
    budget = PrivacyBudget(epsilon=1.0, delta=1e-5)
    event = GaussianDpEvent(noise_multiplier(1.0, 1e-5) * 1.001)
    told: list[str] = []

    def slowly(dataset: str, name: str) -> None:
        real(dataset, name)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(2)  # for the other one to look as well, before either has reserved

    def reserve(number: int, path: Path) -> None:
        own = Ledger(tmp_path / f"{number}.db")
        try:
            own.reserve(str(path), budget=budget, event=event, bundle_hash="x")
            told.append("reserved")
        except BudgetRefusedError:
            told.append("refused")

    monkeypatch.setattr(ledger, "_refuse_overlap", slowly)
    places = (tmp_path / "d", tmp_path / "d" / "sub")
    threads = [threading.Thread(target=reserve, args=pair) for pair in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["refused", "reserved"]


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (ClassifierConfig, {"lr": math.inf}),
        (ClassifierConfig, {"clip_norm": math.inf}),
        (ClassifierConfig, {"steps": MOST_STEPS + 1}),
        (FitConfig, {"size": 10**401, "steps": 10, "expected_batch": 10}),
        (FitConfig, {"size": 100, "steps": MOST_STEPS + 1, "expected_batch": 10}),
    ],
)
def test_settings_that_no_certificate_can_state_are_refused_before_a_budget_is_spent(config, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)) if config is not FitConfig else "<="):
        config(**wrong)
