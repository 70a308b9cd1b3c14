"""What every test runs under: no network, no clock in property tests."""

import os

from hypothesis import settings

from tests.ledgers import ledger
from tests.threads import two_threads

__all__ = ["ledger", "two_threads"]  # fixtures of every test

# Set before any test imports what reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # a test that wants a GPU says so

# A busy machine is no failure: property tests are bounded by their number of examples alone.
settings.register_profile("hyperdp", deadline=None, max_examples=50)
settings.load_profile("hyperdp")
