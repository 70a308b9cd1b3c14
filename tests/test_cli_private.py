"""What `hyperdp private` says and does beyond release and emit: the guard, and public records."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.bundle import Bundle
from hyperdp.cli._app import run
from hyperdp.guard import LEVEL
from hyperdp.ledger import Ledger
from hyperdp.lora import load_peft
from hyperdp.private.release import Release
from tests.guards import gaussian_guard
from tests.worlds import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    return tiny_bundle(tmp_path / "bundle")


def images(path: Path, count: int, seed: int) -> Path:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    np.savez(path, images=drawn)
    return path


def private(tmp_path: Path, name: str, *more: str) -> int:
    data = images(tmp_path / "data.npz", 200, 0)
    words = [str(data), "-e", "4", "-d", "1e-4", "-b", str(tmp_path / "bundle")]
    place = ["-o", str(tmp_path / name), "-l", str(tmp_path / f"{name}.db"), "--dataset", name]
    return run(["private", *words, *place, *more])


def test_it_says_what_emit_says_of_foreign_data(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert private(tmp_path, "a") == 0
    assert "was not judged" in capsys.readouterr().out
    guard = gaussian_guard(bundle.hash)
    mean = Release.load(tmp_path / "a" / "release").mean().double().numpy()
    offset = mean - guard.calibration.mean(0)
    near = dataclasses.replace(
        guard, reference=guard.reference + offset, calibration=guard.calibration + offset
    )
    near.save(bundle.path)
    assert private(tmp_path, "b") == 0
    said = capsys.readouterr().out
    assert (
        "Not told apart from public tasks (p = " in said and f"flagged at {LEVEL:g} or less" in said
    )
    far = dataclasses.replace(
        near,
        foreign=near.reference,
        reference=near.reference + 0.9,
        calibration=near.calibration + 0.9,
    )
    far.save(bundle.path)
    assert private(tmp_path, "c", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["guard"]["flagged"] and facts["guard"]["p_value"] <= LEVEL
    words = ["emit", str(tmp_path / "c" / "release"), "-b", str(bundle.path), "--json"]
    assert run([*words, "-o", str(tmp_path / "again")]) == 0
    assert json.loads(capsys.readouterr().out)["guard"] == facts["guard"]
    dataclasses.replace(far, bundle_hash="cd" * 32).save(bundle.path)
    assert private(tmp_path, "d") == 2  # before anything is spent
    assert not (tmp_path / "d").exists()


def test_public_records_mean_what_they_mean_to_emit(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = images(tmp_path / "public.npz", 120, 1)
    more = ["--public", str(public), "--public-steps", "2"]
    assert private(tmp_path, "a", *more) == 0
    words = ["emit", str(tmp_path / "a" / "release"), "-b", str(bundle.path)]
    assert run([*words, *more, "-o", str(tmp_path / "same")]) == 0
    assert run([*words, "-o", str(tmp_path / "plain")]) == 0
    ours, same, plain = (
        load_peft(folder)
        for folder in (tmp_path / "a" / "adapter", tmp_path / "same", tmp_path / "plain")
    )
    assert all(torch.equal(ours[name][1], same[name][1]) for name in ours)
    assert not all(torch.equal(ours[name][1], plain[name][1]) for name in ours)


def labelled_private(tmp_path: Path, name: str, *more: str) -> int:
    drawn = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=drawn, labels=np.arange(200) % 2)
    words = ["-e", "4", "-d", "1e-4", "-b", str(tmp_path / "bundle"), "--dataset", name]
    of = ["--label-column", "labels", "--classes", "0,1"]
    place = ["-o", str(tmp_path / name), "-l", str(tmp_path / f"{name}.db")]
    return run(["private", str(tmp_path / "data.npz"), *words, *of, *place, *more])


def test_labels_of_public_records_part_them_among_the_classes(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = tmp_path / "public.npz"
    drawn = np.random.default_rng(1).integers(0, 256, (330, 28, 28), dtype=np.uint8)
    np.savez(public, images=drawn, labels=np.arange(330) % 3)
    more = ["--public", str(public), "--public-steps", "2"]
    column = ["--public-label-column", "labels"]
    assert labelled_private(tmp_path, "a", *more, *column) == 0
    words = ["emit", str(tmp_path / "a" / "release"), "-b", str(bundle.path)]
    assert run([*words, *more, "-o", str(tmp_path / "unlabelled")]) == 0
    ours, without = (
        load_peft(folder / "1") for folder in (tmp_path / "a" / "adapter", tmp_path / "unlabelled")
    )
    assert not all(torch.equal(ours[name][1], without[name][1]) for name in ours)
    kept = np.flatnonzero(np.arange(330) % 3 < 2)  # class 2 is none of the release's
    np.savez(public, images=drawn[kept], labels=np.arange(330)[kept] % 3)
    assert run([*words, *more, *column, "-o", str(tmp_path / "same")]) == 0
    same = load_peft(tmp_path / "same" / "1")
    assert all(torch.allclose(ours[name][1], same[name][1]) for name in ours)


@pytest.mark.parametrize("which", ["unlabelled release", "too few", "no records", "no column"])
def test_public_labels_that_cannot_be_used_are_refused_before_anything_is_spent(
    which: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = tmp_path / "public.npz"
    drawn = np.random.default_rng(1).integers(0, 256, (250, 28, 28), dtype=np.uint8)
    few = np.arange(250) < 60
    np.savez(public, images=drawn, labels=np.where(few, 1, 0))
    column = ["--public-label-column", "labels" if which != "no column" else "kinds"]
    more = [*column] if which == "no records" else ["--public", str(public), *column]
    ask = private if which == "unlabelled release" else labelled_private
    assert ask(tmp_path, "a", *more) == 2
    said = capsys.readouterr().err
    wanted = {
        "unlabelled release": "found an unlabelled one",
        "too few": "1 (60)",
        "no records": "--public RECORDS",
        "no column": "kinds",
    }
    assert wanted[which] in said
    assert not (tmp_path / "a").exists()
    path = tmp_path / "a.db"
    assert not path.exists() or not Ledger(path).history()


def test_a_dataset_that_was_released_is_not_taken_for_public_by_emit(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images(tmp_path / "data.npz", 200, 0)
    words = ["-e", "4", "-d", "1e-4", "-b", str(tmp_path / "bundle"), "-l", str(tmp_path / "l.db")]
    assert run(["release", str(data), *words, "-o", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert f"--bundle {tmp_path / 'bundle'}" in said.out and "wants --invert" in said.err
    emit = ["emit", str(tmp_path / "r"), "-b", str(tmp_path / "bundle"), "-o", str(tmp_path / "a")]
    assert run([*emit, "--public", str(data)]) == 2
    assert "a private release was made" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert run([*emit[:2], "-b", "glyphs", *emit[-2:]]) == 2
    assert "the bundle that the release was made with, 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [(), ("--dataset", "scans")])
@pytest.mark.parametrize("public", ["data", "data/a", "."])
def test_no_part_of_what_was_released_is_taken_for_public_by_whatever_name(
    name: tuple[str, ...], public: str, bundle: Bundle, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    images(tmp_path / "data" / "a" / "x.npz", 200, 0)
    monkeypatch.chdir(tmp_path)
    data = "data" if (tmp_path / "data").is_file() else "data/a/x.npz"
    words = ["-e", "4", "-d", "1e-4", "-b", str(tmp_path / "bundle"), "-l", str(tmp_path / "l.db")]
    out = tmp_path / "elsewhere"
    assert run(["release", data, *words, *name, "-o", str(out)]) == 0
    capsys.readouterr()
    emit = ["emit", str(out), "-b", str(tmp_path / "bundle"), "-o", str(tmp_path / "a")]
    assert run([*emit, "--public", public]) == 2
    assert "a private release was made" in capsys.readouterr().err
    assert run(["pretrain", "images", "data/a", "-o", str(tmp_path / "corpus")]) == 2
    assert "a private release was made" in capsys.readouterr().err
    other = ["private", "data/a/x.npz", *words, "--dataset", "other", "-o", str(tmp_path / "p")]
    assert run([*other, "--public", public]) == 2
    assert "a part of it" in capsys.readouterr().err
    if name:  # the same records once more, now by their path
        assert run(["release", data, *words, "-o", str(tmp_path / "again")]) == 3
        assert "which has spent the budget of scans" in capsys.readouterr().err
    else:  # by a name, which the operator vouches for
        assert run(["release", data, *words, "--dataset", "x", "-o", str(tmp_path / "again")]) == 0
        assert "charge it to that name: 'x' is another dataset" in capsys.readouterr().err


def test_too_few_public_records_are_found_before_anything_is_spent_and_a_paid_release_is_named(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = images(tmp_path / "few.npz", 99, 1)
    assert private(tmp_path, "a", "--public", str(few)) == 2
    assert "at least 100 public records" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.db").exists()
    assert private(tmp_path, "b") == 0
    assert private(tmp_path, "b") == 2  # the adapter is there: nothing is left to do
    said = capsys.readouterr().err
    assert "the adapter is there" in said and "hyperdp emit" not in said
    shutil.rmtree(tmp_path / "b" / "adapter")
    assert private(tmp_path, "b") == 2
    assert f"hyperdp emit {tmp_path / 'b' / 'release'}" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["none", "the data itself"])
def test_bad_public_records_are_refused_before_anything_is_spent(
    which: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / ("nothing.npz" if which == "none" else "data.npz")
    assert private(tmp_path, "a", "--public", str(source)) == 2
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    path = tmp_path / "a.db"
    assert not path.exists() or not Ledger(path).history()


def test_public_records_do_not_go_with_private_steps(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = images(tmp_path / "public.npz", 120, 1)
    more = ["--public", str(public), "--refine", "prism", "--size", "200"]
    assert private(tmp_path, "a", *more) == 2
    assert "--refine and --public" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
