"""The linear world at reduced size: every part by a second way, and the rates themselves."""

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from scipy.linalg import subspace_angles

from hyperdp.accounting import pld_epsilon
from hyperdp.eval.results import read_rows
from hyperdp.eval.theory import (
    Clip,
    Descent,
    LinearWorld,
    descend,
    learn_subspace,
    one_shot,
    predicted,
    public_clips,
    slope,
    subspace_error,
    tune,
)
from hyperdp.eval.theory_bench import METHODS, TheoryConfig, TheoryRun, run_theory
from hyperdp.eval.theory_tables import draw_picture, exponents, to_tables

SMALL = LinearWorld(d=30, k=3)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_subspace_is_learned_from_public_tasks():
    basis = SMALL.basis(rng(1))
    few, many = (
        learn_subspace(SMALL, basis, tasks=tasks, records=200, rng=rng(2)) for tasks in (10, 300)
    )
    angles = subspace_angles(basis.astype(float), many.astype(float))
    assert subspace_error(basis, many) == pytest.approx(np.square(np.sin(angles)).mean(), rel=1e-3)
    assert subspace_error(basis, many) < 0.1 * subspace_error(basis, few)
    assert subspace_error(basis, basis) == pytest.approx(0, abs=1e-6)


def test_moments_without_a_clip_are_the_closed_form():
    """E‖xy‖² = (m + 2) + mσ² and E xy = θ for x ~ N(0, I_m), ‖θ‖ = 1."""
    last = public_clips(SMALL, 4, records=400_000, rng=rng(3))[-1]
    assert last.signal == pytest.approx(1.0, abs=0.03)
    assert last.energy == pytest.approx(6 + 4 * 0.25, rel=0.03)


def test_one_shot_errs_as_predicted_and_a_clip_only_scales():
    multiplier = SMALL.multiplier(1.0)
    clips = public_clips(SMALL, 3, records=200_000, rng=rng(4))
    basis = SMALL.basis(rng(5))
    for clip in (clips[2], clips[5]):
        errors = []
        for seed in range(300):
            source = rng(100 + seed)
            theta = SMALL.task(basis, source)
            x, y = SMALL.records(theta, 400, source)
            found = basis @ one_shot(x @ basis, y, clip, multiplier, source)
            errors.append(np.square(found - theta).sum())
        total = sum(predicted(clip, dim=3, n=400, multiplier=multiplier))
        margin = 4 * np.std(errors) / np.sqrt(len(errors))
        assert np.mean(errors) == pytest.approx(total / (1 + total), abs=margin)


def test_no_record_moves_the_one_shot_mean_by_more_than_its_sensitivity():
    x, y = SMALL.records(SMALL.task(SMALL.basis(rng(6)), rng(6)), 20, rng(6))
    clip = Clip(norm=0.7, signal=1.0, energy=1.0)
    other_x, other_y = x.copy(), y.copy()
    other_x[3], other_y[3] = 50 * x[7], -9.0
    shrink = 1 + sum(predicted(clip, dim=30, n=20, multiplier=0.0))
    found = [one_shot(a, b, clip, 0.0, rng(7)) * shrink for a, b in ((x, y), (other_x, other_y))]
    moved = np.linalg.norm(found[0] - found[1])
    assert 0.7 / 20 < moved <= 2 * 0.7 / 20 * (1 + 1e-6)


