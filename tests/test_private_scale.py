"""The private sum by one process or many: the same integers, one reservation, one noise draw."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import features
from torch import nn

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BundleError, DataError, UsageError
from hyperdp.ledger import Ledger
from hyperdp.mechanism import MechanismSpec
from hyperdp.private import release as release_module
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import arithmetic, check_independence
from hyperdp.private.forms import Form
from hyperdp.private.on_ray import _Embedder
from hyperdp.private.readers import decoding
from hyperdp.private.readers.decoding import reading
from hyperdp.private.records import Record
from hyperdp.private.release import release
from hyperdp.private.together import owner
from hyperdp.private.workers import Workers
from tests.private_world import DIM, SHAPE, TinyBundle, TinyConfig, own_keys, records
from tests.text_world import text_bundle, tokenizer

__all__ = ["own_keys"]  # a fixture of every test
ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["0", "1", "2"]
BUNDLE = TinyBundle(config=TinyConfig(clip_norm=0.1))
SPEC = MechanismSpec(embedding_dim=DIM, num_classes=3, clip_norm=0.1)
UNITS = ("record", "user")


def _data(count: int = 203) -> list[Record]:
    return records(count, classes=3, users=17)


def _alone(unit: str) -> np.ndarray:
    total = aggregate(_data(), bundle=BUNDLE, spec=SPEC, unit=unit, classes=CLASSES)
    return total.to_vector()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_workers_give_the_sums_of_one_process(count: int):
    with Workers(BUNDLE, count) as workers:
        for unit in UNITS:  # and the same workers serve twice
            shuffled = [_data()[i] for i in np.random.default_rng(count).permutation(203)]
            found = workers.add_up(shuffled, bundle=BUNDLE, spec=SPEC, unit=unit, classes=CLASSES)
            assert np.array_equal(found.to_vector(), _alone(unit))
    assert np.abs(_alone("record")).min() > 0


def test_workers_change_neither_the_ledger_nor_the_number_of_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draws = []
    honest = release_module.add_noise
    monkeypatch.setattr(
        release_module, "add_noise", lambda *given: draws.append(1) or honest(*given)
    )
    ledger, budget = Ledger(tmp_path / "ledger.db"), PrivacyBudget(epsilon=8.0, delta=1e-5)
    with Workers(BUNDLE, 2) as workers:
        made = release(
            _data(), bundle=BUNDLE, budget=budget, ledger=ledger, out=tmp_path / "release",
            dataset="test", classes=CLASSES, add_up=workers.add_up,
        )  # fmt: skip
    assert len(ledger.account("test").events) == 1
    assert made.certificate.epsilon == budget.epsilon
    assert draws == [1]


class FailsOnHalves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 0.5).all(dim=(1, 2, 3)).any()):
            raise RuntimeError("a secret of seven")
        return x.flatten(1)[:, :DIM]


class ToldByItsProcess(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :DIM] + os.getpid() % 1000


class MixesElsewhere(nn.Module):
    """Keeps records apart in the process that checks it, and nowhere else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        elsewhere = os.environ["HOME_PROCESS"] != str(os.getpid())
        return x.flatten(1)[:, :DIM] + x.nanmean() * elsewhere


