"""Folders that the public stage writes: one run each, whole or not at all, and nothing lost."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hyperdp.cli._app import run
from hyperdp.errors import BundleError, DataError, UsageError
from hyperdp.folders import replaced_folder
from hyperdp.forecast import FORECAST_FILE, Forecast, load_forecast
from hyperdp.guard import load_guard
from hyperdp.manifest import MANIFEST, MEASURED
from hyperdp.pretrain import corpus as corpus_module
from hyperdp.pretrain import faces
from hyperdp.pretrain import forecast as pretrain_forecast
from hyperdp.pretrain.average import average_runs
from hyperdp.pretrain.checkpoint import CHECKPOINT
from hyperdp.pretrain.command import run_base, run_hyper
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.faces import Face
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.run_folder import LOCK, RECIPE, claimed, run_settings
from hyperdp.pretrain.tasks import Parting, TaskMix, TaskSampler
from hyperdp.pretrain.values import build
from tests.guards import gaussian_guard
from tests.pipelines import stable_diffusion_folder
from tests.test_plan import _table
from tests.worlds import tiny_bundle

TEXT_BASE = """kind = "base"
family = "causal-lm"
corpus = "text-sample"
length = 24
vocab_size = 300
batch_size = 4
[model]
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[loop]
steps = 2
warmup = 1
"""
TEXT_HYPER = """kind = "hyper"
family = "causal-lm"
corpus = "text-sample"
name = "t"
base = "BASE"
length = 24
tasks = 4
queries = 2
support = 8
support_grad = 4
[encoder]
embed_dim = 8
width = 16
layers = 1
hidden = 16
[hypernetwork]
rank = 2
basis = 4
[loop]
steps = 2
warmup = 1
workers = 2
"""


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return run_base(_write(folder / "b.toml", TEXT_BASE), folder / "b", None)


def _hyper(folder: Path, base: Path, *, old: str = "", new: str = "") -> str:
    text = TEXT_HYPER.replace("BASE", str(base)).replace(old, new)
    return _write(folder / "h.toml", text)


def test_a_finished_run_keeps_its_bundle_and_what_was_measured_of_it(
    tmp_path: Path, base: Path
) -> None:
    recipe, out = _hyper(tmp_path, base), tmp_path / "a run"
    made = run_hyper(recipe, out, None, base=None, command="first")
    for name in MEASURED:
        (made.path / name).write_text("hours of work")
    again = run_hyper(recipe, out, None, base=None, command="another command")
    assert again.hash == made.hash
    assert all((made.path / name).read_text() == "hours of work" for name in MEASURED)
    longer = run_hyper(recipe, out, 3, base=None, command="more")
    assert longer.hash != made.hash
    aside = out / "bundle.1"
    assert all((aside / name).read_text() == "hours of work" for name in MEASURED)
    assert not any((longer.path / name).exists() for name in MEASURED)
    with pytest.raises(UsageError, match="steps of at least 3"):
        run_hyper(recipe, out, 2, base=None, command="fewer")


def test_a_run_goes_on_with_its_own_recipe_base_and_corpus_alone(
    tmp_path: Path, base: Path
) -> None:
    out = tmp_path / "run"
    run_hyper(_hyper(tmp_path, base), out, 1, base=None, command="")
    for old, new, key in (
        ("warmup = 1", "warmup = 1\nlr = 1e-4", r"loop\.lr \(0\.001 before, 0\.0001 now\)"),
        ("support = 8", "support = 9", "support"),
        ("rank = 2", "rank = 3", r"hypernetwork\.rank"),
        ("tasks = 4", "tasks = 2", "tasks"),
    ):
        with pytest.raises(UsageError, match=key):
            run_hyper(_hyper(tmp_path, base, old=old, new=new), out, 2, base=None, command="")
    other = run_base(
        _write(tmp_path / "b.toml", TEXT_BASE.replace("steps = 2", "steps = 3")),
        tmp_path / "other", None,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"another base \(weights "):
        run_hyper(_hyper(tmp_path, base), out, 2, base=other, command="")
    with pytest.raises(UsageError, match=r"found another .* more\."):
        run_hyper(_hyper(tmp_path, base), other, 2, base=None, command="")
    free = _hyper(tmp_path, base, old="warmup = 1", new="warmup = 1\ncheckpoint_every = 7")
    assert run_hyper(free, out, 2, base=None, command="").hash
    told = json.loads((out / RECIPE).read_text())
    assert told["loop"]["checkpoint_every"] == 7 and told["corpus"]


def test_a_base_with_another_scheduler_or_prompt_is_another_base(tmp_path: Path) -> None:
    base = stable_diffusion_folder(tmp_path / "sd")
    config, out = {"loop": {"steps": 3}}, tmp_path / "run"

    @dataclasses.dataclass
    class Config:
        loop: dict[str, int]

    def begin() -> None:
        with claimed(out, run_settings("hyper", Config(**config), corpus="c", base=base)):
            (out / CHECKPOINT).touch()

    begin()
    begin()
    scheduler = base / "scheduler" / "scheduler_config.json"
    whole = scheduler.read_text()
    scheduler.write_text(json.dumps({**json.loads(whole), "prediction_type": "v_prediction"}))
    with pytest.raises(UsageError, match="another base_settings"):
        begin()
    scheduler.write_text(whole)
    (base / "prompt.json").write_text('{"text": "a dog"}')
    with pytest.raises(UsageError, match="another base_settings"):
        begin()
    # A run from before this was noted takes it as it is now.
    told = json.loads((out / RECIPE).read_text())
    del told["base_settings"]
    (out / RECIPE).write_text(json.dumps(told))
    begin()
    assert "base_settings" in json.loads((out / RECIPE).read_text())


def test_dropout_and_threads_that_share_a_generator_do_not_go_together(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    for workers, p in ((1, 0.2), (2, 0.0)):
        module[1].p = p
        Loop(LoopConfig(steps=1, workers=workers), module, lambda *_: None, tmp_path / f"{workers}")
    module[1].p = 0.2
    with pytest.raises(UsageError, match="dropout"):
        Loop(LoopConfig(steps=1, workers=2), module, lambda *_: None, tmp_path / "both")


def test_one_process_trains_in_a_folder(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process"):
            run_hyper(_hyper(tmp_path, base), out, None, base=None, command="")


def test_two_shares_of_texts_are_a_step_of_the_same_tasks(tmp_path: Path, base: Path) -> None:
    """Each share has its own hooks, and the tasks of a step are divided."""
    drawn: list[int] = []
    from hyperdp.pretrain.text_tasks import TextTaskSampler

    whole = TextTaskSampler.draw_rows

    def counted(self: TextTaskSampler, count: int, *rest: Any) -> Any:
        drawn.append(count)
        return whole(self, count, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTaskSampler, "draw_rows", counted)
        run_hyper(_hyper(tmp_path, base), tmp_path / "run", None, base=None, command="")
    assert drawn.count(2) >= 4 and 4 not in drawn  # two steps of two shares of two tasks each
    odd = _hyper(tmp_path, base, old="tasks = 4", new="tasks = 3")
    with pytest.raises(UsageError, match="tasks = 3, workers = 2"):
        run_hyper(odd, tmp_path / "odd", None, base=None, command="")


def test_a_folder_is_replaced_whole_and_no_strangers_file_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with replaced_folder(target, mark="mark") as draft:
        (draft / "mark").write_text("1")
    assert (tmp_path / "b.1" / "thesis.txt").read_text() == "mine"
    with replaced_folder(target, mark="mark", kept=["dear"]) as draft:
        (draft / "mark").write_text("2")
        (draft / "dear").write_text("2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.1"]
    with (
        pytest.raises(ZeroDivisionError),
        replaced_folder(target, mark="mark", kept=["dear"]) as draft,
    ):
        (draft / "mark").write_text("3")
        raise ZeroDivisionError
    assert (target / "mark").read_text() == "2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.1"]
    with replaced_folder(target, mark="mark", kept=["dear"]):
        pass
    assert (tmp_path / "b.2" / "dear").read_text() == "2" and not any(target.iterdir())


def test_an_average_is_not_written_over_anything(tmp_path: Path) -> None:
    first = tiny_bundle(tmp_path / "first")
    second = tmp_path / "second"
    second.mkdir()
    (second / CHECKPOINT).write_bytes(b"a run")
    for out in (first.path, second):
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(UsageError, match="to be new, or an empty folder"):
            average_runs(first.path, second, share=0.5, out=out)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def _loop(folder: Path, *, width: int = 3, steps: int = 4) -> Loop:
    torch.manual_seed(0)
    module = nn.Linear(width, 1)

    def step(rng: torch.Generator, worker: int) -> tuple[torch.Tensor, dict[str, float]]:
        return module(torch.randn(8, width, generator=rng)).square().mean(), {}

    return Loop(LoopConfig(steps=steps, warmup=1, log_every=1), module, step, folder)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    _loop(tmp_path).run("x")
    with pytest.raises(UsageError, match="another size there: weight"):
        _loop(tmp_path, width=4)
    with pytest.raises(UsageError, match="steps of at least 4"):
        _loop(tmp_path, steps=3)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        (tmp_path / CHECKPOINT).write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="damaged"):
            _loop(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", -5), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")),
        ("workers", 0), ("checkpoint_every", 0), ("validate_every", 0), ("log_every", 0),
        ("warmup", -1), ("ema", 1.0), ("beta2", 1.0), ("clip", 0.0), ("clip", float("nan")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        LoopConfig(**{"steps": 3, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"), [("lr", "fast"), ("steps", 2.5), ("steps", True), ("bf16", 1)]
)
def test_values_of_another_type_are_refused(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{key} of LoopConfig to be of the type"):
        build(LoopConfig, {"steps": 3, key: value})
    assert build(LoopConfig, {"steps": 3, "lr": 1}).lr == 1


def test_recipes_that_say_too_little_are_refused_without_a_traceback(tmp_path: Path) -> None:
    no_loop = _write(tmp_path / "n.toml", TEXT_BASE.split("[loop]", maxsplit=1)[0])
    assert run(["pretrain", "base", no_loop, "-o", str(tmp_path / "n")]) == 2
    assert run(["pretrain", "base", no_loop, "-o", str(tmp_path / "n"), "--steps", "0"]) == 2
    (tmp_path / "latin.toml").write_bytes('kind = "base" # é'.encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        run_base(str(tmp_path / "latin.toml"), tmp_path / "l", None)
    odd = _write(tmp_path / "o.toml", TEXT_BASE.replace("warmup = 1", "warmup = 1\nworkers = 3"))
    with pytest.raises(UsageError, match="batch_size = 4, workers = 3"):
        run_base(odd, tmp_path / "o", None)


def _forecast(bundle_hash: str, *likes: str, quantities: tuple[str, ...] = ("loss",)) -> Forecast:
    tables = [
        dataclasses.replace(_table(9), like=like, quantity=quantity)
        for like in likes
        for quantity in quantities
    ]
    return Forecast(
        bundle="t", bundle_hash=bundle_hash, tables=tables, made={like: {} for like in likes}
    )


def _add(folder: Path, like: str) -> None:
    _forecast("ab" * 32, like).add_to(folder)


def test_two_processes_that_end_together_lose_no_table(tmp_path: Path) -> None:
    start = multiprocessing.get_context("fork")
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        others = [start.Process(target=_add, args=(folder, like)) for like in ("print", "hand")]
        for other in others:
            other.start()
        for other in others:
            other.join()
        assert sorted(load_forecast(folder, "ab" * 32).likes) == ["hand", "print"]


def test_hours_of_measuring_do_not_begin_where_the_tables_have_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    asked: list[str] = []

    def make_tables(bundle: Any, corpus: Any, config: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(config.like)
        return [dataclasses.replace(_table(9), like=config.like)]

    monkeypatch.setattr(pretrain_forecast, "make_tables", make_tables)
    words = ["pretrain", "forecast", str(bundle.path), "--corpus", "sample", "--no-guard"]
    words += ["--tasks", "9", "--lora-steps", "1"]
    _forecast(bundle.hash, "any", quantities=("loss", "fid")).save(bundle.path)
    before = (bundle.path / FORECAST_FILE).read_bytes()
    assert run(words) == 2 and not asked
    assert "--fid" in capsys.readouterr().err
    assert (bundle.path / FORECAST_FILE).read_bytes() == before
    assert run([*words, "--like", "hand"]) == 0 and asked == ["hand"]
    assert load_forecast(bundle.path, bundle.hash).quantities("any") == {"loss", "fid"}
    other = tmp_path / "other"
    other.mkdir()
    _forecast("cd" * 32, "any").save(other)
    assert run([*words, "-o", str(other)]) == BundleError.exit_code and asked == ["hand"]
    assert run([*words, "--no-table"]) == 2
    assert "something to make" in capsys.readouterr().err


def test_a_guard_of_many_numbers_is_as_good_after_a_round_trip(tmp_path: Path) -> None:
    """Half precision once left its scatter with negative eigenvalues."""
    k = 256
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((k, 40)) / 40  # of rank 40: most eigenvalues are nought
    guard = dataclasses.replace(
        gaussian_guard("ab" * 32),
        reference=rng.standard_normal((60, k)) / k, foreign=rng.standard_normal((60, k)) / 40,
        calibration=rng.standard_normal((60, k)) / k, spectra=np.ones((60, k)) / k,
        scatter=factor @ factor.T,
    )  # fmt: skip
    mean = rng.standard_normal(k) / k
    before = guard.p_value(mean, noise_std=0.01, units=200.0)
    guard.save(tmp_path)
    found = load_guard(tmp_path, "ab" * 32)
    assert found is not None
    assert found.p_value(mean, noise_std=0.01, units=200.0) == pytest.approx(before, abs=0.1)


def _some_faces(folder: Path, count: int) -> list[Face]:
    """Files that stand for fonts."""
    files = [folder / f"face{i}.ttf" for i in range(count)]
    for file in files:
        file.write_bytes(b"x" * (len(file.name)))
    return [Face(str(file), "f", "noto", 400, False, False, False) for file in files]


def test_a_cache_of_other_fonts_is_refused_and_half_of_the_fonts_are_no_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path / "cache"))
    found = _some_faces(tmp_path, 3)
    monkeypatch.setattr(corpus_module, "open_faces", lambda: found)
    monkeypatch.setattr(corpus_module, "fonts_installed", lambda: True)
    monkeypatch.setattr(corpus_module, "render", lambda progress, faces: open_sample())
    assert len(corpus_module.open_corpus()) == len(open_sample())
    assert corpus_module.open_corpus().digest == open_sample().digest
    found = found[:2]
    with pytest.raises(DataError, match="1 of these missing or changed, and 0 new"):
        corpus_module.open_corpus()
    monkeypatch.setattr(corpus_module, "fonts_installed", lambda: False)
    assert len(corpus_module.open_corpus())  # a machine without the fonts takes the cache
    ink = corpus_module.cache_folder() / "ink.npy"
    ink.write_bytes(ink.read_bytes()[:1000])
    with pytest.raises(DataError, match="cache of rendered glyphs"):
        corpus_module.open_corpus()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="room for one"):
        corpus_module.open_corpus()

    for source in ("noto", "aenigma"):
        (tmp_path / "fonts" / source).mkdir(parents=True)
        _some_faces(tmp_path / "fonts" / source, 3)
    monkeypatch.setattr(faces, "FONT_ROOT", tmp_path / "fonts")
    with pytest.raises(DataError, match="at least 300 faces"):
        faces.open_faces()


@pytest.mark.parametrize("mixture", [0.0, 1.0])
def test_unseen_records_of_a_task_are_of_glyphs_that_no_other_record_shows(mixture: float) -> None:
    corpus = open_sample()
    drawn: list[Any] = []

    class Watched(TaskSampler):
        def render(self, rows: Any, style: Any, rng: torch.Generator) -> torch.Tensor:
            drawn.append(rows)
            return super().render(rows, style, rng)

    sampler = Watched(corpus, 1, TaskMix(mixture=mixture, everything=0.0))
    images = sampler.draw(6, 90, torch.Generator().manual_seed(0), unseen=30)
    assert images.shape == (6, 90, 1, 28, 28)
    [rows] = drawn
    for task in rows:
        assert not {*task[:60].tolist()} & {*task[60:].tolist()}
    sampler.draw(6, 90, torch.Generator().manual_seed(0))
    assert any({*task[:60].tolist()} & {*task[60:].tolist()} for task in drawn[-1])


def test_a_parting_gives_every_pool_two_parts_and_one_row_to_both() -> None:
    parting = Parting(1000, np.random.default_rng(0))
    seen, unseen = parting.of(np.arange(1000))
    assert 600 < len(seen) < 730 and {*seen} | {*unseen} == {*range(1000)}
    assert not {*seen} & {*unseen}
    for lone in (0, 1, 2, 3, 4, 5):
        assert [part.tolist() for part in parting.of(np.array([lone]))] == [[lone], [lone]]


def test_a_start_of_gradients_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    from hyperdp.pretrain.text_gradients import _known_start, _noted

    assert _known_start(tmp_path / "none", "x") == {} and _noted(tmp_path / "none") == {}
    for content in (b"", b"{", b"[]", b"\xff"):
        (tmp_path / "note").write_bytes(content)
        assert _noted(tmp_path / "note") == {} and _known_start(tmp_path / "note", "x") == {}


def test_the_manifest_says_what_is_a_bundle(tmp_path: Path) -> None:
    assert (tiny_bundle(tmp_path / "tiny").path / MANIFEST).is_file()
    assert load_file(tmp_path / "tiny" / "encoder.safetensors")