def test_descent_is_clipped_gradient_descent_with_composed_noise():
    x, y = SMALL.records(SMALL.task(SMALL.basis(rng(8)), rng(8)), 50, rng(8))
    setting = Descent(steps=3, rate=0.4, clip=0.5)
    found = descend(x, y, [setting], gradient_norm=2.0, multiplier=0.0, rng=rng(9))[:, 0]
    theta = np.zeros(30)
    for _ in range(3):
        gradients = [(a @ theta - b) * a for a, b in zip(x.astype(float), y, strict=True)]
        clipped = [g * min(1, 1.0 / np.linalg.norm(g)) for g in gradients]
        theta = theta - 0.4 * np.mean(clipped, axis=0)
    np.testing.assert_allclose(found, theta, rtol=1e-4, atol=1e-6)

    still = Descent(steps=4, rate=1.0, clip=0.5)
    nothing = np.zeros((50, 4000), dtype=np.float32)  # no gradient: what is left is noise
    noise = descend(nothing, y, [still], gradient_norm=2.0, multiplier=1.5, rng=rng(10))
    expected = 1.5 * np.sqrt(4) * 2 * 1.0 / 50 * np.sqrt(4)  # four steps, each with √4 τ
    assert noise.std() == pytest.approx(expected, rel=0.05)


def test_steps_compose_to_one_release_of_the_same_budget():
    """T Gaussian releases at √T τ cost what one at τ does: dp_accounting's PLD says so too."""
    world = LinearWorld()
    for steps in (1, 16):
        multiplier = world.multiplier(2.0) * np.sqrt(steps)
        events = [GaussianDpEvent(multiplier)] * steps
        assert pld_epsilon(events, world.delta) == pytest.approx(2.0, abs=2e-3)


def test_tuning_finds_newton_s_step_where_there_is_no_noise():
    draws = []
    for seed in range(2):
        theta = SMALL.task(SMALL.basis(rng(11)), rng(seed))
        draws.append((*SMALL.records(theta, 3000, rng(seed)), theta))
    best = tune(draws, gradient_norm=5.0, multiplier=0.0, rng=rng(12))
    assert best.steps > 1
    found = descend(
        draws[0][0], draws[0][1], [best], gradient_norm=5.0, multiplier=0.0, rng=rng(13)
    )[:, 0]
    # Least squares itself errs by dσ²/(n − d) = 0.0025 on average.
    assert np.square(found - draws[0][2]).sum() < 0.006


def test_a_slope_is_the_exponent_of_the_unshrunk_error():
    xs = [1.0, 3.0, 10.0]
    errors = [v / (1 + v) for v in (0.5 * x**-1.7 for x in xs)]
    assert slope(xs, errors) == pytest.approx(-1.7, abs=1e-9)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    config = TheoryConfig(
        world=SMALL, n=(500, 1000, 8000), epsilon=(0.1, 8.0), more_epsilon=(0.01, 0.02),
        repeats=24, tune_draws=1, public_tasks=800, public_records=300, clip_records=50_000,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("theory") / "rows.jsonl"
    return TheoryRun(config), path, run_theory(config, path)


def test_slopes_are_within_15_percent_of_the_predicted_exponents(measured):
    run, _, rows = measured
    found = exponents(run, rows)
    assert {(e.quantity, e.regime) for e in found if e.method == "one_shot_subspace"} == {
        ("n", "privacy"), ("n", "sampling"), ("epsilon", "privacy"),
    }  # fmt: skip
    for e in found:
        assert e.measured == pytest.approx(e.predicted, rel=0.15), e


def test_the_subspace_helps_both_and_a_killed_bench_goes_on(measured):
    run, path, rows = measured
    config = run.config
    assert len(rows) == len(config.cells) * len(METHODS) * config.repeats
    assert run_theory(config, path) == read_rows(path) == rows
    at = {
        method: np.mean([r.value for r in rows if (r.method, r.n, r.epsilon) == (method, 1000, 8)])
        for method in METHODS
    }
    assert at["one_shot_subspace"] < 0.3 * at["one_shot"]
    assert at["dpsgd_subspace"] < at["dpsgd"]


def test_tables_and_picture_come_from_the_rows(measured, tmp_path):
    run, _, rows = measured
    tables = to_tables(run, rows)
    values = [r.value for r in rows if (r.method, r.n, r.epsilon) == ("dpsgd", 500, 0.1)]
    assert "| 500 | 0.1 | " in tables
    assert f"{np.mean(values):.2g} ± " in tables
    assert "| privacy | n |" in tables
    draw_picture(run, rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
