"""The README, tried as a reader would: its commands and its Python, on a tiny bundle."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdp.cli._app import COMMANDS, run
from tests.worlds import tiny_bundle

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A reader's folder: some scans, and a bundle called glyphs that needs no training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr("hyperdp.bundle.SHIPPED", tmp_path / "bundles")
    tiny_bundle(tmp_path / "bundles" / "glyphs", name="glyphs")
    (tmp_path / "scans").mkdir()
    for number in range(200):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / "scans" / f"{number}.jpg")
    return tmp_path


def test_the_four_calls(folder):
    (shell,) = blocks("sh")
    calls = [shlex.split(line) for line in shell.splitlines()]
    assert len(calls) == 4
    for program, command, *words in calls:
        assert program == "hyperdp"
        if command not in COMMANDS:
            pytest.skip(f"`hyperdp {command}` is not there yet")
        assert run([command, *words]) == 0, command
    assert len(list((folder / "out" / "images").glob("[0-9]*.png"))) == 100


def test_the_ten_lines_of_python_and_the_adapter_without_hyperdp(folder):
    first, second = blocks("python")
    names = {}
    exec(first, names)  # noqa: S102 - the README's own text
    assert names["images"].shape == (100, 1, 28, 28)
    assert torch.isfinite(names["images"]).all()
    assert len([line for line in first.splitlines() if line]) <= 10
    exec(second, {"BUNDLE": folder / "bundles" / "glyphs"})  # noqa: S102
    assert "hyperdp" not in second


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        page = Path(__file__).parent.parent / name
        assert page.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_no_figure_is_typed_by_hand():
    table = README.split("<!-- table:glyphs-gain -->")[1].split("<!-- /table:glyphs-gain -->")[0]
    outside = README.replace(table, "")
    for sentence in re.split(r"(?<=[.:;])\s", outside):
        if re.search(r"\b(FID|KID|gain)\b", sentence):
            assert not re.search(r"\d[.]\d|\b\d\d+ ?%", sentence), sentence
    versions = {"2.13", "3.11", "2.0"}  # of torch, Python and the licence
    assert set(re.findall(r"\d+\.\d+", outside)) <= versions
