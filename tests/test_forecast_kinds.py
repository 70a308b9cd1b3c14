"""Forecasts of one kind of data: which glyphs a task may show, and tables of several kinds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperdp.cli._app import run
from hyperdp.errors import UsageError
from hyperdp.eval.forecast_check import LIKE, check_forecast, kind_of
from hyperdp.eval.private_sets import PRIVATE_SETS
from hyperdp.forecast import ANY, Forecast, load_forecast
from hyperdp.forecast import LIKE as KINDS
from hyperdp.pretrain import forecast as pretrain_forecast
from hyperdp.pretrain import printed
from hyperdp.pretrain.corpus import Corpus
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.forecast import DEFAULT_UNITS, ForecastConfig, draw_task
from hyperdp.pretrain.forecast_kinds import draw_like, kind_sampler
from hyperdp.pretrain.style import Style
from hyperdp.pretrain.tasks import UNSEEN_SHARE, Rows, TaskMix, TaskSampler
from hyperdp.pretrain.world import GlyphWorld
from tests.test_plan import SPEC, _rows, _table
from tests.worlds import tiny_bundle

MIX = TaskMix(everything=0.0)


class Watched(TaskSampler):
    """Remembers which glyphs were drawn, in which style."""

    drawn: list[tuple[Rows, Style]]

    def render(self, rows: Rows, style: Style, rng: torch.Generator) -> torch.Tensor:
        self.drawn = [*getattr(self, "drawn", []), (rows.reshape(-1), style)]
        return super().render(rows, style, rng)


def _with_letters(corpus: Corpus) -> Corpus:
    """The sample with a held-out alphabet: its held-out glyphs are called 0 to J, and Latin."""
    held = np.nonzero(corpus.split == 1)[0]
    names = {**corpus.names, "char": [*corpus.names["char"], *"0123456789ABCDEFGHIJ"]}
    char, script = corpus.char.copy(), corpus.script.copy()
    char[held] = len(corpus.names["char"]) + np.arange(len(held)) % 20
    latin = [*corpus.names["script"], "Latn"]
    script[held] = len(latin) - 1
    return dataclasses.replace(corpus, char=char, script=script, names={**names, "script": latin})


def test_each_held_out_script_is_one_printed_task_and_no_glyph_of_it_is_record_and_query() -> None:
    corpus = open_sample()
    sampler = Watched(corpus, 1, MIX)
    many = [k for k, p in sampler.scripts.items() if len(np.unique(corpus.face[p])) > 1]
    assert many and len(sampler.scripts) > len(many)  # scripts of several faces, and of one
    seen = []
    for index in range(len(many)):
        rng = torch.Generator().manual_seed(index)
        images = draw_like(sampler, "print", index, records=400, queries=200, rng=rng)
        assert images.shape == (600, 1, 28, 28) and images.abs().max() <= 1
        rows, style = sampler.drawn[-1]
        [script] = {*corpus.script[rows].tolist()}
        seen.append(script)
        assert (corpus.split[rows] == 1).all()
        assert not style.pen.any() and not style.rotation_std.any() and not style.elastic.any()
        assert not {*rows[:400].tolist()} & {*rows[400:].tolist()}
        assert len({*rows[400:].tolist()}) <= round(len(sampler.scripts[script]) * UNSEEN_SHARE)
    assert len({*seen}) == len(seen) and {*seen} == {*many}
    sizes = [len(sampler.scripts[script]) for script in seen]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(UsageError, match=f"at most {len(seen)} tasks"):
        draw_like(sampler, "print", len(seen), records=4, queries=2, rng=rng)


def test_scripts_of_further_fonts_are_printed_tasks_beside_the_held_out_ones() -> None:
    corpus = open_sample()
    names = {
        "script": ["Hang", "Latn", "Bopo"],
        "family": ["nanum"],
        "face": ["NanumGothic", "UnBatang"],
        "char": ["가", "a", "ㄅ"],
    }
    script = np.repeat([0, 1, 2], [60, 40, 30]).astype(np.int32)
    face = np.arange(130, dtype=np.int32) % 2
    face[script == 2] = 1  # one face: no task
    ink = np.random.default_rng(0).integers(0, 255, (130, 48, 48)).astype(np.uint8)
    ink[1] = ink[0]
    other = {name: getattr(corpus, name)[:130] for name in ("weight", "slant", "serif")}
    further = Corpus(
        ink=ink, skeleton=ink, script=script, face=face, char=script.copy(),
        family=np.zeros(130, dtype=np.int32), condensed=other["slant"],
        split=np.zeros(130, dtype=np.int8), names=names, **other,
    )  # fmt: skip
    distinct = printed._distinct(further)
    assert len(distinct) == 129 and distinct.split.all()
    alone = kind_sampler(GlyphWorld(corpus), "print", {})
    sampler = kind_sampler(GlyphWorld(corpus, lambda: distinct), "print", {})
    assert isinstance(alone, TaskSampler) and isinstance(sampler, TaskSampler)
    found = sampler.corpus

    def scripts(of: TaskSampler) -> dict[str, int]:
        return {of.corpus.names["script"][k]: len(rows) for k, rows in of.scripts.items()}

    held = scripts(TaskSampler(corpus, 1, MIX))
    several = {name: count for name, count in held.items() if name in scripts(alone)}
    assert scripts(alone) == several and len(several) < len(held)
    latin = several.get("Latn", 0) + 40
    assert scripts(sampler) == {**several, "Hang": 59, "Latn": latin}
    assert found.split.all() and sampler.corpus.digest != alone.corpus.digest
    last = found.ink[len(alone.corpus) :]
    assert (last == distinct.ink[distinct.script != 2]).all()  # rows and their names go together
    assert {found.names["char"][c] for c in found.char[-40:]} == {"a"}
    assert {found.names["face"][f] for f in found.face[-40:]} == {"NanumGothic", "UnBatang"}
    # Of other kinds, and of data that has no further scripts, nothing changes.
    assert kind_sampler(GlyphWorld(corpus, lambda: distinct), "any", {}).content_classes == (
        TaskSampler(corpus, 1, TaskMix()).content_classes
    )


def test_hands_take_turns_at_digits_and_letters_and_are_never_the_plain_ink() -> None:
    corpus = _with_letters(open_sample())
    sampler = Watched(corpus, 1, MIX, min_pool=4)
    assert len(sampler.digits) == 10 and sampler.cases[0] and not sampler.cases[1]
    shown = []
    for index in range(4):
        rng = torch.Generator().manual_seed(index)
        draw_like(sampler, "hand", index, records=60, queries=30, rng=rng)
        rows, style = sampler.drawn[-1]
        shown.append("".join(sorted({corpus.names["char"][c] for c in corpus.char[rows]})))
        assert style.rotation_std.min() > 0 or style.pen.all()
        assert not {*rows[:60].tolist()} & {*rows[60:].tolist()}
    assert shown[0] == shown[2] == "0123456789" and shown[1] == shown[3] == "ABCDEFGHIJ"
    with pytest.raises(UsageError, match="digits or Latin letters"):
        sample = TaskSampler(open_sample(), 1, MIX)
        draw_like(sample, "hand", 0, records=4, queries=2, rng=torch.Generator())


def test_a_task_is_the_same_for_whoever_comes_to_it() -> None:
    config = ForecastConfig(tasks=2, like="print", units=(16,), queries=8, seed=3)
    first = draw_task(TaskSampler(open_sample(), 1, MIX), config, 1)
    assert torch.equal(first, draw_task(TaskSampler(open_sample(), 1, MIX), config, 1))
    other = dataclasses.replace(config, seed=4)
    assert not torch.equal(first, draw_task(TaskSampler(open_sample(), 1, MIX), other, 1))


def test_tables_of_other_kinds_stay_and_the_plan_takes_the_kind_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    printed = dataclasses.replace(_table(9), like="print")
    better = [[[f - 0.1 for f in row] for row in task] for task in printed.hyper]
    printed = dataclasses.replace(printed, hyper=better)
    made = Forecast(
        bundle="tiny", bundle_hash=bundle.hash, tables=[_table(), printed],
        made={"any": {"seed": 0}, "print": {"seed": 1}},
    )  # fmt: skip
    made.save(bundle.path)
    loaded = load_forecast(bundle.path, bundle.hash)
    assert loaded == made and loaded.likes == ["any", "print"]
    assert loaded.table() == _table() and loaded.table(like="print") == printed
    rest = loaded.without("print")
    assert rest.tables == [_table()] and rest.made == {"any": {"seed": 0}}

    def gains(*words: str) -> Any:
        assert run(["plan", "-b", str(bundle.path), "-n", "500", "--json", *words]) == 0
        facts = json.loads(capsys.readouterr().out)
        return facts["like"], [o["gain"] for o in facts["outlooks"]]

    kind, plain = gains()
    assert kind == "any" and plain == gains("--like", "any")[1]
    kind, better_gains = gains("--like", "print")
    assert kind == "print" and all(a < b for a, b in zip(plain, better_gains, strict=True))
    assert run(["plan", "-b", str(bundle.path), "-n", "500", "--like", "hand"]) == 2
    said = capsys.readouterr().err
    assert "any, print" in said and "hyperdp pretrain forecast --like" in said


def test_making_one_kind_keeps_the_tables_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    kept = dataclasses.replace(_table(9), like="hand")
    Forecast(bundle="tiny", bundle_hash=bundle.hash, tables=[kept], made={"hand": {}}).save(
        bundle.path
    )
    asked: list[ForecastConfig] = []

    def make_tables(bundle: Any, corpus: Any, config: ForecastConfig, *_: Any, **__: Any) -> list:
        asked.append(config)
        return [dataclasses.replace(_table(9 + len(asked)), like=config.like)]

    monkeypatch.setattr(pretrain_forecast, "make_tables", make_tables)
    words = ["pretrain", "forecast", str(bundle.path), "--corpus", "sample", "--no-guard"]
    for like in ("any", "print", "print"):
        assert run([*words, "--tasks", "9", "--lora-steps", "1", "--like", like]) == 0
    assert run([*words, "--tasks", "9", "-n", "90", "-n", "30", "-n", "90"]) == 0
    assert [config.like for config in asked] == ["any", "print", "print", "any"]
    assert [config.units for config in asked[-2:]] == [DEFAULT_UNITS, (30, 90)]
    made = load_forecast(bundle.path, bundle.hash)
    assert made.likes == ["hand", "print", "any"] and made.table(like="hand") == kept
    assert made.table(like="print") == dataclasses.replace(_table(12), like="print")
    assert len(made.tables) == 3 and made.made["hand"] == {}
    assert made.made["print"]["settings"]["finetune"]["steps"] == 1


def test_the_check_takes_each_set_by_its_kind_where_there_is_one() -> None:
    assert {*LIKE} <= {*PRIVATE_SETS} and {*LIKE.values()} <= {*KINDS}
    shifted = dataclasses.replace(
        _table(), like="print", public_mean=_table().public_mean,
        hyper=[[[f - 0.2 * (b - a) for f in row] for row in task]
               for task, a, b in zip(_table().hyper, _table().lora, _table().base, strict=True)],
    )  # fmt: skip
    forecast = Forecast(bundle="tiny", bundle_hash="ab" * 32, tables=[_table(), shifted], made={})
    assert kind_of("khmer", forecast) == "print" and kind_of("mnist-5k", forecast) == ANY
    rows = _rows("tiny-abababab", 0.5)
    named = [dataclasses.replace(row, private_set="khmer") for row in rows]
    found = check_forecast(
        forecast, rows + named, embedding_dim=SPEC.embedding_dim, clip_norm=SPEC.clip_norm
    )
    told = {cell.private_set: cell.gain for cell in found.cells}
    assert told["khmer"] == pytest.approx(told["set"] + 0.2)
