"""Disks that are full, runs that were killed, other bundles: what a user meets at the end."""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hyperdp.bundle import load_bundle
from hyperdp.cli._app import run
from hyperdp.cli._words import bundle_words, command
from hyperdp.errors import UsageError
from hyperdp.folders import whole_folder
from hyperdp.ledger import Ledger
from hyperdp.private import emit as private_emit
from hyperdp.private import released
from hyperdp.private.emit import class_folders
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.learners.config import FitConfig
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """`hyperdp release` of a small dataset, but for --out."""
    tiny_bundle(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=pixels)
    return [
        "release", str(tmp_path / "scans.npz"), "--bundle", str(tmp_path / "bundle"),
        "--ledger", str(tmp_path / "ledger.db"), "--epsilon", "4", "--delta", "1e-5",
    ]  # fmt: skip


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_refuses_before_a_budget_is_spent(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    held: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, at, size: held.append(size) or _full())
    assert run([*words, "-o", str(tmp_path / "out" / "release")]) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and "Nothing has been spent" in said
    assert held == [held[0]] and held[0] >= released.ROOM
    assert not (tmp_path / "ledger.db").exists()
    assert not any((tmp_path / "out").iterdir())  # no draft either


def test_a_disk_that_fills_up_later_says_that_the_budget_is_spent(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(released.NewFolder, "publish", _full)
    assert run([*words, "-o", str(tmp_path / "release")]) == 2
    assert "The budget that was reserved stays spent" in capsys.readouterr().err
    history = Ledger(tmp_path / "ledger.db").history()
    assert [entry.kind for entry in history] == ["cap", "reserve", "spend"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".release")]


def test_what_is_published_can_be_read_by_others(words: list[str], tmp_path: Path) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    for file in (tmp_path / "release").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
    assert {f.name for f in (tmp_path / "release").iterdir()} == {
        "certificate.json", "release.safetensors",
    }  # fmt: skip
    export = tmp_path / "export.json"
    assert run(["ledger", "export", "-o", str(export), "-l", str(tmp_path / "ledger.db")]) == 0
    assert export.stat().st_mode & 0o777 == 0o644
    keys = (tmp_path / "config").glob("*.key")
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_emit_leaves_a_whole_adapter_or_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    more = ["-b", str(tmp_path / "bundle"), "-o", str(tmp_path / "adapter")]
    with monkeypatch.context() as broken:
        broken.setattr(private_emit, "save_peft", lambda *_, **__: _full())
        assert run(["emit", str(tmp_path / "release"), *more]) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and "stays whole" in said
    assert not [p for p in tmp_path.iterdir() if "adapter" in p.name]
    (tmp_path / "adapter").mkdir()  # an empty folder is as good as none
    assert run(["emit", str(tmp_path / "release"), *more]) == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o044
    read: list[int] = []
    monkeypatch.setattr(private_emit, "adapter_weights", lambda *_: read.append(1))
    (tmp_path / "file").write_text("")
    more[-1] = str(tmp_path / "file" / "adapter")
    assert run(["emit", str(tmp_path / "release"), *more]) == 2 and not read


def test_a_draft_goes_away_on_any_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a") as draft:
        (draft / "file").write_text("half")
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


