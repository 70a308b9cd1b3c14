import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from hyperdp import chain, keys
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import (
    BudgetRefusedError,
    BundleError,
    DataError,
    UsageError,
    VerificationError,
)
from hyperdp.ledger import Ledger
from hyperdp.private import released
from hyperdp.private.aggregate import aggregate
from hyperdp.private.release import Release, SignalWarning, release
from hyperdp.verification import verify
from tests.private_world import DIM, TinyBundle, TinyConfig, own_keys, records  # noqa: F401
from tests.test_embed import MeanSubtracting

ONE = PrivacyBudget(epsilon=1.0, delta=1e-5)
LOUD = PrivacyBudget(epsilon=100.0, delta=1e-5)  # so little noise that values can be compared


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def make(tmp_path, ledger):
    def run(data, budget=LOUD, *, out="out", **more):
        values = {"bundle": TinyBundle(), "ledger": ledger, "dataset": "digits", **more}
        return release(data, budget=budget, out=tmp_path / out, **values)

    return run


def kinds(ledger):
    return [entry.kind for entry in ledger.history()] if ledger.path.exists() else []


def left_over(tmp_path):
    return {p.name for p in tmp_path.iterdir()} - {"ledger.db", "config"}


def test_a_release_is_written_verified_and_read_back(make, tmp_path, ledger):
    made = make(records(400), ONE)
    loaded = Release.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.sums, made.sums)
    assert loaded.certificate == made.certificate
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "release.safetensors",
        "certificate.json",
    }
    verify(tmp_path / "out", ledger=ledger.path)
    assert kinds(ledger) == ["cap", "reserve", "spend", "commit"]
    assert left_over(tmp_path) == {"out"}


def test_mean_count_and_noise_std_have_their_shapes_and_values(make):
    made = make(records(300, classes=3), classes=["0", "1", "2"])
    mean, std, count = made.mean(), made.mean_noise_std(), made.count()
    assert (mean.shape, mean.dtype) == ((3, DIM), torch.float32)
    assert (std.shape, std.dtype) == ((3,), torch.float32)
    assert (count.shape, count.dtype) == ((3,), np.float64)
    np.testing.assert_allclose(count, 100, atol=2)
    spec = made.certificate.spec
    exact = aggregate(
        records(300, classes=3),
        bundle=TinyBundle(),
        spec=spec,
        unit="record",
        classes=["0", "1", "2"],
    )
    np.testing.assert_allclose(mean, exact._sums / 2**24 / 100, atol=0.02)
    tau = made.certificate.noise_multiplier
    np.testing.assert_allclose(std, tau * np.sqrt(1 + 1 / 16) / count, rtol=1e-5)
    assert made.classes == ["0", "1", "2"]


@pytest.mark.filterwarnings("ignore::hyperdp.private.release.SignalWarning")
def test_the_stated_noise_std_is_that_of_the_released_sums(tmp_path, ledger, make):
    """χ² at 99.9999 % over 25 releases of nothing but zeros, through the whole path."""
    silent = TinyBundle(encoder=Silent())
    noise = []
    for i in range(25):
        made = make(records(8), ONE, bundle=silent, dataset=str(i), out=f"out{i}")
        noise.append((made.mean() / made.mean_noise_std()[:, None]).ravel().numpy())
    values = np.concatenate(noise)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(values))
    assert low < float((values**2).sum()) < high


class Silent(torch.nn.Module):
    """Below the lattice: every record is summed as 0, though an encoder of zeros is refused."""

    def forward(self, x):
        return torch.full((len(x), DIM), 1e-12)


def test_an_unlabelled_count_is_exact_where_n_is_public(make):
    budget = PrivacyBudget(epsilon=1.0, delta=1e-5, adjacency="replace-one")
    made = make(records(300), budget)
    assert made.count().tolist() == [300.0]
    assert made.classes is None


def test_users_are_units(make, tmp_path, ledger):
    budget = PrivacyBudget(epsilon=12.0, delta=1e-5, unit="user")
    made = make(records(300, users=50), budget)
    assert made.count()[0] == pytest.approx(50, abs=15)
    assert made.certificate.unit == "user"
    verify(tmp_path / "out", ledger=ledger.path)


@pytest.mark.filterwarnings("ignore::hyperdp.private.release.SignalWarning")
def test_an_empty_dataset_is_measured_like_any_other(make):
    """That it is empty is not told; a small or negative count is divided by one at least."""
    made = dataclasses.replace(make([], ONE), counts=np.array([-5]))
    np.testing.assert_allclose(made.mean(), made.sums / 2**24, rtol=1e-6)


# --- order of events -----------------------------------------------------------------------------


def test_nothing_is_read_before_the_budget_is_reserved(make, ledger):
    seen = []

    def reader():
        seen.append(kinds(ledger))
        yield from records(200)
        seen.append(kinds(ledger))

    make(reader(), ONE)
    assert seen == [["cap", "reserve"]] * 2


