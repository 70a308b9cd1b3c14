"""The report of a benchmark: its curves, pictures, tables and sentences say what the rows say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.bundle import Bundle
from hyperdp.cli._app import run
from hyperdp.errors import DataError
from hyperdp.eval import bench_parts
from hyperdp.eval.bench_reading import read_gains
from hyperdp.eval.bench_recipe import BenchConfig, cells
from hyperdp.eval.bench_report import write_bench_report
from hyperdp.eval.curves import Curve, Level, curve_chart
from hyperdp.eval.foretold import foretell_rows
from hyperdp.eval.kept_pictures import Pictures
from hyperdp.eval.results import Row, append_rows
from hyperdp.forecast import Forecast, ForecastTable
from tests.bench_rows import bench_rows, quick_config
from tests.test_eval_report import Page
from tests.worlds import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("world") / "bundle")


@pytest.fixture(scope="module")
def config(bundle: Bundle) -> BenchConfig:
    return dataclasses.replace(quick_config(), bundle=str(bundle.path))


@pytest.fixture(scope="module")
def rows(bundle: Bundle, config: BenchConfig) -> list[Row]:
    return bench_rows(config, f"{bundle.name}-{bundle.hash[:8]}")


def kept(config: BenchConfig, folder: Path) -> Pictures:
    pictures = Pictures(folder=folder)
    for cell in cells(config):
        pictures.keep(cell, torch.rand(64, 1, 28, 28) * 2 - 1)
    return pictures


def a_forecast(bundle: Bundle, gain: float) -> Forecast:
    """Twelve public tasks whose gain is `gain` and a little, whatever n and noise."""
    gains = gain + np.linspace(-0.2, 0.2, 12)
    table = ForecastTable(
        quantity="fid",
        noise_std=[1e-4, 1.0],
        units=[64, 4096],
        base=[1.0] * 12,
        public_mean=[0.9] * 12,
        lora=[0.5] * 12,
        hyper=[[[1 - 0.5 * g] * 2] * 2 for g in gains.tolist()],
    )
    return Forecast(bundle=bundle.name, bundle_hash=bundle.hash, tables=[table], made={})


def page_of(path: Path) -> tuple[str, Page, str]:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    return text, page, " ".join(" ".join(page.text).split())


def test_the_page_holds_the_rows_and_needs_nothing_beside_itself(
    bundle: Bundle, config: BenchConfig, rows: list[Row], tmp_path: Path
) -> None:
    made = write_bench_report(
        config, rows, bundle, tmp_path / "page.html",
        pictures=kept(config, tmp_path / "pictures"), command="hyperdp report quick",
    )  # fmt: skip
    text, page, words = page_of(made)
    rest = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|@import|<script|url\((?!#)", rest)
    assert page.tags.count("svg") == 4  # gain and FID, each for either width
    assert page.tags.count("img") == 5 + 6  # one of each reference, one of each (n, ε)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for part in ("non-private LoRA", "ρ(public mean)", "ε = 0.2", "n = 500", "10 min 00 s", "12"):
        assert part in words, part
    gain = next(r for r in rows if r.metric == "recovered_gain" and r.method == "public_mean")
    assert gain.value == pytest.approx(0.2)
    assert "recovers 0.2" in words
    assert "ε\u00a0=\u00a00.2" in text and "\u00a0±\u00a0" in text  # no line ends in there
    assert text.count('class="private"') == 2  # records, and a model trained without privacy
    assert "not measured yet" not in words


def test_what_is_missing_is_said(
    bundle: Bundle, config: BenchConfig, rows: list[Row], tmp_path: Path
) -> None:
    few = [row for row in rows if row.method != "other_task" and row.n != 100]
    made = write_bench_report(config, few, bundle, tmp_path / "p.html", command="c")
    _, page, words = page_of(made)
    assert "7 cells of the recipe are not measured yet" in words
    assert page.tags.count("img") == 0
    assert "What was foretold" not in words
    for bad in ([], [dataclasses.replace(rows[0], value=float("nan"))]):
        with pytest.raises(DataError, match="finite"):
            write_bench_report(config, bad, bundle, tmp_path / "q.html", command="c")
    with pytest.raises(DataError, match="labelled recipe"):
        labelled = dataclasses.replace(config, labelled=True)
        write_bench_report(labelled, rows, bundle, tmp_path / "q.html", command="c")
    assert not (tmp_path / "q.html").exists()


def test_what_was_foretold_stands_beside_what_came(config: BenchConfig, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    base = f"{bundle.name}-{bundle.hash[:8]}"
    rows = bench_rows(dataclasses.replace(config, bundle=str(bundle.path)), base)
    a_forecast(bundle, 0.6).save(bundle.path)
    check, lines = foretell_rows(bundle, rows)
    assert [line.name for line in lines][:2] == [
        "digits, n = 500, ε = 0.2",
        "digits, n = 500, ε = 1",
    ]
    for line in lines:
        assert line.low < line.gain < line.high
        assert len(line.realised) == 2
        assert line.inside == sum(line.low <= g <= line.high for g in line.realised)
    assert 0 < check.coverage < 1  # some of this law's gains lie outside
    made = write_bench_report(config, rows, bundle, tmp_path / "p.html", command="c")
    _, _, words = page_of(made)
    assert check.sentence() in words
    assert "0 of 2 inside" in words and "2 of 2 inside" in words


def test_the_command_reports_the_rows_there_are(
    bundle: Bundle, config: BenchConfig, rows: list[Row], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe, out = tmp_path / "quick.toml", tmp_path / "page.html"
    recipe.write_text(
        f'bench = "quick"\nbundle = "{bundle.path}"\nprivate_sets = ["digits"]\nn = [500, 100]\n'
        "epsilon = [0.2, 1.0, 8.0]\ndelta = 1e-5\nseeds = [0, 1]\n"
        'methods = ["floor", "base", "lora", "public_mean", "other_task", "hyper"]\n'
    )
    append_rows(tmp_path / "rows.jsonl", rows)
    words = ["report", str(recipe), "--rows", str(tmp_path / "rows.jsonl"), "-o", str(out)]
    assert run(words) == 0
    assert out.resolve().as_uri() in capsys.readouterr().out
    assert "Recovered gain" in out.read_text(encoding="utf-8")
    assert run([*words, "--pictures", str(tmp_path / "none")]) == 2


def test_curves_go_through_their_values_and_far_levels_are_said_to_be_far() -> None:
    curve = Curve(label="c", epsilon=[0.1, 1.0, 10.0], value=[0.0, 0.5, 1.0], spread=[0.0] * 3)
    levels = [
        Level(label="near", value=0.25, kind="control"),
        Level(label="far", value=-40.0, kind="control"),
    ]
    svg = curve_chart([curve], levels, width=1000, name="x")
    assert "far (off the picture)" in svg and "near (off" not in svg
    number = r"([\d.]+) ([\d.]+)\s+"
    lines = re.findall(rf'<path d="M {number}L {number}L {number}"', svg)
    [points] = [tuple(map(float, line)) for line in lines if line[1] != line[3]]
    x, y = points[::2], points[1::2]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1e-3)  # a log axis
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=1e-3)
    assert y[0] > y[2]
    assert "#0" not in svg  # every colour follows light and dark
    narrow = curve_chart([curve], levels, width=340, name="y")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (svg, narrow)]
    assert not ids[0] & ids[1]


def test_a_method_has_the_same_dashes_in_every_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        bench_parts, "curve_chart",
        lambda curves, levels, **_: drawn.append([x.label.split(":")[0] for x in levels]) or "",
    )  # fmt: skip
    rows = bench_rows(quick_config())
    for metric in ("recovered_gain", "fid"):
        for order in (1, -1):
            bench_parts._curves(rows[::order], metric, 800, metric)
    gain, backwards, fid, fid_backwards = drawn
    assert gain == backwards and fid == fid_backwards and len(gain) > 2
    assert [label for label in fid if label in gain] == gain


def law(gains: dict[float, list[float]], control: float | None) -> list[Row]:
    template = bench_rows(quick_config())[0]
    made = [
        dataclasses.replace(
            template, method="hyper", n=100, epsilon=e, seed=s, metric="recovered_gain", value=v
        )
        for e, values in gains.items()
        for s, v in enumerate(values)
    ]
    if control is not None:
        row = dataclasses.replace(template, method="public_mean", metric="recovered_gain")
        made.append(dataclasses.replace(row, value=control))
    return made


@pytest.mark.parametrize(
    ("gains", "control", "tone"),
    [
        ({0.2: [0.4, 0.5], 1.0: [0.6, 0.7]}, 0.2, "good"),
        ({0.2: [0.1, 0.2], 1.0: [0.6, 0.7]}, 0.2, "bad"),  # one ε is no better than the control
        ({0.2: [0.1, 0.5], 1.0: [0.6, 0.7]}, 0.2, "plain"),  # within its std
        ({0.2: [0.5], 1.0: [0.6]}, 0.2, "plain"),  # one seed shows nothing
        ({0.2: [0.4, 0.5]}, None, "plain"),
    ],
)
def test_the_reading_never_says_more_than_the_rows(
    gains: dict[float, list[float]], control: float | None, tone: str
) -> None:
    [sentence] = read_gains(law(gains, control))
    assert sentence.tone == tone
    assert "n = 100" in sentence.text
    [nothing] = read_gains([])
    assert nothing.tone == "plain" and "No recovered gain" in nothing.text
