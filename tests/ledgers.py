"""A ledger of its own for each test, and one way to reserve in it."""

import pytest
from dp_accounting import dp_event

from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.ledger import Ledger

ONE = PrivacyBudget(epsilon=1.0, delta=1e-5)
HALF = PrivacyBudget(epsilon=0.5, delta=1e-5)
HASH = "ab" * 32


def gaussian(budget):
    return dp_event.GaussianDpEvent(noise_multiplier(budget.epsilon, budget.delta))


def reserve(ledger, budget=ONE, dataset="digits", **more):
    values = {"budget": budget, "event": gaussian(budget), "bundle_hash": HASH, **more}
    return ledger.reserve(dataset, **values)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db")
