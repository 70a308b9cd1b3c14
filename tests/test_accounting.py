import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperdp import accounting
from hyperdp.accounting import Account
from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.errors import UsageError

TAUS = st.lists(st.floats(1.0, 30), min_size=1, max_size=4)


def gaussian(tau):
    return dp_event.GaussianDpEvent(tau)


def dp_sgd(tau=1.1, probability=0.02, steps=400):
    return dp_event.SelfComposedDpEvent(
        dp_event.PoissonSampledDpEvent(probability, gaussian(tau)), steps
    )


@settings(max_examples=12)
@given(TAUS, st.floats(-8, -3))
def test_closed_form_of_gaussians_agrees_with_pld(taus, exponent):
    events = [gaussian(tau) for tau in taus]
    delta = 10**exponent
    closed, pld = accounting.epsilon(events, delta), accounting.pld_epsilon(events, delta)
    assert closed == pytest.approx(pld, abs=3e-5 * max(1, closed) * len(taus))
    assert closed <= pld + 1e-7  # the distribution is an upper bound


def test_composition_with_dp_sgd_agrees_with_dp_accounting_by_hand():
    releases = [gaussian(tau) for tau in np.linspace(5, 40, 10)]
    by_hand = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    by_hand.compose(dp_event.ComposedDpEvent([*releases, dp_sgd()]))
    mine = accounting.epsilon([*releases, dp_sgd()], 1e-5)
    assert mine == pytest.approx(by_hand.get_epsilon(1e-5), rel=1e-6)
    assert mine > accounting.epsilon(releases, 1e-5) + 0.1
    naive = accounting.epsilon(releases, 5e-6) + accounting.epsilon([dp_sgd()], 5e-6)
    assert mine < naive  # tighter than adding up


def test_replace_one_agrees_with_dp_accounting_whose_multiplier_is_relative_to_the_clip_norm():
    tau = noise_multiplier(1.0, 1e-5)  # σ / Δ with Δ = 2C, so σ / C = 2τ
    theirs = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    theirs.compose(gaussian(2 * tau))
    assert theirs.get_epsilon(1e-5) == pytest.approx(1.0, abs=1e-6)
    assert accounting.epsilon([gaussian(tau)], 1e-5) == pytest.approx(1.0, abs=1e-7)


@given(TAUS, st.integers(2, 6))
def test_repetition_and_nesting_change_nothing(taus, count):
    flat = [gaussian(t) for t in taus for _ in range(count)]
    nested = [dp_event.SelfComposedDpEvent(dp_event.ComposedDpEvent([*map(gaussian, taus)]), count)]
    assert accounting.epsilon(nested, 1e-5) == pytest.approx(accounting.epsilon(flat, 1e-5))


def test_nothing_costs_nothing_and_no_delta_cannot_be_had():
    assert accounting.epsilon([], 1e-5) == 0
    assert accounting.epsilon([], 0.0) == 0
    assert accounting.pld_epsilon([], 0.0) == 0
    assert accounting.epsilon([gaussian(1.0)], 0.0) == math.inf
    assert accounting.epsilon([dp_sgd()], -1e-9) == math.inf


@given(st.floats(0.3, 5), st.floats(0.05, 0.95))
def test_what_is_said_to_remain_fits_and_hardly_more_does(cap, part):
    events = [gaussian(noise_multiplier(cap * part, 1e-5))]
    left = accounting.remaining_epsilon(events, cap_epsilon=cap, delta=1e-5)
    assert accounting.epsilon([*events, gaussian(noise_multiplier(left, 1e-5))], 1e-5) <= cap
    more = gaussian(noise_multiplier(left * 1.02 + 1e-3, 1e-5))
    assert accounting.epsilon([*events, more], 1e-5) > cap


def test_nothing_remains_beyond_the_cap():
    spent = [gaussian(noise_multiplier(2.0, 1e-5))]
    assert accounting.remaining_epsilon(spent, cap_epsilon=1.0, delta=1e-5) == 0
    assert accounting.remaining_epsilon([], cap_epsilon=1.0, delta=0.0) == 0


def test_an_account_charges_discretisation_to_delta():
    cap = PrivacyBudget(epsilon=1.0, delta=1e-5)
    tau = noise_multiplier(1.0, 1e-5)
    clean = Account(cap=cap, events=(gaussian(tau),))
    charged = Account(cap=cap, events=(gaussian(tau),), delta_discretisation=5e-6)
    assert clean.spent_epsilon == pytest.approx(1.0)
    assert charged.spent_epsilon == pytest.approx(accounting.epsilon([gaussian(tau)], 5e-6))
    assert charged.spent_epsilon > 1.01
    assert Account(cap=cap).remaining_epsilon == pytest.approx(1.0, rel=1e-3)


EVENTS = st.recursive(
    st.builds(gaussian, st.floats(0.1, 100)),
    lambda inner: st.one_of(
        st.builds(dp_event.SelfComposedDpEvent, inner, st.integers(0, 1000)),
        st.builds(dp_event.ComposedDpEvent, st.lists(inner, max_size=3)),
        st.builds(
            dp_event.PoissonSampledDpEvent, st.floats(0, 1), st.builds(gaussian, st.floats(0.1, 9))
        ),
    ),
    max_leaves=5,
)


@given(EVENTS)
def test_events_survive_json(event):
    import json

    spelt = json.loads(json.dumps(accounting.event_to_json(event)))
    assert accounting.event_to_json(accounting.event_from_json(spelt)) == spelt


@pytest.mark.parametrize(
    "spelling",
    [
        None,
        {},
        [],
        {"type": "laplace"},
        {"type": "gaussian"},
        {"type": "gaussian", "noise_multiplier": -1.0},
        {"type": "gaussian", "noise_multiplier": 0.0},
        {"type": "gaussian", "noise_multiplier": math.nan},
        {"type": "gaussian", "noise_multiplier": math.inf},
        {"type": "gaussian", "noise_multiplier": 1.0, "more": 1},
        {"type": "poisson", "probability": 1.5, "event": {"type": "gaussian"}},
        {"type": "poisson", "probability": 0.5, "event": []},
        {"type": "poisson", "probability": 0.5, "event": {"type": "all", "events": []}},
        {"type": "repeat", "count": -1, "event": {"type": "gaussian", "noise_multiplier": 1.0}},
        {"type": "all", "events": [None]},
    ],
)
def test_other_spellings_of_events_are_refused(spelling):
    with pytest.raises(UsageError):
        accounting.event_from_json(spelling)


def test_events_of_other_mechanisms_are_refused_not_guessed():
    with pytest.raises(UsageError, match="LaplaceDpEvent"):
        accounting.event_to_json(dp_event.LaplaceDpEvent(1.0))


def test_declared_budget_must_cover_the_event():
    budget = PrivacyBudget(epsilon=1.0, delta=1e-5)
    accounting.check_declared(gaussian(3.7306317), budget, 0.0)
    with pytest.raises(UsageError, match="Declare"):
        accounting.check_declared(gaussian(3.7), budget, 0.0)
    with pytest.raises(UsageError, match="Declare"):
        accounting.check_declared(gaussian(3.7306317), budget, 5e-6)


def test_sampled_events_are_refused_under_replace_one():
    budget = PrivacyBudget(epsilon=100.0, delta=1e-5, adjacency="replace-one")
    accounting.check_declared(dp_event.ComposedDpEvent([gaussian(5.0)]), budget, 0.0)
    with pytest.raises(UsageError, match="add-remove"):
        accounting.check_declared(dp_event.ComposedDpEvent([dp_sgd()]), budget, 0.0)
