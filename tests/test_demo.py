"""The demo, end to end on real handwriting with a bundle of toy size."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from hyperdp.cli._app import run
from hyperdp.lora import load_peft
from hyperdp.private.release import Release
from tests.worlds import tiny_bundle


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("demo")
    tiny_bundle(folder / "bundle")
    out, printed = folder / "demo", io.StringIO()
    arguments = ["--out", str(out), "--bundle", str(folder / "bundle"), "--samples", "64"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("HYPERDP_CONFIG_DIR", str(folder / "config"))
        assert run(["demo", *arguments, "--json"]) == 0
    return out, json.loads(printed.getvalue())


def test_it_releases_emits_samples_measures_and_reports(demo):
    out, printed = demo
    page = (out / "report.html").read_text()
    for label in (
        "base model",
        "ρ(public mean)",
        "hyperdp, n = 128",
        "hyperdp, n = 2,000",
        "do not publish",
    ):
        assert label in page
    assert printed["report"] == str(out / "report.html")
    assert set(printed["fid"]) == {
        "floor",
        "base",
        "public_mean",
        "other_task",
        "hyper_128",
        "hyper_2000",
    }
    assert printed["fid"]["floor"] < printed["fid"]["base"]
    for n in (128, 2000):
        made = Release.load(out / f"release-{n}")
        assert made.certificate.epsilon == 1.0
        assert abs(float(made.count()[0]) - n) < 120  # noisy: σ of the count is about 15
        assert load_peft(out / f"adapter-{n}")
    assert (out / "grids" / "hyper_2000.png").is_file()
    assert Image.open(out / "grids" / "side-by-side.png").size == (26 * 56, 8 * 56)


def test_it_never_overwrites(demo):
    out, _ = demo
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run(["demo", "--out", str(out)]) == 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
