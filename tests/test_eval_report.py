import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hyperdp.accounting import event_from_json, pld_epsilon
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import DataError
from hyperdp.eval.measure import NOT_PRIVATE
from hyperdp.eval.page import duration
from hyperdp.eval.pictures import Bar, bar_chart, inline_png
from hyperdp.eval.reading import MetricRow, compare, number, read_rows, verdict
from hyperdp.eval.release_facts import ReleaseFacts, composed_epsilon
from hyperdp.eval.report import GridPanel, ReportInput, write_report
from hyperdp.eval.study import release_once
from hyperdp.images import to_uint8
from tests.worlds import tiny_bundle

VOID = {"meta", "img", "br", "hr", "link", "input"}


def pictures(count, seed=0, channels=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, 28, 28, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("releases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDP_CONFIG_DIR", str(root / "config"))
        bundle = tiny_bundle(root / "bundle")
        budget = PrivacyBudget(epsilon=2.0, delta=1e-5)
        return [release_once(bundle, pictures(n), budget) for n in (200, 400)]


@pytest.fixture(scope="module")
def facts(releases):
    return [ReleaseFacts.of(made, f"n = {n}") for made, n in zip(releases, (200, 400), strict=True)]


def row(method, fid, kid, *, n=None, epsilon=None, label=None, kid_std=0.01):
    label = label or (method if n is None else f"{method}, n = {n}")
    return MetricRow(
        method=method, label=label, n=n, epsilon=epsilon, fid=fid, kid=kid, kid_std=kid_std
    )


ROWS = [
    row("base", 439.0, 2.86),
    row("public_mean", 401.0, 2.69),
    row("other_task", 440.0, 2.9),
    row("hyper", 352.0, 2.35, n=128, epsilon=2.0),
    row("hyper", 318.0, 2.12, n=2000, epsilon=2.0),
]


def report(facts, **changes):
    values = {
        "title": "Digits",
        "private_about": "Handwriting of people.",
        "releases": facts,
        "grids": [
            GridPanel(title="base model", caption="before", images=pictures(70)),
            GridPanel(title="real", caption="private", images=pictures(64, 1), private=True),
        ],
        "rows": ROWS,
        "floor_fid": 62.5,
        "floor_kid": 0.004,
        "extractor": "EfficientNet-Lite0",
        "samples": 500,
        "reference": 2500,
        "stages": [("release", 0.42), ("sample", 188.0)],
        "command": "hyperdp demo --out out",
        "hardware": "a processor, 2 cores",
        "version": "0.1.0",
        "seed": 3,
    }
    return ReportInput(**(values | changes))


class Page(HTMLParser):
    """Checks that tags close in order, and collects text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def page_of(made, tmp_path):
    path = write_report(made, tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_holds_what_it_must(facts, releases, tmp_path):
    text = page_of(report(facts), tmp_path)
    words = " ".join(" ".join(Page(text).text).split())
    c = releases[0].certificate
    for part in (
        "Handwriting of people.", "ε = 2", "δ = 1e-5", "add-remove: one record more or less",
        f"{c.noise_multiplier:.4f}", f"{c.sensitivity:.4f}", f"{c.sigma_lattice / 2**24:.4f}",
        f"{float(releases[0].count()[0]):,.1f}", f"{float(releases[1].count()[0]):,.1f}",
        "private: do not publish", "FID (EfficientNet-Lite0 features)", "62.5", "0.004",
        "500 images of each method against 2,500 reference images",
        "0.4 s", "3 min 08 s", "hyperdp demo --out out", "a processor, 2 cores", "0.1.0",
    ):  # fmt: skip
        assert part in words, part
    assert f"Metrics computed on private data are {NOT_PRIVATE}" in words
    assert "It shows private records" in words
    for line in ROWS:
        assert line.label in words
        assert number(line.fid) in words
        assert number(line.kid) in words


def test_the_page_needs_nothing_beside_itself(facts, tmp_path):
    text = page_of(report(facts), tmp_path)
    rest = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|@import|<script|url\((?!#)", rest)
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    sources = [value for name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)


def test_without_private_records_it_does_not_claim_to_show_them(facts, tmp_path):
    text = page_of(report(facts[:1], grids=[]), tmp_path)
    assert "It shows private records" not in text
    assert "releases of the same data add up" not in text
    assert NOT_PRIVATE in text


def test_names_cannot_break_out_of_the_page(facts, tmp_path):
    evil = "<script>alert('$x$')</script>\"&amp;"
    named = [dataclasses.replace(line, label=evil) for line in ROWS]
    made = report(
        [dataclasses.replace(facts[0], name=evil, bundle=evil)],
        title=evil, private_about=evil, rows=named, extractor=evil, command=evil, hardware=evil,
        version=evil, stages=[(evil, 1.0)],
        grids=[GridPanel(title=evil, caption=evil, images=pictures(3))],
    )  # fmt: skip
    text = page_of(made, tmp_path)
    assert "<script" not in text
    assert "".join(Page(text).text).count(evil) > 15  # parsed back, it is text as it was given


def test_the_facts_beside_it_hold_no_image(facts, tmp_path):
    made = report(facts)
    page_of(made, tmp_path)
    saved = json.loads((tmp_path / "deep" / "report.json").read_text(encoding="utf-8"))
    assert NOT_PRIVATE in saved["warning"]
    assert [MetricRow(**line) for line in saved["rows"]] == list(made.rows)
    assert [ReleaseFacts(**fact) for fact in saved["releases"]] == facts
    assert saved["stages"] == [{"stage": n, "seconds": s} for n, s in made.stages]
    assert (saved["floor_fid"], saved["samples"], saved["seed"]) == (62.5, 500, 3)
    assert "grids" not in saved
    assert len(json.dumps(saved)) < 20_000


@pytest.mark.parametrize("rows", [[], [row("base", float("nan"), 1.0)]])
def test_what_cannot_be_reported_is_refused(facts, rows):
    with pytest.raises(DataError, match="finite"):
        report(facts, rows=rows)


def test_releases_of_the_same_data_add_up(facts):
    together = composed_epsilon(facts)
    delta = 1e-5 - sum(f.delta_discretisation for f in facts)
    events = [event_from_json(f.event) for f in facts]
    assert together == pytest.approx(pld_epsilon(events, delta), abs=1e-4)
    assert 2.0 < together < 4.0
    assert composed_epsilon(facts[:1]) is None
    other = dataclasses.replace(facts[1], adjacency="replace-one")
    assert composed_epsilon([facts[0], other]) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_show_the_very_pixels(channels):
    images = pictures(5, channels=channels)
    source = inline_png(images, columns=3, zoom=2)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))[::2, ::2]
    shown = shown.reshape(56, 84, channels)
    for index, pixels in enumerate(to_uint8(images)):
        top, left = 28 * (index // 3), 28 * (index % 3)
        assert np.array_equal(shown[top : top + 28, left : left + 28], pixels)
    assert not shown[28:, 56:].any()


@pytest.mark.parametrize("width", [340, 1000])
def test_bars_are_as_long_as_their_values(width):
    values = (400.0, 100.0, 250.0)
    bars = [Bar(label=f"b{v}", value=v, text=f"{v:.0f}", accent=v == 100.0) for v in values]
    svg = bar_chart(bars, floor=50.0, floor_text="floor", width=width)
    lengths = [
        max(xs) - min(xs)
        for d in re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--(?:bar|accent)\)', svg)
        for xs in [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", d)]]
    ]
    assert len(lengths) == 3
    assert np.array(lengths) / lengths[0] == pytest.approx(np.array(values) / 400.0, abs=1e-4)
    assert svg.count("var(--floor)") == 1 + (1 if width >= 600 else len(bars))
    assert "#0" not in svg  # every colour follows light and dark


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        ((300, 2.0, 0.01), (400, 2.5, 0.01), 1),
        ((400, 2.5, 0.01), (300, 2.0, 0.01), -1),
        ((300, 2.0, 0.01), (400, 1.5, 0.01), 0),  # the metrics disagree
        ((300, 2.0, 0.01), (400, 2.1, 0.20), 0),  # within the spread of KID
        ((300, 2.0, None), (400, 2.1, None), 1),
    ],
)
def test_better_means_by_both_metrics_and_beyond_their_spread(ours, other, expected):
    rows = [row("x", fid, kid, kid_std=std) for fid, kid, std in (ours, other)]
    assert compare(*rows) == expected


@given(st.lists(st.tuples(st.floats(1, 900), st.floats(-0.1, 9)), min_size=5, max_size=5))
def test_the_reading_never_says_more_than_the_table(figures):
    given_rows = [
        dataclasses.replace(line, fid=fid, kid=kid)
        for line, (fid, kid) in zip(ROWS, figures, strict=True)
    ]
    base, public_mean, other_task, few, many = given_rows
    text = read_rows(given_rows, floor_fid=60.0, extractor="toy", samples=500, reference=500)
    good = " ".join(s.text for s in text if s.tone == "good")
    for ours in (few, many):
        for control in (base, public_mean, other_task):
            beats = ours.fid < control.fid and ours.kid < control.kid - 0.01
            claims = [
                s for s in text
                if s.tone == "good" and s.text.startswith(ours.label)
                and f"{control.label} (" in s.text.split("beats", 1)[1]
            ]  # fmt: skip
            assert len(claims) == beats
    if not any(compare(ours, public_mean) == 1 for ours in (few, many)):
        assert "private measurement itself" not in good
        assert sum("beyond what one shared public adapter" in s.text for s in text) == 2
    top = verdict(given_rows, floor_fid=60.0)
    wins = [compare(many, control) == 1 for control in (base, public_mean, other_task)]
    assert (top.tone == "good") == all(wins)
    assert top.text.startswith(many.label)


def test_the_recovered_gain_is_told_where_it_is_known():
    rows = [*ROWS, row("lora", 239.0, 1.0, n=2000)]
    told = " ".join(
        s.text for s in read_rows(rows, floor_fid=60.0, extractor="t", samples=9, reference=9)
    )
    assert f"{(439 - 318) / (439 - 239):.2f} of what training on all" in told
    assert "From 128 to 2,000 records at the same ε, the images come closer" in told
    assert "Recovered gain" not in " ".join(
        s.text for s in read_rows(ROWS, floor_fid=60.0, extractor="t", samples=9, reference=9)
    )


def test_without_hyperdp_in_the_table_nothing_is_said_of_it():
    assert verdict(ROWS[:3], floor_fid=60.0) is None
    alone = verdict(ROWS[-1:], floor_fid=60.0)
    assert (alone.tone, "closer" in alone.text) == ("plain", False)
    found = read_rows(ROWS[:3], floor_fid=60.0, extractor="t", samples=9, reference=9)
    assert {s.tone for s in found} == {"plain"}


def test_numbers_and_durations_as_people_write_them():
    values = (439.4, 62.04, 2.857, 0.0041, -0.002, 1234.5, 99.96, 0.0)
    assert [number(v) for v in values] == [
        "439", "62.0", "2.86", "0.004", "-0.002", "1,234", "100", "0.00",
    ]  # fmt: skip
    assert [duration(s) for s in (0.04, 9.96, 59.6, 60.0, 188.2)] == [
        "0.0 s", "10 s", "1 min 00 s", "1 min 00 s", "3 min 08 s",
    ]  # fmt: skip