def test_noise_is_drawn_after_spending_and_once(make, ledger, monkeypatch):
    from hyperdp.private import release as module

    seen, real = [], module.add_noise

    def add_noise(*values):
        seen.append(kinds(ledger))
        return real(*values)

    monkeypatch.setattr(module, "add_noise", add_noise)
    make(records(200), ONE)
    assert seen == [["cap", "reserve", "spend"]]


def test_the_commit_comes_after_the_release_is_in_place(make, ledger, tmp_path, monkeypatch):
    from hyperdp.ledger import Reservation

    def commit(self, **facts):
        Release.load(tmp_path / "out")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Reservation, "commit", commit)
    with pytest.raises(UsageError, match="No space"):
        make(records(200), ONE)
    assert left_over(tmp_path) == set()
    assert kinds(ledger) == ["cap", "reserve", "spend"]


# --- refusals ------------------------------------------------------------------------------------


def refuse_reading():
    raise AssertionError("private data was read")
    yield


def test_a_refused_budget_reads_nothing_and_leaves_nothing(make, ledger, tmp_path):
    make(records(200), ONE)
    with pytest.raises(BudgetRefusedError):
        make(refuse_reading(), ONE, out="second")
    assert left_over(tmp_path) == {"out"}
    assert kinds(ledger) == ["cap", "reserve", "spend", "commit"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"bundle": TinyBundle(encoder=MeanSubtracting())}, BundleError),
        ({"bundle": TinyBundle(config=TinyConfig(embed_dim=3))}, BundleError),
        ({"bundle": TinyBundle(config=TinyConfig(clip_norm=0.0))}, UsageError),
        ({"classes": ["one"]}, UsageError),
        (
            {
                "bundle": TinyBundle(config=TinyConfig(clip_norm=2**-10)),
                "budget": PrivacyBudget(epsilon=1.0, delta=1e-10),
            },
            UsageError,
        ),
    ],
)
def test_what_is_wrong_from_the_start_spends_nothing(make, ledger, tmp_path, change, error):
    with pytest.raises(error):
        make(refuse_reading(), **{"budget": ONE, **change})
    assert kinds(ledger) == []
    assert left_over(tmp_path) == set()