def test_sample_takes_no_other_bundle_of_the_same_layout(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    bundle, adapter = tmp_path / "bundle", tmp_path / "adapter"
    assert run(["emit", str(tmp_path / "release"), "-b", str(bundle), "-o", str(adapter)]) == 0
    assert f"hyperdp sample {adapter} --bundle {bundle} -o IMAGES" in capsys.readouterr().out
    other = tiny_bundle(tmp_path / "other", name="another")
    drawn = ["-n", "1", "--steps", "1", "-o", str(tmp_path / "drawn")]
    assert run(["sample", str(adapter), "-b", str(other.path), *drawn]) == 2
    said = capsys.readouterr().err
    assert "was made with, 'tiny'" in said and "--bundle" in said
    assert not (tmp_path / "drawn").exists()
    (adapter / "certificate.json").write_text("{}")
    assert run(["sample", str(adapter), "-b", str(bundle), *drawn]) == 2
    assert "certificate" in capsys.readouterr().err
    (adapter / "certificate.json").unlink()
    assert run(["sample", str(adapter), "-b", str(bundle), *drawn]) == 0


def test_printed_commands_can_be_pasted(tmp_path: Path) -> None:
    assert command("emit", Path("a b/ü"), "-o", "X") == "hyperdp emit 'a b/ü' -o X"
    assert shlex.split(command("emit", Path("-out")))[2] == "./-out"
    assert bundle_words(load_bundle("glyphs")) == []
    own = dataclasses.replace(tiny_bundle(tmp_path / "my own"))
    assert bundle_words(own) == ["--bundle", str(tmp_path / "my own")]


def test_a_killed_run_is_told_from_a_stranger_folder(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    again = ["private", *words[1:], "-o", str(tmp_path / "run")]
    (tmp_path / "run" / ".release.abc").mkdir(parents=True)
    assert run(again) == 2
    said = capsys.readouterr().err
    assert "killed" in said and "stays spent" in said and "hyperdp ledger show" in said
    (tmp_path / "run" / ".release.abc").rmdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(again) == 2
    assert "holds something" in capsys.readouterr().err


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from hyperdp.private import release as module
def add_up(*_, **__):
    print("reading", flush=True)
    time.sleep(60)
module.aggregate = add_up
module.release.__kwdefaults__["add_up"] = add_up
from hyperdp.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_release_says_that_its_budget_is_spent_and_leaves_no_draft(
    words: list[str], tmp_path: Path, kill: signal.Signals
) -> None:
    line = [sys.executable, "-c", SLOW, *words, "-o", str(tmp_path / "out" / "release")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        time.sleep(0.2)
        child.send_signal(kill)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "interrupted. The budget that was reserved stays spent." in said
    assert [e.kind for e in Ledger(tmp_path / "ledger.db").history()] == ["cap", "reserve"]
    assert not any((tmp_path / "out").iterdir())


def test_an_interruption_before_anything_was_reserved_says_nothing_of_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hyperdp.cli._releasing.open_checked", interrupt)
    assert run([*words, "-o", str(tmp_path / "release")]) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted.")


def test_a_plan_s_picture_is_refused_before_the_plan_and_drawn_where_it_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("plan", "plan.xyz", "folder.png"):
        assert run(["plan", "-n", "500", "-o", str(tmp_path / name)]) == 2
        assert ".png, .svg, .pdf" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"folder.png", "config"}
    assert run(["plan", "-n", "500", "-o", str(tmp_path / "plan.svg")]) == 0
    assert (tmp_path / "plan.svg").is_file()
    assert "curve in" in capsys.readouterr().out


def test_a_file_that_is_no_ledger_is_no_tampering(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    table = tmp_path / "table.csv"
    table.write_text("image,label\n")
    for wrong in (tmp_path / "nothing.db", tmp_path, table):
        assert run(["verify", str(tmp_path / "release"), "-l", str(wrong)]) == 2
        said = capsys.readouterr().err
        assert "Check --ledger" in said and "Do not rely" not in said
    export = tmp_path / "export.json"
    assert run(["ledger", "export", "-o", str(export), "-l", str(tmp_path / "ledger.db")]) == 0
    export.write_bytes(export.read_bytes()[:-40])
    assert run(["verify", str(tmp_path / "release"), "-l", str(export)]) == 2
    assert "Do not rely" in capsys.readouterr().err
    assert run(["ledger", "show", str(tmp_path / "scans.npz"), "-l", str(table)]) == 2
    assert "does not begin as one" in capsys.readouterr().err
    assert table.read_text() == "image,label\n"


def test_a_cap_for_an_unknown_name_says_that_it_is_unknown(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    cap = ["-e", "6", "-d", "1e-5", "-l", str(tmp_path / "ledger.db")]
    capsys.readouterr()
    assert run(["ledger", "set-cap", str(tmp_path / "scans.npz"), *cap]) == 0
    assert "new to this ledger" not in capsys.readouterr().out
    assert run(["ledger", "set-cap", "scnas", *cap]) == 0
    assert "'scnas' is new to this ledger" in capsys.readouterr().out


def test_words_that_cannot_be_right_are_refused_before_the_data_is_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    read: list[object] = []
    monkeypatch.setattr("hyperdp.cli._releasing.open_checked", lambda *a: read.append(a))
    monkeypatch.setattr("hyperdp.cli.fit.open_checked", lambda *a: read.append(a))
    labelled = [*words, "-o", str(tmp_path / "release"), "--label-column", "labels", "--classes"]
    for classes in ("", "a", "a,b,a"):
        assert run([*labelled, classes]) == 2
        assert "two different class names" in capsys.readouterr().err
    fit = ["fit", *words[1:], "--size", "50", "--batch", "8"]
    fit += ["-o", str(tmp_path / "adapter")]
    for wrong, said in (
        (["-m", "nope"], "dpsgd, ffa"),
        (["-m", "prism"], "full rank"),
        (["--target-module", "nope"], "LoRA sites"),
        (["--steps", "0"], "steps = 0"),
    ):
        assert run([*fit, *wrong]) == 2
        error = capsys.readouterr().err
        assert said in error and "FitConfig" not in error and "b_lr_ratio" not in error
    assert not read and not (tmp_path / "ledger.db").exists()


def test_settings_that_break_a_rule_are_named_and_no_others() -> None:
    with pytest.raises(UsageError, match=r"found lr = -1.0, average = 2.0\. Mend"):
        FitConfig(size=10, expected_batch=2, lr=-1.0, average=2.0)
    with pytest.raises(UsageError, match=r"found strength = 0.1, last_strength = 0.6\."):
        EvolutionConfig(strength=0.1)


def test_an_empty_dataset_name_is_no_path(words: list[str], tmp_path: Path) -> None:
    assert run([*words, "-o", str(tmp_path / "release"), "--dataset", ""]) == 2
    assert not (tmp_path / "ledger.db").exists() or not Ledger(tmp_path / "ledger.db").history()


def test_no_class_s_folder_is_the_certificate() -> None:
    assert class_folders(["certificate.json", "b"]) == ["certificate.json-0", "b"]
    assert class_folders(["Certificate.JSON", "b"]) == ["Certificate.JSON-0", "b"]


def test_advice_names_no_option_that_the_command_lacks(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run([*words, "-o", str(tmp_path / "release")]) == 0
    capsys.readouterr()
    np.savez(tmp_path / "public.npz", pictures=np.zeros((120, 28, 28), dtype=np.uint8))
    more = ["-b", str(tmp_path / "bundle"), "-o", str(tmp_path / "adapter")]
    public = ["--public", str(tmp_path / "public.npz")]
    assert run(["emit", str(tmp_path / "release"), *more, *public]) == 2
    said = capsys.readouterr().err
    assert "--image-column" not in said and "give --public other records" in said
    np.savez(tmp_path / "public.npz", images=np.zeros((120, 28, 28), dtype=np.uint8))
    labels = ["--public-label-column", "labels"]
    assert run(["emit", str(tmp_path / "release"), *more, *public, *labels]) == 2
    said = capsys.readouterr().err
    assert "with --public-label-column" in said and "--label-column" not in said.replace(
        "--public-label-column", ""
    )


def test_a_terminal_of_ascii_is_no_reason_to_fail(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [sys.executable, "-m", "hyperdp", "plan", "-n", "500"]
    done = subprocess.run(  # our own command
        line, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u03b5" in done.stdout
