"""Private Evolution: events in order, a certificate that verifies, votes that steer, variations."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import BudgetRefusedError, DataError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.mechanism import STEPS_PER_UNIT, Calibration
from hyperdp.private.evolution import evolve, survival
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.records import Record
from hyperdp.private.variation import vary
from hyperdp.private.voters import embed_all, on_lattice
from hyperdp.verification import verify
from hyperdp.vote_certificate import VoteCertificate
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.worlds import tiny_bundle

BUDGET = PrivacyBudget(epsilon=1.0, delta=1e-5)
TINY = EvolutionConfig(candidates=6, iterations=3, count=8, steps=2, batch_size=8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def some_records(n: int = 20, users: int = 0, value: float | None = None) -> list[Record]:
    pixels = np.random.default_rng(0).uniform(-1, 1, (n, 1, 28, 28)).astype(np.float32)
    if value is not None:
        pixels[:] = value
    return [
        Record(image=image, unit=f"u{i % users}" if users else None)
        for i, image in enumerate(pixels)
    ]


def run(bundle, folder, **changes):
    given = {
        "config": TINY, "budget": BUDGET, "ledger": Ledger(folder / "ledger.db"),
        "out": folder / "out", "dataset": "some scans", **changes,
    }  # fmt: skip
    records = given.pop("records", None) or some_records()
    return evolve(records, bundle=bundle, **given)


def test_a_run_ends_in_a_certificate_that_verifies_against_its_ledger(bundle, tmp_path):
    told = []
    made = run(bundle, tmp_path, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert made.images.shape == (8, 1, 28, 28)
    assert made.votes.shape == (3, 6)
    ledger = Ledger(tmp_path / "ledger.db")
    assert [e.kind for e in ledger.history()] == ["cap", "reserve", "spend", "commit"]
    account = ledger.account("some scans")
    assert account.spent_epsilon == pytest.approx(1.0, abs=1e-5)  # all of it, and no more
    claims = {c.name for c in verify(tmp_path / "out", ledger=tmp_path / "ledger.db")}
    assert {"epsilon (PLD)", "epsilon (Fourier)", "zCDP rho (OpenDP)", "ledger entry"} <= claims
    with pytest.raises(BudgetRefusedError):  # the cap is what the first run spent
        run(bundle, tmp_path, out=tmp_path / "again")
    for name in ("images.safetensors", "certificate.json"):
        path = tmp_path / "out" / name
        good = path.read_bytes()
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises(VerificationError):
            verify(tmp_path / "out")
        path.write_bytes(good)


def test_a_signed_lie_about_the_noise_is_found(bundle, tmp_path):
    made = run(bundle, tmp_path)
    file = tmp_path / "out" / "certificate.json"
    c = made.certificate
    lies = [
        {"epsilon": 0.9},
        {"sigma_lattice": 2 * c.sigma_lattice},
        {"iterations": 2},
        {"sensitivity": 0.5},
        {"adjacency": "replace-one"},
        {"event": c.event["event"]},
        {"delta_discretisation": c.delta_discretisation / 2},
    ]
    for lie in lies:
        file.write_bytes(replace(c, **lie).signed().to_bytes())
        with pytest.raises(VerificationError):
            verify(tmp_path / "out")
    file.write_bytes(c.to_bytes())
    verify(tmp_path / "out")
    assert VoteCertificate.from_bytes(file.read_bytes()) == c


def test_nothing_is_read_before_the_reservation_and_a_failure_leaves_nothing(bundle, tmp_path):
    def looking():
        assert [e.kind for e in Ledger(tmp_path / "ledger.db").history()] == ["cap", "reserve"]
        yield from some_records(3)
        raise RuntimeError("pixel 17 of Anna's scan")

    with pytest.raises(DataError) as caught:
        run(bundle, tmp_path, records=looking())
    assert "Anna" not in str(caught.value)
    assert caught.value.__context__ is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["embed_all", "Voters._vote"])
def test_no_error_or_warning_tells_of_a_record(bundle, tmp_path, monkeypatch, place):
    def quotes(*_):
        warnings.warn("Anna's scan has 3 dark pixels", stacklevel=1)
        raise MemoryError("cannot allocate an array of shape (4711, 8)")

    monkeypatch.setattr(f"hyperdp.private.voters.{place}", quotes)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(DataError) as error:
        warnings.simplefilter("always")
        run(bundle, tmp_path)
    assert "4711" not in str(error.value)
    assert error.value.__context__ is None
    assert not [w for w in caught if "Anna" in str(w.message)]
    assert not (tmp_path / "out").exists()


def test_votes_are_those_of_the_records(bundle, tmp_path):
    """At ε = 400 the noise is small: the first histogram counts whom each record is nearest to."""
    loud = PrivacyBudget(epsilon=400.0, delta=1e-5)
    records = some_records(50)
    made = run(bundle, tmp_path, budget=loud, records=records, config=replace(TINY, iterations=1))
    candidates = bundle.base.sample(6, seed=0, steps=2, batch_size=8)
    images = torch.from_numpy(np.stack([r.image for r in records]))
    embedded = [on_lattice(embed_all(bundle, x), bundle) for x in (images, candidates)]
    nearest = torch.cdist(*(torch.from_numpy(e) for e in embedded)).argmin(1)
    counted = torch.bincount(nearest, minlength=6).numpy()
    assert np.abs(made.votes[0] / STEPS_PER_UNIT - counted).max() < 0.5  # σ is 0.04
    per_user = run(
        bundle, tmp_path, out=tmp_path / "users", dataset="by user",
        budget=replace(loud, unit="user"), records=some_records(50, users=5),
        config=replace(TINY, iterations=1),
    )  # fmt: skip
    assert per_user.votes.sum() / STEPS_PER_UNIT == pytest.approx(5, abs=0.5)


def test_an_empty_dataset_and_one_that_is_not_finite_are_like_any_other(bundle, tmp_path):
    run(bundle, tmp_path, records=iter(()))
    verify(tmp_path / "out")
    bad = some_records(4, value=math.nan)
    made = run(bundle, tmp_path, records=bad, dataset="bad", out=tmp_path / "bad")
    assert made.images.isfinite().all()


def test_survivors_are_those_above_the_threshold_and_all_where_none_is():
    calibration = Calibration(
        noise_multiplier=1.0, sigma=2.0 * STEPS_PER_UNIT, delta_gaussian=1e-5,
        delta_discretisation=0.0,
    )  # fmt: skip
    votes = np.array([-5, 1, 4, 8]) * STEPS_PER_UNIT
    assert survival(votes, calibration, 1.0).tolist() == [0.0, 0.0, 0.25, 0.75]
    assert survival(votes, calibration, 0.0).tolist() == pytest.approx([0, 1 / 13, 4 / 13, 8 / 13])
    assert survival(votes, calibration, 9.0).tolist() == [0.25] * 4


def test_a_weak_delta_is_refused_after_the_fact(bundle, tmp_path):
    weak = PrivacyBudget(epsilon=20.0, delta=0.1)
    with pytest.raises(UsageError, match="delta < 1"):
        run(bundle, tmp_path, budget=weak, records=some_records(60))
    assert not (tmp_path / "out").exists()


def test_settings_are_checked_before_anything_is_spent(bundle, tmp_path):
    for changes in ({"count": 0}, {"strength": 0.5}, {"threshold": math.inf}, {"lookahead": -1}):
        with pytest.raises(UsageError, match="Mend the settings"):
            replace(TINY, **changes)
    assert [TINY.strength_at(i) for i in range(3)] == pytest.approx([0.9, 0.75, 0.6])


class Exact:
    """The exact flow of data that are all one image μ: v = (x - μ) / s."""

    def __init__(self, mu: torch.Tensor) -> None:
        self.mu, self.seen = mu, []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        self.seen.append(float(t[0]))
        return SimpleNamespace(sample=(x - self.mu) / (t / 1000)[:, None, None, None])

    def parameters(self):
        return iter([self.mu])


def test_a_variation_follows_the_flow_from_its_strength_down():
    mu = torch.full((1, 1, 4, 4), 0.3)
    family = SimpleNamespace(model=Exact(mu))
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    rng = torch.Generator().manual_seed(0)
    varied = vary(family, images, strength=0.5, steps=8, batch_size=2, rng=rng)
    assert torch.allclose(varied, mu.expand(5, -1, -1, -1), atol=1e-5)
    assert family.model.seen[:4] == pytest.approx([500, 375, 250, 125])
    with pytest.raises(UsageError, match="strength"):
        vary(family, images, strength=0.0, steps=8, batch_size=2, rng=rng)


def test_weak_variations_stay_nearer_than_strong_ones(bundle):
    images = bundle.base.sample(8, seed=1, steps=3, batch_size=8)
    far = {
        s: float(
            (vary(bundle.base, images, strength=s, steps=8, batch_size=8,
                  rng=torch.Generator().manual_seed(0)) - images).square().mean()
        )
        for s in (0.1, 0.9)
    }  # fmt: skip
    assert 0 < far[0.1] < 0.2 * far[0.9]


def test_a_lookahead_asks_by_the_mean_of_variations(bundle, tmp_path):
    made = run(bundle, tmp_path, config=replace(TINY, lookahead=2, iterations=2))
    assert made.certificate.config["lookahead"] == 2
    verify(tmp_path / "out")
