"""`emit` and `drift` on real releases of a toy bundle: what they say, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.certificate import Certificate
from hyperdp.cli._app import run
from hyperdp.eval.foreign_flag import foreign_flag
from hyperdp.guard import Guard
from hyperdp.ledger import Ledger
from hyperdp.private.emit import judge_release, measured_classes
from hyperdp.private.records import Record
from hyperdp.private.release import Release, release
from tests.guards import gaussian_guard
from tests.worlds import tiny_bundle

N = 400


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    return tiny_bundle(tmp_path / "bundle")


def _release(
    bundle: Bundle, folder: Path, *, ink: float, epsilon: float = 8.0, inverted: bool = False
) -> Release:
    rng = np.random.default_rng(round(100 * (ink + 2)))
    images = np.clip(ink + 0.1 * rng.standard_normal((N, 1, 28, 28)), -1, 1).astype(np.float32)
    return release(
        [Record(image=image) for image in images],
        bundle=bundle,
        budget=PrivacyBudget(epsilon=epsilon, delta=1e-5),
        ledger=Ledger(folder.parent / "ledger.db"),
        out=folder,
        dataset=folder.name,
        inverted=inverted,
    )


def _guard_about(bundle: Bundle, made: Release) -> Guard:
    """A guard whose public tasks lie about a release, and whose foreign data lies elsewhere."""
    guard, mean = gaussian_guard(bundle.hash), made.mean().double().numpy()
    offset = mean - guard.calibration.mean(0)
    return dataclasses.replace(
        guard, reference=guard.reference + offset, calibration=guard.calibration + offset
    )


def test_emit_tells_whether_the_data_is_foreign(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _release(bundle, tmp_path / "one", ink=-0.5)
    assert judge_release(made, bundle) is None and foreign_flag(made, bundle) is None
    words = ["emit", str(tmp_path / "one"), "-b", str(bundle.path), "-o"]
    assert run([*words, str(tmp_path / "a")]) == 0
    assert "was not judged" in capsys.readouterr().out
    guard = _guard_about(bundle, made)
    guard.save(bundle.path)
    assert run([*words, str(tmp_path / "near")]) == 0
    assert "--invert" not in capsys.readouterr().out
    assert run([*words, str(tmp_path / "b"), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)["guard"]
    assert not judged["flagged"] and judged["p_value"] > 0.05
    flag = foreign_flag(made, bundle)
    assert flag is not None and not flag.raised and flag.p_value == judged["p_value"]
    dataclasses.replace(
        guard,
        foreign=guard.reference,
        reference=guard.reference + 0.9,
        calibration=guard.calibration + 0.9,
    ).save(bundle.path)
    assert run([*words, str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert "Unlike the public data" in said and "hyperdp release --invert" in said
    dataclasses.replace(guard, bundle_hash="cd" * 32).save(bundle.path)
    assert run([*words, str(tmp_path / "d")]) == 2
    assert not (tmp_path / "d").exists()  # nothing is written where the guard cannot be read


def test_drift_tells_a_changed_source_from_an_unchanged_one(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ink in (("a", -0.5), ("b", -0.49), ("c", 0.9)):
        _release(bundle, tmp_path / name, ink=ink)
    words = ["drift", "-b", str(bundle.path), "--json", str(tmp_path / "a")]
    assert run([*words, str(tmp_path / "b")]) == 2  # no calibration data yet
    gaussian_guard(bundle.hash).save(bundle.path)
    capsys.readouterr()
    assert run([*words, str(tmp_path / "b")]) == 0
    same = json.loads(capsys.readouterr().out)
    assert run([*words, str(tmp_path / "c")]) == 0
    other = json.loads(capsys.readouterr().out)
    assert same["p_value"] > 1e-3 and other["p_value"] < 1e-6 and other["changed"]
    assert run([w for w in words if w != "--json"] + [str(tmp_path / "c")]) == 0
    assert "The source has changed" in capsys.readouterr().out
    certificate = Certificate.from_bytes((tmp_path / "b" / "certificate.json").read_bytes())
    by_user = dataclasses.replace(certificate, unit="user").signed()
    (tmp_path / "b" / "certificate.json").write_bytes(by_user.to_bytes())
    assert run([*words, str(tmp_path / "b")]) == 2
    assert "unit record and unit user" in capsys.readouterr().err
    _release(bundle, tmp_path / "turned", ink=-0.5, inverted=True)
    assert run([*words, str(tmp_path / "turned")]) == 2
    assert "--invert, or neither" in capsys.readouterr().err


def test_what_a_release_tells_of_a_class_has_the_noise_of_its_certificate(
    bundle: Bundle, tmp_path: Path
) -> None:
    made = _release(bundle, tmp_path / "a", ink=0.0, epsilon=1.0)
    [measured] = measured_classes(made)
    sigma = made.certificate.noise_multiplier * made.certificate.sensitivity
    assert measured.units_std == pytest.approx(sigma / 0.25, rel=1e-6)
    assert measured.noise_std == pytest.approx(sigma / measured.units, rel=1e-4)
    assert abs(measured.units - N) < 6 * measured.units_std
