"""Randomness that can be replayed, for tests of runs that are killed: never on a private path."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from hyperdp.private import release as release_module
from hyperdp.private.learners import normal, poisson, step


def make_known(patch) -> None:
    """Make sample, times and noise of a step functions of the number of the step in its rule.

    And the noise of a release a constant. So a run that goes on from a kept state must take the
    very steps that an unbroken one takes from there, or end elsewhere. For rules of `dpsgd`.
    """
    real = step.PrivateStep.__call__

    def call(self, units, weights):
        rng = np.random.default_rng(self.rule._moments.step)
        patch.setattr(normal, "os", SimpleNamespace(urandom=rng.bytes))
        patch.setattr(poisson, "os", SimpleNamespace(urandom=rng.bytes))
        bits = SimpleNamespace(randbits=lambda count: int(rng.integers(2**count)))
        patch.setattr(step, "secrets", bits)
        return real(self, units, weights)

    patch.setattr(step.PrivateStep, "__call__", call)
    patch.setattr(
        release_module, "add_noise", lambda total, budget: (total._sums + 3, total._counts + 5)
    )
