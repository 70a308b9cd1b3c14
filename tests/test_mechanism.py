import inspect
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from hyperdp import mechanism
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.mechanism import (
    STEPS_PER_UNIT,
    ClippedSum,
    MechanismSpec,
    add_noise,
    clip_to_lattice,
    discretisation_delta,
)

BUDGET = PrivacyBudget(epsilon=1.0, delta=1e-5)
REPLACE = PrivacyBudget(epsilon=1.0, delta=1e-5, adjacency="replace-one")
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, width=64)


def one_hot(labels: np.ndarray, embeddings: np.ndarray, classes: int):
    """Contributions of record units: [n, L, k] and [n, L]."""
    n, k = embeddings.shape
    stacked, shares = np.zeros((n, classes, k)), np.zeros((n, classes))
    stacked[np.arange(n), labels], shares[np.arange(n), labels] = embeddings, 1
    return stacked, shares


def query(total: ClippedSum) -> np.ndarray:
    parts = [total._sums.ravel()]
    if total.spec.counts_are_private:
        parts.append(total._counts)
    return np.concatenate(parts)


def squared_norm(row) -> int:
    """In Python's unbounded integers, so that this check itself cannot overflow."""
    return sum(int(x) ** 2 for x in row)


# --- the clip ------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.integers(1, 40).flatmap(lambda d: arrays(np.float64, (3, d), elements=ANY_FLOAT)),
    st.floats(2**-10, 64.0),
)
def test_integer_norm_bound_holds_for_any_floats(vectors, norm):
    lattice = clip_to_lattice(vectors, norm)
    bound = math.floor(norm * STEPS_PER_UNIT)
    assert all(squared_norm(row) <= bound**2 for row in lattice)


@settings(max_examples=300)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([2**-10, 1.0, 0.1, 64.0]))
def test_integer_norm_bound_holds_on_the_sphere_itself(dim, seed, norm):
    """Vectors scaled to norm C as well as floats can, and a few ulps beyond."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((4, dim)) ** rng.integers(1, 6)
    sphere = direction / np.linalg.norm(direction, axis=1, keepdims=True) * norm
    for scale in (1.0, 1 + 2e-16, 1 + 1e-15):
        lattice = clip_to_lattice(sphere * scale, norm)
        bound = math.floor(norm * STEPS_PER_UNIT)
        assert all(squared_norm(row) <= bound**2 for row in lattice)


def test_the_repair_is_needed_and_works():
    """Without the integer check these rows, found by search, would break the sensitivity."""
    norm, found = 64.0, 0
    bound = math.floor(norm * STEPS_PER_UNIT)
    for numerator, other, whole in ((3, 4, 5), (5, 12, 13), (8, 15, 17), (20, 21, 29)):
        for size in range(whole, whole * 4000, whole):
            row = np.array([[numerator, other]], dtype=np.float64) * size * 1e3
            naive = np.rint(row / np.linalg.norm(row) * norm * STEPS_PER_UNIT).astype(np.int64)
            found += squared_norm(naive[0]) > bound**2
            assert squared_norm(clip_to_lattice(row, norm)[0]) <= bound**2
    assert found > 0


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_short_vectors_keep_their_value_but_for_less_than_a_step(dim, seed):
    v = np.random.default_rng(seed).uniform(-1, 1, (2, dim)) / math.sqrt(dim)
    lattice = clip_to_lattice(v, 1.0) / STEPS_PER_UNIT
    assert np.all(np.abs(lattice) <= np.abs(v))
    assert np.all(np.abs(lattice - v) < 1 / STEPS_PER_UNIT)


def test_long_vectors_keep_their_direction():
    v = np.array([[3.0, 4.0]]) * 1e10
    np.testing.assert_allclose(clip_to_lattice(v, 1.0) / STEPS_PER_UNIT, [[0.6, 0.8]], atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_become_zero_and_others_do_not(bad):
    v = np.array([[0.5, bad], [0.5, 0.25]])
    np.testing.assert_array_equal(
        clip_to_lattice(v, 1.0), [[0, 0], [STEPS_PER_UNIT // 2, STEPS_PER_UNIT // 4]]
    )


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_row_is_clipped_by_itself_alone(dim, n, seed):
    v = np.random.default_rng(seed).standard_normal((n, dim))
    together = clip_to_lattice(v, 1.0)
    alone = np.concatenate([clip_to_lattice(row[None], 1.0) for row in v])
    np.testing.assert_array_equal(together, alone)


# --- the sum and its sensitivity -----------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_sum_is_equal_for_any_batch_size_and_order(n, batch, seed):
    rng = np.random.default_rng(seed)
    spec = MechanismSpec(embedding_dim=5, num_classes=3, clip_norm=1.0)
    stacked, shares = one_hot(rng.integers(0, 3, n), rng.standard_normal((n, 5)), 3)
    whole, parts = ClippedSum(spec), ClippedSum(spec)
    whole.add(stacked, shares)
    order = rng.permutation(n)
    for start in range(0, n, batch):
        chosen = order[start : start + batch]
        parts.add(stacked[chosen], shares[chosen])
    np.testing.assert_array_equal(query(whole), query(parts))


def random_unit(rng, classes, dim, *, mixed):
    """A unit's contribution, often at the very edge of what the clip lets through."""
    embedding = rng.standard_normal((classes, dim)) * 10.0 ** rng.integers(-3, 4)
    shares = (
        rng.dirichlet(np.full(classes, 0.2)) if mixed else np.eye(classes)[rng.integers(classes)]
    )
    embedding = embedding * (shares[:, None] > 0)
    return embedding[None], shares[None]