class Drifting(nn.Module):
    """Remembers how many batches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x.flatten(1)[:, :DIM]


def test_a_worker_that_fails_tells_nothing(capfd):
    bundle = TinyBundle(encoder=FailsOnHalves())
    data = [*_data(70), Record(image=np.full(SHAPE, 0.5, np.float32), label="1")]
    with Workers(bundle, 2) as workers, pytest.raises(DataError, match="not shown") as refused:
        workers.add_up(data, bundle=bundle, spec=SPEC, unit="record", classes=CLASSES)
    assert refused.value.__cause__ is refused.value.__context__ is None
    shown = capfd.readouterr()
    assert "secret of seven" not in shown.out + shown.err + str(refused.value)


def test_workers_that_round_differently_are_refused_before_they_see_a_record():
    with pytest.raises(BundleError, match="from every process"):
        Workers(TinyBundle(encoder=ToldByItsProcess()), 2).__enter__()


@pytest.mark.parametrize("count", [1, 2])
def test_an_encoder_that_mixes_records_in_the_workers_alone_is_refused(
    count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME_PROCESS", str(os.getpid()))
    bundle = TinyBundle(encoder=MixesElsewhere())
    check_independence(bundle)
    with pytest.raises(BundleError, match="companions"):
        Workers(bundle, count).__enter__()


def test_an_encoder_that_changes_in_a_worker_is_refused():
    bundle = TinyBundle(encoder=Drifting())
    with Workers(bundle, 2) as workers, pytest.raises(BundleError, match="before and after"):
        workers.add_up(_data(), bundle=bundle, spec=SPEC, unit="record", classes=CLASSES)


def test_what_a_broken_sum_left_behind_is_never_taken_for_the_next_ones():
    def breaks_off():
        yield from _data(192)
        raise RuntimeError("a secret of seven")

    given = {"bundle": BUNDLE, "spec": SPEC, "unit": "record", "classes": CLASSES}
    with Workers(BUNDLE, 2) as workers:
        with pytest.raises(DataError, match="not shown"):
            workers.add_up(breaks_off(), **given)
        with pytest.raises(UsageError, match="broke off"):
            workers.add_up(_data(), **given)


def test_a_worker_that_ended_is_an_error_of_ours_without_context():
    with Workers(BUNDLE, 2) as workers:
        workers._processes[1].kill()
        workers._processes[1].join()
        with pytest.raises(BundleError, match="one that has ended") as refused:
            workers.add_up([], bundle=BUNDLE, spec=SPEC, unit="record", classes=CLASSES)
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_on_ray_two_users_whose_names_differ_in_a_nul_are_two():
    actor = _Embedder(BUNDLE.encoder, FORM, SPEC, "user", CLASSES)
    names = ["a", "a\x00", "a\x00\x00", "\x00a"]
    rows = records(4, classes=3)
    batch = {
        "image": np.stack([r.image for r in rows]),
        "label": np.array([r.label for r in rows], dtype=object),
        "unit": np.array(names, dtype=object),
    }
    assert actor(batch)["unit"].tolist() == names


def test_workers_serve_their_own_bundle_and_are_at_least_one():
    with pytest.raises(UsageError, match="workers >= 1"):
        Workers(BUNDLE, 0)
    other = TinyBundle(name="other")
    with Workers(BUNDLE, 1) as workers, pytest.raises(BundleError, match="other"):
        workers.add_up([], bundle=other, spec=SPEC, unit="record", classes=CLASSES)


FORM = Form.of(BUNDLE.config)


def test_arithmetic_tells_weights_and_rounding_apart():
    assert arithmetic(BUNDLE.encoder, FORM) == arithmetic(TinyBundle().encoder, FORM)
    changed = TinyBundle().encoder
    with torch.no_grad():
        changed[-1].bias[0] += 1e-7
    assert arithmetic(BUNDLE.encoder, FORM) != arithmetic(changed, FORM)


def test_reading_tells_decoders_apart_by_what_they_give_and_by_their_versions(
    monkeypatch: pytest.MonkeyPatch,
):
    here = reading(BUNDLE)
    assert here == reading(TinyBundle())
    honest = decoding.to_pixels
    for number in range(len(decoding._images())):  # one of the samples, by one bit of one pixel
        seen = []

        def other(*given, number=number, seen=seen):
            pixels = honest(*given)
            if len(seen) == number:
                pixels[0, 6, 6] = np.nextafter(pixels[0, 6, 6], np.float32(2))
            seen.append(given)
            return pixels

        with monkeypatch.context() as patch:
            patch.setattr(decoding, "to_pixels", other)
            assert reading(BUNDLE) != here
    told = features.version
    monkeypatch.setattr(features, "version", lambda name: "9" if name == "jpg" else told(name))
    assert reading(BUNDLE) != here


def test_reading_tells_tokenizers_apart(tmp_path: Path):
    bundle = text_bundle(tmp_path)
    here = reading(bundle)
    assert here == reading(bundle)
    bundle.base.tokenizer.encode = lambda text: tokenizer(25).encode(text)
    assert reading(bundle) != here


@pytest.mark.parametrize("unit", UNITS)
def test_every_record_has_one_owner_whatever_its_place(unit: str):
    data = records(400, classes=3, users=100)
    owners = [owner(record, unit, 4) for record in data]
    assert set(owners) == {0, 1, 2, 3}
    copies = [Record(image=r.image.copy(), label=r.label, unit=r.unit) for r in data]
    assert owners == [owner(copy, unit, 4) for copy in copies]
    if unit == "user":
        odd = Record(image=data[0].image, label=None, unit="a\ud800")  # as JSON may hold
        assert owner(odd, unit, 4) in range(4)
        assert len({(r.unit, o) for r, o in zip(data, owners, strict=True)}) == 100


def _launch(folder: Path, processes: int, unit: str, case: str = "plain") -> list[list[str]]:
    """What each process says: how it ended, noise draws, records read."""
    folder.mkdir()
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), str(ROOT / "tests/together.py"), str(folder), unit, case,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HYPERDP_CONFIG_DIR": str(folder / "config"),
    }
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [(folder / f"said-{i}").read_text().split("|") for i in range(processes)]


@pytest.mark.parametrize(("processes", "unit"), [(1, "record"), (2, "user"), (4, "record")])
def test_launched_processes_give_the_sums_of_one(
    processes: int, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = _launch(tmp_path / "run", processes, unit)
    assert said == [["done", "1" if i == 0 else "0", "203"] for i in range(processes)]
    with np.load(tmp_path / "run/sums.npz", allow_pickle=False) as found:
        vector = np.concatenate([found["sums"].ravel(), found["counts"]])
    assert np.array_equal(vector, _alone(unit))
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "run/config"))
    assert len(Ledger(tmp_path / "run/ledger.db").account("test").events) == 1


@pytest.mark.parametrize("case", ["refused", "unlike", "other decoder", "failing"])
def test_launched_processes_end_together(case: str, tmp_path: Path):
    said = _launch(tmp_path / "run", 2, "record", case)
    assert [draws for _, draws, _ in said] == ["0", "0"]
    assert not (tmp_path / "run/release").exists()
    ends = [end for end, _, _ in said]
    if case == "refused":
        assert ends[0].startswith("BudgetRefusedError") and ends[1] == "done"
    elif case in {"unlike", "other decoder"}:
        assert all(end.startswith("BundleError") for end in ends)
    else:
        assert ends[0].startswith("DataError") and "secret of seven" not in ends[0]
        assert ends[1] == "done"
    nothing_read = case != "failing"
    assert all((read == "0") == nothing_read for _, _, read in said)


@pytest.fixture(scope="module")
def ray_data():
    ray = pytest.importorskip("ray")
    from hyperdp.private import on_ray

    before = _listening()
    on_ray.start_ray(4)
    [folder] = on_ray._folders
    assert all(_is_loopback(place) for place in _listening() - before)
    yield ray.data
    assert all(_is_loopback(place) for place in _listening() - before)
    on_ray.stop_ray()
    assert not folder.exists()


def _listening() -> set[str]:
    """Every address and port that a process of this machine listens at, as the kernel spells it."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
    ]
    return {fields[1] for fields in lines if fields[3] == "0A"}


