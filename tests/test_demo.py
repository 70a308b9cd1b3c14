"""The demo, end to end on real handwriting with a bundle of toy size."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdp.budget import PrivacyBudget
from hyperdp.cli._app import run
from hyperdp.eval.foreign_flag import foreign_flag
from hyperdp.eval.foretold import foretell_releases
from hyperdp.eval.release_facts import ReleaseFacts
from hyperdp.eval.study import release_once
from hyperdp.guard import LEVEL
from hyperdp.lora import load_peft
from hyperdp.private.release import Release
from tests.guards import gaussian_guard
from tests.test_bench_report import a_forecast
from tests.test_eval_report import Page, page_of, report
from tests.worlds import tiny_bundle

BUDGET = PrivacyBudget(epsilon=2.0, delta=1e-5)


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


def test_the_page_says_whether_the_data_is_foreign_and_what_was_foretold(tmp_path, monkeypatch):
    """On a bundle with both files; the parts that take time are left out."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    bundle = tiny_bundle(tmp_path / "bundle")
    made = [
        (f"n = {n}", release_once(bundle, torch.rand(n, 1, 28, 28), BUDGET)) for n in (128, 400)
    ]
    assert foretell_releases(bundle, made) == []
    assert foreign_flag(made[0][1], bundle) is None
    gaussian_guard(bundle.hash).save(bundle.path)
    a_forecast(bundle, 0.6).save(bundle.path)
    lines = foretell_releases(bundle, made)
    assert [line.name for line in lines] == ["n = 128", "n = 400"]
    assert all(line.low < line.gain < line.high and line.realised == () for line in lines)
    flag = foreign_flag(made[0][1], bundle)
    page = page_of(
        report([ReleaseFacts.of(m, name) for name, m in made], guard=[flag], foretold=lines),
        tmp_path,
    )
    words = " ".join(" ".join(Page(page).text).split())
    assert flag.text in words and f"flagged at {LEVEL:g} or less" in words
    assert "Does the bundle know such data?" in words
    assert "not measured" in words and f"{lines[0].gain:.2f}" in words
    facts = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert facts["guard"][0]["p_value"] == flag.p_value
    assert facts["foretold"][1]["name"] == "n = 400"