class Remembering(torch.nn.Module):
    """Keeps what it saw in a buffer, which changes no embedding."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        self.seen += x.double().nan_to_num().abs().sum()
        return x.flatten(1)[:, :DIM]


def test_an_encoder_that_changes_while_it_embeds_is_refused(make, ledger, tmp_path):
    """Else its hash in the certificate would be a function of the records."""
    with pytest.raises(BundleError, match="other weights than before"):
        make(records(100), ONE, bundle=TinyBundle(encoder=Remembering()))
    assert left_over(tmp_path) == set()
    assert kinds(ledger) == ["cap", "reserve"]


def test_a_folder_that_exists_is_refused_before_spending(make, ledger, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        make(refuse_reading(), ONE)
    assert kinds(ledger) == []
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_unfit_data_counts_as_spent_and_leaves_nothing(make, ledger, tmp_path):
    with pytest.raises(DataError):
        make(records(100), ONE, classes=["0", "1"])
    assert kinds(ledger) == ["cap", "reserve"]
    assert ledger.account("digits").spent_epsilon == pytest.approx(1.0)
    assert left_over(tmp_path) == set()


def test_an_interrupt_leaves_nothing(make, ledger, tmp_path):
    def reader():
        yield from records(70)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(reader(), ONE)
    assert left_over(tmp_path) == set()
    assert kinds(ledger) == ["cap", "reserve"]


def test_a_disk_that_fills_up_leaves_nothing(make, ledger, tmp_path, monkeypatch):
    def write(path, data, *, mode=0o600, real=keys.write_durably):
        if path.name == "certificate.json":
            raise OSError(28, "No space left on device")
        real(path, data, mode=mode)

    monkeypatch.setattr(released.keys, "write_durably", write)
    with pytest.raises(UsageError, match="No space"):
        make(records(100), ONE)
    assert left_over(tmp_path) == set()


def test_a_folder_that_appears_meanwhile_is_not_overwritten(make, tmp_path):
    def reader():
        yield from records(100)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")

    with pytest.raises(UsageError, match="not empty"):
        make(reader(), ONE)
    assert left_over(tmp_path) == {"out"}
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_weak_delta_is_refused_after_noise_unless_allowed(make, ledger, tmp_path):
    weak = PrivacyBudget(epsilon=100.0, delta=0.02)
    with pytest.raises(UsageError, match="allow-weak-delta"):
        make(records(100), weak)
    assert left_over(tmp_path) == set()
    assert kinds(ledger) == ["cap", "reserve", "spend"]
    with pytest.warns(SignalWarning, match="weak promise"):
        make(records(100), weak, dataset="other", allow_weak_delta=True)
    assert left_over(tmp_path) == {"out"}


def test_a_delta_that_no_size_could_excuse_spends_nothing(make, ledger, tmp_path):
    for delta in (0.5, 0.11):
        with pytest.raises(UsageError, match="Nothing is spent"):
            make(records(100), PrivacyBudget(epsilon=1.0, delta=delta))
    assert left_over(tmp_path) == set()
    assert kinds(ledger) == []


@pytest.mark.parametrize(
    ("noisy_count", "warned"), [(-3, True), (8, True), (25, True), (32, True), (60, False)]
)
def test_too_few_units_are_a_warning_and_enough_are_none(make, noisy_count, warned):
    """ε = 1: the count's noise std is 15.4 units, and 11 units are as loud as the noise."""
    made = make(records(400), ONE)
    steps = np.array([noisy_count * made.certificate.spec.count_bound])
    made = dataclasses.replace(made, counts=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.judge(allow_weak_delta=False)
    assert [w.category for w in caught] == [SignalWarning] * warned
    said = "".join(str(w.message) for w in caught)
    assert ("vague" in said) == (noisy_count == 32)  # more than noise, and little more


@pytest.mark.parametrize(("noisy", "vague"), [((60, 60), False), ((60, 20), True), ((8, -5), None)])
def test_classes_too_small_for_an_adapter_of_their_own_are_named(make, noisy, vague):
    """ε = 1: 11 units of a class are as loud as the noise, so its ratio is 3 at some 33."""
    made = make(records(400, classes=2), ONE, classes=["0", "1"])
    steps = np.array(noisy) * made.certificate.spec.count_bound
    made = dataclasses.replace(made, counts=steps)
    ratios = made.class_signals()
    assert ratios.argmax() == 0 and ratios[0] == pytest.approx(made.signal_to_noise())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.judge(allow_weak_delta=False)
    said = " ".join(str(w.message) for w in caught)
    if vague is None:  # too few in all, which is said instead
        assert "too few units" in said and "vague" not in said
    else:
        assert ("1 of 2 classes: 1." in said) == vague == bool(said)


# --- what can leave ------------------------------------------------------------------------------


def test_no_time_tells_how_long_the_work_took(make, ledger, monkeypatch):
    """A clock that only the reader moves: certificates differ in noise, hashes and seals alone."""
    now = [1]

    class Clock(chain.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2100, 1, now[0], tzinfo=tz)

    def slow(data):
        yield from data
        now[0] += 20

    monkeypatch.setattr(chain, "datetime", Clock)
    statements = []
    for n in (100, 300):
        now[0] = 1
        made = make(slow(records(n)), ONE, dataset=str(n), out=str(n))
        statements.append(vars(made.certificate))
    noisy = {"ledger_seq", "ledger_seal", "dataset", "release_sha256", "signature"}
    assert {k for k in statements[0] if statements[0][k] != statements[1][k]} <= noisy
    times = [entry["time"] for entry in json.loads(ledger.export())["entries"]]
    assert len(times) == 8
    assert {statements[0]["created"], *times} == {"2100-01-01T00:00:00+00:00"}


def test_nothing_un_noised_is_on_disk_or_on_the_terminal(make, tmp_path, capfd):
    """The exact sums, in any spelling a file could hold them in, are nowhere."""
    data = records(150, classes=2)
    made = make(data, ONE, classes=["0", "1"], progress=True)
    exact = aggregate(
        data, bundle=TinyBundle(), spec=made.certificate.spec, unit="record", classes=["0", "1"]
    )
    needles = []
    for value in [*exact._sums.ravel(), *exact._counts]:
        needles += [str(value).encode(), value.tobytes(), np.float32(value / 2**24).tobytes()]
    streams = capfd.readouterr()
    assert streams.out == streams.err == ""
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(needle in content for needle in needles), path


def test_the_dataset_name_is_not_in_the_release(make, tmp_path):
    make(records(100), ONE, dataset="/home/ward7/patients")
    for path in (tmp_path / "out").iterdir():
        assert b"ward7" not in path.read_bytes()


def test_another_release_of_the_same_data_differs(make):
    first = make(records(100), ONE)
    second = make(records(100), ONE, dataset="other", out="other")
    assert not np.array_equal(first.sums, second.sums)


def test_a_changed_release_is_not_loaded(make, tmp_path):
    make(records(100), ONE)
    path = tmp_path / "out" / "certificate.json"
    statement = json.loads(path.read_bytes())
    path.write_bytes(keys.canonical_json({**statement, "epsilon": 0.5}))
    with pytest.raises(VerificationError):
        Release.load(tmp_path / "out")