def _is_loopback(place: str) -> bool:
    address = place.partition(":")[0]
    return address in {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + "0100007F"}


def _rows(data: list[Record]) -> list[dict[str, object]]:
    return [{"image": r.image, "label": r.label, "unit": r.unit} for r in data]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "unit"), [(1, "record"), (2, "record"), (4, "record"), (2, "user")]
)
def test_ray_gives_the_sums_of_one_process(ray_data, workers: int, unit: str):
    from hyperdp.private.on_ray import RaySum

    data = ray_data.from_items(_rows(_data()), override_num_blocks=7)
    found = RaySum(workers)(data, bundle=BUNDLE, spec=SPEC, unit=unit, classes=CLASSES)
    assert np.array_equal(found.to_vector(), _alone(unit))


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_ray_refuses_what_one_process_refuses(ray_data, unit: str):
    from hyperdp.private.on_ray import RaySum

    bad = Record(image=np.zeros(SHAPE, np.float32), label="a very private label", unit="user-1")
    data = ray_data.from_items(_rows([*_data(70), bad]))
    with pytest.raises(DataError, match="not shown") as refused:
        RaySum(1)(data, bundle=BUNDLE, spec=SPEC, unit=unit, classes=CLASSES)
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.slow
def test_ray_drops_no_block_in_which_a_record_fails(ray_data, monkeypatch: pytest.MonkeyPatch):
    """As an operator may have set it, one record would take all others of its block with it."""
    from hyperdp.private.on_ray import RaySum

    def upstream(row: dict[str, object]) -> dict[str, object]:
        if row["label"] == "0":
            raise ValueError("a very private value")
        return row

    monkeypatch.setattr(ray_data.DataContext.get_current(), "max_errored_blocks", -1)
    data = ray_data.from_items(_rows(_data(70)), override_num_blocks=2).map(upstream)
    with pytest.raises(DataError, match="not shown"):
        RaySum(1)(data, bundle=BUNDLE, spec=SPEC, unit="record", classes=CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_ray_writes_the_number_of_records_nowhere(ray_data, unit: str, capfd):
    from hyperdp.private import on_ray

    bad = Record(image=np.zeros(SHAPE, np.float32), label="another", unit="user-1")
    given = {"bundle": BUNDLE, "spec": SPEC, "unit": unit, "classes": CLASSES}
    for data in (_data(1237), [*_data(1236), bad]):
        rows = ray_data.from_items(_rows(data), override_num_blocks=7)
        with nullcontext() if data[-1] is not bad else pytest.raises(DataError):
            on_ray.RaySum(2)(rows, **given)
    shown = capfd.readouterr()
    files = [file for file in on_ray._folders[0].rglob("*") if file.is_file()]
    words = [shown.out, shown.err, *(file.read_text(errors="replace") for file in files)]
    assert len(files) > 10
    assert not [word for word in words if re.search(r"\b123[67]\b", word)]


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    from hyperdp.private import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"hyperdp\[ray\]"):
        on_ray.start_ray(1)
