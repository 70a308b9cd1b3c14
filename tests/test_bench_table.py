"""The benchmark's table from its rows: the same whatever the order, and what the docs hold."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from hyperdp.bundle import load_bundle
from hyperdp.cli._app import run
from hyperdp.errors import DataError
from hyperdp.eval.bench_recipe import cells, read_bench_recipe
from hyperdp.eval.bench_table import bench_table, in_order, stored_caption, stored_rows
from hyperdp.eval.cells import Cell
from hyperdp.eval.earlier import base_name, measured_base
from hyperdp.eval.kept_pictures import SHOWN, Pictures
from hyperdp.eval.results import append_rows, check_marks, render_into
from tests.bench_rows import bench_rows, quick_config
from tests.worlds import tiny_bundle

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def test_the_table_is_the_recipes_whatever_the_order_of_the_rows() -> None:
    config = quick_config()
    rows = bench_rows(config)
    table = bench_table(config, rows)
    for seed in range(5):
        mixed = rows.copy()
        random.Random(seed).shuffle(mixed)
        assert bench_table(config, mixed) == table
    methods = re.findall(r"^\| digits \| (\w+)", table, re.MULTILINE)
    assert methods == ["floor", "base", "lora", "public_mean", "other_task", *["hyper"] * 6]
    stray = dataclasses.replace(rows[0], private_set="another")
    assert in_order(config, [stray, *rows])[-1] == stray


def test_rendering_twice_is_rendering_once(tmp_path: Path) -> None:
    config = quick_config()
    page = tmp_path / "page.md"
    page.write_text(f"ε above\n<!-- table:{config.bench} -->\n<!-- /table:{config.bench} -->\n")
    pages = []
    for _ in range(2):
        render_into(page, config.bench, bench_table(config, bench_rows(config)))
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    assert b"| digits | base |" in pages[0]


LABELLED = {
    "labelled-quick",
    "classifier-ablation",
    "tune-classifier",
    "tune-classifier-eps1",
    "tune-from-public",
    "tune-by-budget",
    "tune-labelled-lora",
    "labelled-fashion",
}


def test_the_docs_hold_what_their_command_renders_and_nothing_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "benchmarks.md"
    shutil.copy(PAGE, page)
    names = re.findall(r"<!-- table:([\w-]+) -->", PAGE.read_text(encoding="utf-8"))
    assert {"glyphs-gain", "bench-quick"} <= set(names)
    for name in names:
        command = "labelled" if name in LABELLED else "bench"
        assert run([command, name, "--table-only", "--into", str(page)]) == 0
    capsys.readouterr()
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_a_page_without_marks_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    assert run(["bench", "bench-quick", "--into", str(page), "-o", str(tmp_path / "r")]) == 2
    assert "table:bench-quick" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    with pytest.raises(DataError, match="not both"):
        check_marks(page, "x")


def test_rows_of_another_bundle_are_in_no_table_but_their_own(tmp_path: Path) -> None:
    config = dataclasses.replace(quick_config(), bundle="glyphs")
    out = tmp_path / "rows.jsonl"
    rows = bench_rows(config)
    old = [dataclasses.replace(row, base="glyphs-00000001") for row in rows]
    older = [dataclasses.replace(row, base="glyphs-00000000", value=-1.0) for row in rows]
    append_rows(out, [*older, *old])
    assert stored_rows(config, out) == []
    assert stored_rows(config, out, earlier=True) == in_order(config, old)
    present = base_name(load_bundle("glyphs"))
    assert stored_caption(config, out) == (
        f"Measured with the bundle glyphs-00000001; not yet again with {present}.\n\n"
    )
    new = dataclasses.replace(rows[0], base=present)
    append_rows(out, [new])
    assert stored_rows(config, out, earlier=True) == stored_rows(config, out) == [new]
    assert stored_caption(config, out) == ""
    other = dataclasses.replace(config, bench="another")
    assert stored_rows(other, out, earlier=True) == []
    assert stored_caption(other, out) == ""


def test_rows_of_a_bundle_with_a_setting_beside_are_that_bundles() -> None:
    row = dataclasses.replace(bench_rows(quick_config())[0], bench="b", base="x-12345678-abc")
    assert measured_base([row], "b", "x-12345678") == "x-12345678"
    assert measured_base([row], "b", "x-00000000") == "x-12345678"
    assert measured_base([dataclasses.replace(row, base="cnn-123")], "b", "x-0") == "x-0"


@pytest.mark.parametrize("name", ["bench-quick", "bench-full"])
def test_shipped_recipes_have_controls_the_reference_and_a_floor(name: str) -> None:
    recipe = read_bench_recipe(str(PAGE.parents[1] / "eval" / "recipes" / f"{name}.toml"))
    assert recipe == read_bench_recipe(name)
    assert recipe.bench == name
    assert {"floor", "base", "public_mean", "other_task", "lora", "hyper"} <= set(recipe.methods)
    assert {128, 2000} <= set(recipe.n)
    assert len(recipe.epsilon) == 3  # a curve
    assert len(set(cells(recipe))) == len(list(cells(recipe)))


def test_pictures_are_found_again_by_cell_and_by_no_other(tmp_path: Path) -> None:
    pictures = Pictures(folder=tmp_path / "new")
    cell = Cell(private_set="runs/a b.npz", method="hyper", n=128, epsilon=0.2, seed=1)
    assert pictures.find(cell) is None
    images = torch.rand(SHOWN + 9, 1, 28, 28) * 2 - 1
    pictures.keep(cell, images)
    kept = pictures.find(cell)
    assert kept is not None and kept.startswith(b"\x89PNG")
    assert [p.name for p in pictures.folder.iterdir()] == [pictures.path(cell).name]
    for change in ({"seed": 0}, {"epsilon": 2.0}, {"n": None}, {"method": "lora"}):
        assert pictures.find(dataclasses.replace(cell, **change)) is None
    pictures.keep(cell, images[:0])
    assert pictures.find(cell) == kept


@pytest.mark.parametrize(
    "words", [["bench", "bench-quick", "-e", "3"], ["labelled", "labelled-quick", "-n", "7"]]
)
def test_a_cell_that_the_recipe_does_not_have_is_refused(words, tmp_path: Path, capsys) -> None:
    assert run([*words, "-o", str(tmp_path / "r.jsonl")]) == 2
    assert "out of the recipe's" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["bench", "labelled"])
def test_a_recipe_can_be_of_another_bundle_and_its_table_is(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_bundle(tmp_path / "somewhere", name="other")
    recipe, metric = (
        ("bench-quick", "fid") if command == "bench" else ("labelled-quick", "accuracy")
    )
    seen = dataclasses.replace(
        bench_rows(quick_config())[0],
        bench=recipe, private_set="mnist-5k", method="hyper", n=2000, epsilon=1.0, metric=metric,
    )  # fmt: skip
    path = tmp_path / "rows.jsonl"
    shipped = base_name(load_bundle("glyphs"))
    for base, value in ((base_name(other), 17.0), (shipped, 23.0)):
        append_rows(path, [dataclasses.replace(seen, base=base, value=value)])
    for words, value in (([], "23"), (["--bundle", str(other.path)], "17")):
        assert run([command, recipe, "--table-only", "-o", str(path), *words]) == 0
        assert f"| hyper | 2,000 | 1 | {value}" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["theory", "text-gain"])
def test_a_bundle_where_none_is_asked_for_is_refused(recipe: str, tmp_path: Path) -> None:
    assert run(["bench", recipe, "--bundle", "glyphs", "-o", str(tmp_path / "r.jsonl")]) == 2