@settings(max_examples=200)
@given(
    st.sampled_from(["add-remove", "replace-one"]),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_no_neighbour_moves_the_query_beyond_the_sensitivity(adjacency, classes, dim, mixed, seed):
    rng = np.random.default_rng(seed)
    spec = MechanismSpec(embedding_dim=dim, num_classes=classes, clip_norm=0.7, adjacency=adjacency)
    first, second = ClippedSum(spec), ClippedSum(spec)
    for _ in range(3):
        shared = random_unit(rng, classes, dim, mixed=mixed)
        first.add(*shared)
        second.add(*shared)
    one = random_unit(rng, classes, dim, mixed=mixed)
    first.add(*one)
    if adjacency == "replace-one":
        other = random_unit(rng, classes, dim, mixed=mixed)
        second.add(-one[0] if seed % 2 else other[0], other[1])
    moved = query(first) - query(second)
    assert squared_norm(moved) <= spec.squared_sensitivity


def worst_pair(spec: MechanismSpec) -> int:
    """Squared distance of the two neighbours that docs/privacy.md, lemma 2, calls the worst."""
    first, second = ClippedSum(spec), ClippedSum(spec)
    shape = (1, spec.num_classes, spec.embedding_dim)
    one, shares = np.zeros(shape), np.zeros((1, spec.num_classes))
    one[0, 0, 0], shares[0, 0] = spec.clip_norm, 1
    first.add(one, shares)
    if spec.adjacency == "replace-one":
        second.add(-one, np.roll(shares, 1))  # a user of two classes, nearly all in the other one
    return squared_norm(query(first) - query(second))


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize("classes", [1, 2, 10])
@pytest.mark.parametrize("clip_norm", [1.0, 0.3, 17.7])
def test_sensitivity_is_attained(adjacency, classes, clip_norm):
    """Tight: the derived sensitivity is reached, so no noise is wasted."""
    spec = MechanismSpec(
        embedding_dim=3, num_classes=classes, clip_norm=clip_norm, adjacency=adjacency
    )
    assert worst_pair(spec) == spec.squared_sensitivity


@dataclass(frozen=True, kw_only=True)
class SmallSpec(MechanismSpec):
    """The query with bounds so small that all units there can be are soon listed."""

    clip_steps: int
    count_steps: int

    @property
    def clip_bound(self):
        return self.clip_steps

    @property
    def count_bound(self):
        return self.count_steps


def every_unit(spec: SmallSpec) -> np.ndarray:
    """int64 [units, m]: all (v, c) with Σ v² <= B², Σ c² <= W² and c >= 0."""
    clip, count = spec.clip_bound, spec.count_bound
    values = itertools.product(range(-clip, clip + 1), repeat=spec.num_classes * spec.embedding_dim)
    counts = itertools.product(range(count + 1), repeat=spec.num_classes)
    inside_v = [v for v in values if squared_norm(v) <= clip**2]
    inside_c = [c for c in counts if squared_norm(c) <= count**2]
    if not spec.counts_are_private:
        inside_c = [()]
    return np.array([v + c for v in inside_v for c in inside_c])


def every_record(spec: SmallSpec) -> np.ndarray:
    """The same, of units of one class each: v in the block of that class, c = W there."""
    dim, classes = spec.embedding_dim, spec.num_classes
    units = []
    for label in range(classes):
        for v in itertools.product(range(-spec.clip_bound, spec.clip_bound + 1), repeat=dim):
            if squared_norm(v) <= spec.clip_bound**2:
                unit = np.zeros(classes * (dim + spec.counts_are_private), dtype=np.int64)
                unit[label * dim : (label + 1) * dim] = v
                if spec.counts_are_private:
                    unit[classes * dim + label] = spec.count_bound
                units.append(unit)
    return np.array(units)


def datasets_apart(units: np.ndarray, adjacency: str) -> int:
    """The largest squared distance of the sums of neighbouring datasets of one or two units."""
    others = units if len(units) < 60 else units[:1]  # what the neighbours have in common
    worst = 0
    for shared, first in itertools.product(others, units):
        if adjacency == "add-remove":
            worst = max(worst, squared_norm((shared + first) - shared))
        else:
            apart = (shared + first) - (shared + units)  # [units, m]
            worst = max(worst, int((apart**2).sum(axis=1).max()))
    return worst


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(
    ("classes", "dim", "clip", "count"), [(1, 2, 2, 1), (2, 1, 2, 1), (2, 1, 8, 2), (2, 2, 3, 1)]
)
def test_sensitivity_by_listing_all_neighbours(adjacency, classes, dim, clip, count):
    """Lemma 2 of docs/privacy.md for users, and what it says of records of one class."""
    spec = SmallSpec(
        embedding_dim=dim, num_classes=classes, clip_norm=1.0, adjacency=adjacency,
        clip_steps=clip, count_steps=count,
    )  # fmt: skip
    assert datasets_apart(every_unit(spec), adjacency) == spec.squared_sensitivity
    of_records = 4 * clip**2 if adjacency == "replace-one" else clip**2 + count**2
    assert datasets_apart(every_record(spec), adjacency) == of_records <= spec.squared_sensitivity


@pytest.mark.parametrize(
    ("adjacency", "classes", "squared"),
    [
        ("add-remove", 1, 1 + 1 / 16),
        ("add-remove", 10, 1 + 1 / 16),
        ("replace-one", 1, 4),
        ("replace-one", 10, 4 + 2 / 16),
    ],
)
def test_sensitivity_in_units_of_the_clip_norm(adjacency, classes, squared):
    spec = MechanismSpec(embedding_dim=3, num_classes=classes, clip_norm=2.0, adjacency=adjacency)
    assert spec.sensitivity == pytest.approx(2 * math.sqrt(squared), rel=1e-12)


def test_negative_shares_count_as_none():
    spec = MechanismSpec(embedding_dim=1, num_classes=2, clip_norm=1.0)
    total = ClippedSum(spec)
    total.add(np.zeros((1, 2, 1)), np.array([[1.0, -1.0]]))
    np.testing.assert_array_equal(total._counts, [spec.count_bound, 0])


def test_a_sum_shows_no_value():
    total = ClippedSum(MechanismSpec(embedding_dim=1, clip_norm=1.0))
    total.add(np.full((1, 1, 1), 0.123), np.ones((1, 1)))
    assert "0.123" not in repr(total)
    assert str(total._sums[0, 0]) not in repr(total)
    assert not hasattr(total, "__dict__")


# --- calibration ---------------------------------------------------------------------------------


CLAIMS = {
    "epsilon": st.floats(0.1, 8),
    "exponent": st.floats(-8, -3),
    "adjacency": st.sampled_from(["add-remove", "replace-one"]),
    "classes": st.integers(1, 20),
    "dim": st.integers(1, 256),
}


def check_against_pld(epsilon, exponent, adjacency, classes, dim):
    budget = PrivacyBudget(epsilon=epsilon, delta=10**exponent, adjacency=adjacency)
    spec = MechanismSpec(embedding_dim=dim, num_classes=classes, clip_norm=1.0, adjacency=adjacency)
    calibration = spec.calibrate(budget)
    tau = calibration.sigma / math.sqrt(spec.squared_sensitivity)
    pld = privacy_loss_distribution.from_gaussian_mechanism(tau)
    assert pld.get_epsilon_for_delta(calibration.delta_gaussian) == pytest.approx(epsilon, abs=1e-6)
    assert calibration.delta_gaussian + calibration.delta_discretisation <= budget.delta


@settings(max_examples=15)
@given(**CLAIMS)
def test_epsilon_equals_an_independent_pld(**claim):
    check_against_pld(**claim)


@pytest.mark.slow
@settings(max_examples=200)
@given(**CLAIMS)
def test_epsilon_equals_an_independent_pld_for_200_claims(**claim):
    check_against_pld(**claim)


def discrete_gaussian(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(-math.ceil(40 * sigma), math.ceil(40 * sigma) + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    return x, p / math.fsum(p)


@pytest.mark.parametrize("tau", [0.6, 1.5, 3.73])
@pytest.mark.parametrize("sensitivity", [20, 50, 300])
def test_discretisation_delta_bounds_the_exact_gap(tau, sensitivity):
    """One coordinate, small σ: the discrete mechanism's δ summed exactly, against both terms."""
    sigma = tau * sensitivity
    x, p = discrete_gaussian(sigma)
    _, q = x, np.roll(p, sensitivity)
    for epsilon in (0.2, 1.0, 4.0):
        exact = math.fsum(np.maximum(p - math.exp(epsilon) * q, 0))
        t = epsilon * tau + 1 / (2 * tau)
        continuous = stats.norm.cdf(1 / tau - t) - math.exp(epsilon) * stats.norm.cdf(-t)
        m = 1
        log_ratio = (m + (10 * math.sqrt(m) + 1 / tau) ** 2) / (8 * sigma**2)
        if log_ratio < 0.1:
            assert exact <= continuous + 4 * log_ratio + 2 * math.exp(-50)


@pytest.mark.parametrize("sigma", [3.0, 10.0, 100.0])
def test_density_ratio_lemma(sigma):
    """Lemma of docs/privacy.md: log(rounded continuous / discrete) in [-1/8σ², x²/8σ⁴]."""
    x = np.arange(0, int(12 * sigma))
    _, p = discrete_gaussian(sigma)
    discrete = p[len(p) // 2 + x]
    rounded = stats.norm.sf((x - 0.5) / sigma) - stats.norm.sf((x + 0.5) / sigma)
    ratio = np.log(rounded / discrete)
    assert np.all(ratio >= -1 / (8 * sigma**2) - 1e-9)
    assert np.all(ratio <= x**2 / (8 * sigma**4) + 1e-9)


def test_discretisation_is_negligible_in_use_and_infinite_where_unproved():
    spec = MechanismSpec(embedding_dim=256, clip_norm=1.0)
    assert discretisation_delta(spec, spec.calibrate(BUDGET).sigma) < 1e-11
    assert discretisation_delta(spec, 9.0) == math.inf
    assert discretisation_delta(spec, 11.0) == math.inf


def test_calibration_refuses_another_adjacency_and_a_delta_below_the_lattice():
    spec = MechanismSpec(embedding_dim=64, clip_norm=1.0)
    with pytest.raises(UsageError, match="adjacency"):
        spec.calibrate(REPLACE)
    wide = MechanismSpec(embedding_dim=256, num_classes=4096, clip_norm=1.0)
    with pytest.raises(UsageError, match="lattice"):
        wide.calibrate(PrivacyBudget(epsilon=1.0, delta=1e-10))


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_dim": 0},
        {"num_classes": 0},
        {"num_classes": 1.5},
        {"clip_norm": 0.0},
        {"clip_norm": 65.0},
        {"clip_norm": math.nan},
        {"adjacency": "swap"},
    ],
)
def test_spec_refuses_what_is_out_of_range(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        MechanismSpec(**{"embedding_dim": 2, "clip_norm": 1.0, **change})


# --- the noise -----------------------------------------------------------------------------------


def draws(spec: MechanismSpec, budget: PrivacyBudget) -> np.ndarray:
    sums, counts = add_noise(ClippedSum(spec), budget)
    return np.concatenate([sums.ravel(), counts if spec.counts_are_private else []])


def test_noise_has_the_calibrated_variance():
    """χ² test at 99.9999 %, over 40,000 draws: ±2.5 % of the std is caught."""
    spec = MechanismSpec(embedding_dim=4000, num_classes=10, clip_norm=1.0)
    noise = draws(spec, BUDGET)
    sigma = spec.calibrate(BUDGET).sigma
    statistic = float(np.sum((noise / sigma) ** 2))
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(noise))
    assert low < statistic < high


def test_noise_is_gaussian_and_on_the_lattice():
    """Kolmogorov-Smirnov at 1e-6; low bits uniform, as no float could give."""
    spec = MechanismSpec(embedding_dim=20000, clip_norm=1.0)
    sums, _ = add_noise(ClippedSum(spec), BUDGET)
    assert sums.dtype == np.int64
    scaled = sums.ravel() / spec.calibrate(BUDGET).sigma
    assert stats.kstest(scaled, "norm").pvalue > 1e-6
    assert stats.chisquare(np.bincount(sums.ravel() % 16, minlength=16)).pvalue > 1e-6


def test_noise_is_centred_on_the_sum_and_counts():
    spec = MechanismSpec(embedding_dim=2, num_classes=2, clip_norm=1.0)
    total = ClippedSum(spec)
    total.add(*one_hot(np.zeros(1000, int), np.full((1000, 2), 0.5), 2))
    budget = PrivacyBudget(epsilon=50.0, delta=1e-5)
    sums, counts = add_noise(total, budget)
    sigma = spec.calibrate(budget).sigma
    expected = 500 * STEPS_PER_UNIT
    assert np.all(np.abs(sums - [[expected, expected], [0, 0]]) < 6 * sigma)
    assert np.all(np.abs(counts - [1000 * spec.count_bound, 0]) < 6 * sigma)


def test_a_public_count_has_no_noise():
    spec = MechanismSpec(embedding_dim=2, clip_norm=1.0, adjacency="replace-one")
    total = ClippedSum(spec)
    total.add(np.zeros((7, 1, 2)), np.ones((7, 1)))
    _, counts = add_noise(total, REPLACE)
    np.testing.assert_array_equal(counts, [7 * spec.count_bound])


def test_noise_cannot_be_replayed():
    """No seed in any signature of the private path, and global seeds change nothing."""
    for function in (add_noise, ClippedSum.add, MechanismSpec.calibrate, clip_to_lattice):
        names = set(inspect.signature(function).parameters)
        assert not any("seed" in n or "rng" in n or "generator" in n for n in names)
    assert "random" not in inspect.getsource(mechanism)
    spec = MechanismSpec(embedding_dim=20, clip_norm=1.0)
    np.random.seed(0)
    first = draws(spec, BUDGET)
    np.random.seed(0)
    assert not np.array_equal(first, draws(spec, BUDGET))


def test_opendp_agrees_on_the_privacy_of_its_own_noise():
    import opendp.prelude as dp

    dp.enable_features("contrib")
    spec = MechanismSpec(embedding_dim=16, clip_norm=1.0)
    calibration = spec.calibrate(BUDGET)
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    measurement = dp.m.make_gaussian(*space, scale=calibration.sigma)
    rho = measurement.map(math.sqrt(spec.squared_sensitivity))
    assert rho == pytest.approx(0.5 / calibration.noise_multiplier**2, rel=1e-9)
