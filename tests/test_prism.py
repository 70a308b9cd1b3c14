"""PRISM against dense matrices, exact covariances and an independent step in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hyperdp.errors import UsageError
from hyperdp.lora import adapters
from hyperdp.private.learners.fixed_rank import FixedRank, balance, retract
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.learners.prism import Prism, PrismOptions
from hyperdp.private.learners.spectral import rebase, residual_base, spectral_start
from tests.worlds import tiny_family

M, N, R = 13, 9, 3


def point(seed: int = 0, m: int = M, n: int = N, r: int = R) -> FixedRank:
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(m, r, generator=rng, dtype=torch.float64)
    return FixedRank.at(a, torch.randn(n, r, generator=rng, dtype=torch.float64))


def induced(at: FixedRank, pair):
    d_a, d_b = pair
    return d_a @ at.b.T + at.a @ d_b.transpose(-2, -1)


def projected(at: FixedRank, g):
    """P(G) by dense projections."""
    p_a, p_b = at.a @ torch.linalg.pinv(at.a), at.b @ torch.linalg.pinv(at.b)
    return p_a @ g + g @ p_b - p_a @ g @ p_b


def gauge(seed: int, r: int = R):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(r, r, generator=rng, dtype=torch.float64) + 2 * torch.eye(r).double()


def turned(at: FixedRank, change) -> FixedRank:
    return FixedRank.at(at.a @ change, at.b @ torch.linalg.inv(change).T)


class Basis:
    """Hands out one unit vector in place of normals: shows a noise law exactly."""

    def __init__(self, index: int):
        self.index = index

    def __call__(self, *shape):
        flat = torch.zeros(math.prod(shape), dtype=torch.float64)
        if 0 <= self.index < len(flat):
            flat[self.index] = 1
        self.index -= len(flat)
        return flat.reshape(shape)


def noise_matrix(at: FixedRank):
    """The noise as a linear map of the normals behind it: columns are (dA, dB), flattened."""
    columns = [at.noise(Basis(i)) for i in range((len(at.a) + len(at.b)) * at.a.shape[1])]
    return torch.stack([torch.cat([a.flatten(), b.flatten()]) for a, b in columns], 1)


def unpack(at: FixedRank, flat):
    a, b = flat[: at.a.numel()], flat[at.a.numel() :]
    return a.reshape(at.a.shape), b.reshape(at.b.shape)


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 9, 3), (6, 20, 6), (5, 5, 1)])
def test_lift_norm_and_gauges_against_dense_matrices(shape):
    at = point(1, *shape)
    g = torch.randn(7, shape[0], shape[1], dtype=torch.float64)
    pair = at.lift(g @ at.b, g.transpose(1, 2) @ at.a)
    tangent = projected(at, g)
    torch.testing.assert_close(induced(at, pair), tangent, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        at.norm_squared(pair), tangent.square().sum((1, 2)), rtol=1e-11, atol=0
    )
    free = torch.randn_like(pair[0]), torch.randn_like(pair[1])  # a pair of no gauge
    torch.testing.assert_close(
        at.norm_squared(free), induced(at, free).square().sum((1, 2)), rtol=1e-11, atol=0
    )
    for chosen in (at.canonical(free), at.horizontal(free)):
        torch.testing.assert_close(induced(at, chosen), induced(at, free), rtol=0, atol=1e-11)
    torch.testing.assert_close(at.canonical(pair), pair, rtol=0, atol=1e-11)
    d_a, d_b = at.horizontal(pair)
    torch.testing.assert_close(at.a.T @ d_a, d_b.transpose(1, 2) @ at.b, rtol=0, atol=1e-11)


def test_the_papers_lift_is_not_horizontal_and_its_equation_39_does_not_make_it_so():
    at = point(2)
    g = torch.randn(M, N, dtype=torch.float64)
    d_a, d_b = at.lift(g @ at.b, g.T @ at.a)
    scale = (at.a.T @ d_a).norm()
    assert (at.a.T @ d_a - d_b.T @ at.b).norm() > 0.1 * scale
    from scipy.linalg import solve_sylvester

    m, n = at.power_m(1).numpy(), at.power_n(1).numpy()
    omega = torch.from_numpy(solve_sylvester(m, n, (at.b.T @ d_b - at.a.T @ d_a).numpy()))
    moved_a, moved_b = d_a + at.a @ omega, d_b - at.b @ omega.T
    assert (at.a.T @ moved_a - moved_b.T @ at.b).norm() > 0.1 * scale


def test_rank_one_norm_has_its_closed_form():
    at = point(3, r=1)
    u, v = torch.randn(M, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    g = torch.outer(u, v)
    u_in = float((at.a[:, 0] @ u) / at.a.norm())
    v_in = float((at.b[:, 0] @ v) / at.b.norm())
    uu, vv = float(u @ u), float(v @ v)
    closed = u_in**2 * vv + uu * v_in**2 - u_in**2 * v_in**2
    assert float(at.norm_squared(at.lift(g @ at.b, g.T @ at.a))) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_lift_norm_and_clipped_sum_do_not_depend_on_the_gauge(seed):
    at, change = point(seed), gauge(seed + 10)
    other = turned(at, change)
    g = torch.randn(8, M, N, dtype=torch.float64)
    sums = []
    for where in (at, other):
        pair = where.lift(g @ where.b, g.transpose(1, 2) @ where.a)
        norms = where.norm_squared(pair).sqrt()
        factors = (2.0 / norms).clamp(max=1)[:, None, None]
        assert 0 < float((factors < 1).float().mean()) < 1 or float(factors.max()) < 1
        total = (pair[0] * factors).sum(0), (pair[1] * factors).sum(0)
        sums.append((norms, induced(where, total), induced(where, pair)))
    for first, second in zip(*sums, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_the_law_of_the_noise_does_not_depend_on_the_gauge(seed):
    """It is Gaussian and linear in the normals, so its covariance on Z is the whole law."""
    at = point(seed)
    covariances = []
    for where in (at, turned(at, gauge(seed + 20))):
        on_z = torch.stack(
            [induced(where, unpack(where, c)).flatten() for c in noise_matrix(where).T], 1
        )
        covariances.append(on_z @ on_z.T)
    basis = torch.eye(M * N, dtype=torch.float64).reshape(-1, M, N)
    projector = projected(at, basis).flatten(1)
    torch.testing.assert_close(covariances[0], projector, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariances[1], covariances[0], rtol=0, atol=1e-10)


def test_noise_reaches_every_direction_that_a_record_can_move():
    """Mahalanobis distance of a lift under the noise on the released pair = the norm clipped."""
    at = point(4)
    columns = noise_matrix(at)
    precision = torch.linalg.pinv(columns @ columns.T, rtol=1e-9, hermitian=True)
    assert int(torch.linalg.matrix_rank(columns, rtol=1e-9)) == R * (M + N - R)
    for _ in range(5):
        g = torch.randn(M, N, dtype=torch.float64)
        pair = at.lift(g @ at.b, g.T @ at.a)
        flat = torch.cat([pair[0].flatten(), pair[1].flatten()])
        outside = (
            flat
            - columns @ torch.linalg.lstsq(columns, flat[:, None], driver="gelsd").solution[:, 0]
        )
        assert outside.norm() < 1e-9
        assert float(flat @ precision @ flat) == pytest.approx(float(at.norm_squared(pair)))


def test_equation_19_alone_would_publish_a_block_of_the_sum_without_noise():
    at = point(5)
    g = torch.randn(M, N, dtype=torch.float64)
    d_a, _ = at.lift(g @ at.b, g.T @ at.a)
    omega = torch.randn(M, R, dtype=torch.float64)
    xi_a = (omega - at.frame_a @ (at.frame_a.T @ omega)) @ at.power_n(-0.5)
    torch.testing.assert_close(at.a.T @ (d_a + 100 * xi_a), at.a.T @ d_a, rtol=0, atol=1e-9)
    assert (at.a.T @ (100 * at.noise(SystemNormal())[0])).norm() > 1


@pytest.mark.parametrize("horizontal", [True, False])
def test_second_moments_of_the_noise(horizontal):
    at = turned(point(6), gauge(6))
    choose = at.horizontal if horizontal else at.canonical
    exact = [torch.zeros(R, R, dtype=torch.float64) for _ in range(2)]
    for column in noise_matrix(at).T:
        exact = [e + d.T @ d for e, d in zip(exact, choose(unpack(at, column)), strict=True)]
    torch.testing.assert_close(
        list(at.noise_moments(horizontal=horizontal)), exact, rtol=1e-9, atol=1e-9
    )


def test_retraction_error_is_below_the_product_of_the_steps():
    for seed in range(5):
        at = point(seed)
        d_a, d_b = torch.randn(M, R).double(), torch.randn(N, R).double()
        for eta in (1.0, 0.1, 0.01):
            new_a, new_b = retract(at.a, at.b, eta * d_a, eta * d_b)
            aim = at.a @ at.b.T + eta * induced(at, (d_a, d_b))
            error = float((new_a @ new_b.T - aim).norm())
            u, s, v = torch.linalg.svd(aim)
            best = float((u[:, :R] * s[:R] @ v[:R] - aim).norm())
            assert error == pytest.approx(best, rel=1e-6)
            assert error <= eta**2 * float((d_a @ d_b.T).norm())
            torch.testing.assert_close(new_a.T @ new_a, new_b.T @ new_b, rtol=0, atol=1e-10)


def test_retraction_stays_in_the_old_frame():
    a, b = balance(point(7).a, point(7).b)
    change = torch.linalg.qr(gauge(7)).Q
    a, b = a @ change, b @ change
    new_a, new_b = retract(a, b, torch.zeros_like(a), torch.zeros_like(b))
    torch.testing.assert_close(new_a, a, rtol=0, atol=1e-11)
    torch.testing.assert_close(new_b, b, rtol=0, atol=1e-11)


# --- the step rule -------------------------------------------------------------------------------


def adapter(seed: int = 0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=dtype)

    return {"fc": (draw(1, 2, 6), draw(1, 5, 2)), "conv": (draw(1, 2, 3, 2, 2), draw(1, 8, 2))}


def gradients(weights, batch: int, seed: int = 0):
    """Per-example factor gradients of dense ones; also the dense ones, [B, m, n] a site."""
    rng = torch.Generator().manual_seed(seed)
    dense, grads = {}, {}
    for name, (a, b) in weights.items():
        g = torch.randn(batch, b.shape[1], a[0, 0].numel(), generator=rng, dtype=a.dtype)
        dense[name] = g
        grads[name] = (
            (b[0].T @ g).reshape(batch, *a.shape[1:]),
            g @ a[0].flatten(1).T,
        )
    return grads, dense


def delta(weights):
    return {name: b[0] @ a[0].flatten(1) for name, (a, b) in weights.items()}


def clipped_mean(rule, weights, grads, *, clip, std, divisor, normal):
    """The loop's part of a step, as `step_rule` states it."""
    c = rule.contributions(weights, grads)
    s = (clip / rule.norms(weights, c)).clamp(max=1)
    noise = rule.noise(weights, std, normal)
    return {
        name: tuple(
            (torch.einsum("i,i...->...", s.to(part.dtype), part)[None] + extra) / divisor
            for part, extra in zip(c[name], noise[name], strict=True)
        )
        for name in c
    }


class Recorded:
    """Normals from a seed, kept, so that numpy can use the same ones."""

    def __init__(self, seed):
        self.rng, self.kept = np.random.default_rng(seed), []

    def __call__(self, *shape):
        self.kept.append(self.rng.standard_normal(shape))
        return torch.from_numpy(self.kept[-1].copy())


def numpy_steps(weights, dense_of, *, steps, clip, std, divisor, lr, normals):
    """PRISM on dense m × n matrices: SVD of Z, dense projection, Sylvester by scipy, dense SVD."""
    from scipy.linalg import solve_sylvester, sqrtm

    balanced = {}
    for name, (a, b) in weights.items():
        u, s, v = np.linalg.svd(b[0].numpy() @ a[0].flatten(1).numpy(), full_matrices=False)
        r = b.shape[2]
        balanced[name] = (u[:, :r] * np.sqrt(s[:r]), v[:r].T * np.sqrt(s[:r]))
    moments = {name: [0.0, 0.0, 0.0, 0.0] for name in balanced}
    for t in range(1, steps + 1):
        tangents, squares = {}, 0.0
        for name, (a, b) in balanced.items():
            p_a, p_b = a @ np.linalg.pinv(a), b @ np.linalg.pinv(b)
            g = dense_of(t)[name].numpy()
            tangents[name] = p_a @ g + g @ p_b - p_a @ g @ p_b
            squares = squares + (tangents[name] ** 2).sum((1, 2))
        factors = np.minimum(1, clip / np.sqrt(squares))
        new = {}
        for name, (a, b) in balanced.items():
            m, n = a.T @ a, b.T @ b
            omega_a, omega_b = normals.pop(0), normals.pop(0)
            z = np.einsum("i,imn->mn", factors, tangents[name])
            z = (
                z
                + std
                * (np.eye(len(a)) - a @ np.linalg.pinv(a))
                @ omega_a
                @ np.linalg.inv(sqrtm(n))
                @ b.T
            )
            z = (z + std * a @ np.linalg.inv(sqrtm(m)) @ omega_b.T) / divisor
            # Horizontal pair of a tangent: dA = A X + (Z - Π_A Z) B N⁻¹ with M X + X N = A'Z B.
            inner = np.linalg.pinv(a) @ z @ np.linalg.pinv(b).T
            x = solve_sylvester(m, n, inner @ n)
            d_a = a @ x + (z - a @ np.linalg.pinv(a) @ z) @ np.linalg.pinv(b).T
            d_b = b @ (inner - x).T + (z - z @ b @ np.linalg.pinv(b)).T @ np.linalg.pinv(a).T
            kept, step = moments[name], []
            for i, (d, other) in enumerate(((d_a, n), (d_b, m))):
                kept[i] = 0.9 * kept[i] + 0.1 * d
                kept[i + 2] = 0.999 * kept[i + 2] + 0.001 * d.T @ d / len(d)
                lam = (std / divisor) ** 2 * np.trace(np.linalg.inv(other)) / len(other)
                v_hat = kept[i + 2] / (1 - 0.999**t) + lam * np.eye(len(other))
                step.append(kept[i] / (1 - 0.9**t) @ np.linalg.inv(sqrtm(v_hat)).real)
            u, s, v = np.linalg.svd(a @ b.T - lr * (step[0] @ b.T + a @ step[1].T))
            r = a.shape[1]
            left, right = u[:, :r] * np.sqrt(s[:r]), v[:r].T * np.sqrt(s[:r])
            pu, _, pv = np.linalg.svd(left.T @ a + right.T @ b)
            new[name] = (left @ pu @ pv, right @ pu @ pv)
        balanced = new
    return {name: a @ b.T for name, (a, b) in balanced.items()}


def test_three_whole_steps_equal_an_independent_implementation():
    rule = Prism()
    given = adapter()
    weights = rule.start(given)
    fixed = {t: gradients(weights, 6, seed=t)[1] for t in (1, 2, 3)}
    normal = Recorded(0)
    for t in (1, 2, 3):
        grads = {
            name: (
                (b[0].T @ fixed[t][name]).reshape(6, *a.shape[1:]),
                fixed[t][name] @ a[0].flatten(1).T,
            )
            for name, (a, b) in weights.items()
        }
        mean = clipped_mean(rule, weights, grads, clip=4.0, std=2.0, divisor=5.0, normal=normal)
        weights = rule.update(weights, mean, 2.0 / 5.0, 0.1)
    by_numpy = numpy_steps(
        given, fixed.__getitem__, steps=3, clip=4.0, std=2.0, divisor=5.0, lr=0.1,
        normals=list(normal.kept),
    )  # fmt: skip
    for name, z in delta(weights).items():
        np.testing.assert_allclose(z.numpy(), by_numpy[name], rtol=0, atol=1e-9)
        assert (z - delta(given)[name]).norm() > 0.1  # three steps did something


def test_monte_carlo_of_the_noise_that_reaches_z():
    """RMS (σC/b) √(r(m+n-r)), within 2 %: 1,500 draws of 18 + 36 directions, 4 std are 1 %."""
    rule, weights = Prism(), adapter(1, torch.float32)
    weights = rule.start(weights)
    std, draws = 0.37, 1500
    squares = []
    for _ in range(draws):
        noise = rule.noise(weights, std, SystemNormal())
        squares.append(
            sum(
                float(
                    (
                        db[0] @ a[0].flatten(1).double() + b[0].double() @ da[0].flatten(1)
                    ).square().sum()
                )
                for (a, b), (da, db) in ((weights[n], noise[n]) for n in weights)
            )
        )  # fmt: skip
    directions = 2 * (5 + 6 - 2) + 2 * (8 + 12 - 2)
    assert math.sqrt(np.mean(squares)) == pytest.approx(std * math.sqrt(directions), rel=0.02)


def test_a_run_depends_on_z_alone():
    """Other factors of the same Z give the same Z after three adaptive steps with noise floors."""
    first = adapter(2)
    change = gauge(3, 2)
    second = {
        name: (
            torch.einsum("rs,s...->r...", torch.linalg.inv(change), a[0])[None],
            (b[0] @ change)[None],
        )
        for name, (a, b) in first.items()
    }
    ends = []
    for given in (first, second):
        rule = Prism(PrismOptions(debias=True))
        weights = rule.start(given)
        for t in range(3):
            rng = torch.Generator().manual_seed(t)
            dense = {
                n: torch.randn(z.shape, generator=rng).double() for n, z in delta(first).items()
            }
            grads = {
                n: (
                    (b[0].T @ dense[n]).reshape(1, *a.shape[1:]),
                    (dense[n] @ a[0].flatten(1).T)[None],
                )
                for n, (a, b) in weights.items()
            }
            lifted = rule.contributions(weights, grads)
            weights = rule.update(weights, lifted, 0.3, 0.05)
        ends.append(delta(weights))
    for name in first:
        torch.testing.assert_close(delta(first)[name], delta(second)[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=1e-9)


def test_contributions_are_of_one_example_and_norms_bound_the_sum():
    rule = Prism()
    weights = rule.start(adapter(3, torch.float32))
    grads, dense = gradients(weights, 5)
    together = rule.contributions(weights, grads)
    norms = rule.norms(weights, together)
    assert norms.dtype == torch.float64
    for i in range(5):
        alone = rule.contributions(
            weights, {n: (a[i : i + 1], b[i : i + 1]) for n, (a, b) in grads.items()}
        )
        for name in weights:
            for one, many in zip(alone[name], together[name], strict=True):
                torch.testing.assert_close(one[0], many[i], rtol=1e-5, atol=1e-6)
        squares = 0.0
        for name, (a, b) in weights.items():
            at = FixedRank.at(b[0], a[0].flatten(1).T)
            squares += float(projected(at, dense[name][i].double()).square().sum())
        assert float(norms[i]) == pytest.approx(math.sqrt(squares), rel=1e-5)


VARIANTS = [
    PrismOptions(),
    PrismOptions.released(),
    PrismOptions(adaptive=False),
    PrismOptions(gauge="lift", debias=True, floor="scalar"),
    PrismOptions(floor="none", damping="clamp", condition_cap=100.0),
]


@pytest.mark.parametrize("options", VARIANTS, ids=range(len(VARIANTS)))
def test_steps_of_noise_alone_stay_finite(options):
    rule = Prism(options)
    weights = rule.start(adapter(4, torch.float32))
    empty = {n: (a[:0], b[:0]) for n, (a, b) in weights.items()}
    assert rule.norms(weights, rule.contributions(weights, empty)).shape == (0,)
    for _ in range(25):
        noise = rule.noise(weights, 50.0, SystemNormal())
        mean = {n: (a.float(), b.float()) for n, (a, b) in noise.items()}
        weights = rule.update(weights, mean, 50.0, 0.05)
    for name, (a, b) in weights.items():
        assert a.dtype == torch.float32
        assert bool(a.isfinite().all() and b.isfinite().all())
        a_, b_ = b[0].double(), a[0].flatten(1).T.double()
        torch.testing.assert_close(a_.T @ a_, b_.T @ b_, rtol=1e-4, atol=1e-4)
        assert FixedRank.at(a_, b_).mu.min() > 0, name


@pytest.mark.parametrize("options", VARIANTS[:3], ids=range(3))
def test_it_finds_a_low_rank_target_through_noise(options):
    """Loss ‖Z - Z*‖² / 2 a site, its gradient clipped at 1, noise of std 0.002 on the mean."""
    rule, truth = Prism(options), delta(adapter(11))
    weights = rule.start(adapter(8))

    def distance(weights):
        return math.sqrt(
            sum(float((z - truth[n]).square().sum()) for n, z in delta(weights).items())
        )

    far = distance(weights)
    steps, lr = 60, 0.3 if options.adaptive else 0.8
    for t in range(steps):
        dense = {n: z - truth[n] for n, z in delta(weights).items()}
        grads = {
            n: ((b[0].T @ dense[n]).reshape(1, *a.shape[1:]), (dense[n] @ a[0].flatten(1).T)[None])
            for n, (a, b) in weights.items()
        }
        mean = clipped_mean(
            rule, weights, grads, clip=1.0, std=0.002, divisor=1.0, normal=Recorded(t)
        )
        weights = rule.update(weights, mean, 0.002, lr * (1 - t / steps))
    assert distance(weights) < 0.1 * far


def test_without_floors_a_step_of_noise_is_as_long_at_any_noise_and_with_them_shorter():
    lengths = {}
    for floor in ("none", "trace"):
        for std in (0.1, 10.0):
            rule = Prism(PrismOptions(floor=floor, betas=(0.0, 0.0)))
            weights = rule.start(adapter(5))
            noise = rule.noise(weights, std, Recorded(1))
            after = rule.update(weights, noise, std, 1e-4)
            moved = [(delta(after)[n] - delta(weights)[n]).norm() for n in weights]
            lengths[floor, std] = float(torch.stack(moved).norm())
    assert lengths["none", 0.1] == pytest.approx(lengths["none", 10.0], rel=1e-3)
    assert lengths["trace", 0.1] < 0.8 * lengths["none", 0.1]


def test_debiased_second_moments_have_no_noise_in_them():
    rule = Prism(PrismOptions(debias=True))
    weights = rule.start(adapter(6))
    for _ in range(150):
        rule.update(weights, rule.noise(weights, 2.0, SystemNormal()), 2.0, 0.0)
    for name, point_ in rule._at(weights).items():
        for factor, moment in zip("ab", point_.noise_moments(horizontal=True), strict=True):
            size = len(getattr(point_, factor))
            kept = rule._moments[name][f"second_{factor}"] / (1 - 0.999**150)
            # Relative std of one entry's average is below √(2 / (150·5)); five of them.
            assert float(kept.norm()) < 0.26 * float((4.0 * moment / size).norm())


def test_lora_standard_start_is_refused_with_a_way_out():
    weights = {"fc": (torch.randn(1, 4, 8), torch.zeros(1, 6, 4))}
    with pytest.raises(UsageError, match="spectral") as caught:
        Prism().start(weights)
    assert "rank 0 at 'fc'" in caught.value.found
    weights = {"fc": (torch.randn(1, 4, 8), torch.randn(1, 6, 3).repeat(1, 1, 2)[:, :, :4])}
    with pytest.raises(UsageError, match="rank 3"):
        Prism().start(weights)
    with pytest.raises(UsageError, match="smaller rank"):
        Prism().start({"fc": (torch.randn(1, 4, 3), torch.randn(1, 6, 4))})
    with pytest.raises(UsageError, match="finite"):
        Prism().start({"fc": (torch.full((1, 2, 8), torch.nan), torch.randn(1, 6, 2))})


def test_a_run_goes_on_from_its_state():
    def step(rule, weights, seed):
        return rule.update(weights, rule.noise(weights, 1.0, Recorded(seed)), 1.0, 0.1)

    rule = Prism()
    weights = step(rule, rule.start(adapter(7)), 0)
    again = Prism()
    again.load_state_dict({k: v.clone() for k, v in rule.state_dict().items()})
    for (a, b), (c, d) in zip(
        step(rule, weights, 1).values(), step(again, weights, 1).values(), strict=True
    ):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    with pytest.raises(UsageError, match="state of prism"):
        Prism().load_state_dict({"momentum": torch.zeros(1)})
    with pytest.raises(UsageError, match="state of prism"):
        Prism().load_state_dict({})


def test_options_out_of_range_are_refused():
    for wrong in (
        {"betas": (1.0, 0.9)},
        {"floor": "geometry"},
        {"rank_floor": 0.0},
        {"epsilon": 0},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            PrismOptions(**wrong)


# --- the spectral start --------------------------------------------------------------------------


def test_the_spectral_start_changes_nothing_until_training_does():
    family = tiny_family()
    names = family.sites()[:6]
    before = {n: p.clone() for n, p in family.model.state_dict().items()}
    start = spectral_start(family.model, names, 2)
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([100.0, 700.0])
    with torch.no_grad():
        plain = family.model(x, t).sample
        with residual_base(family.model, start), adapters(family.model, start):
            moved = family.model(x, t).sample
        torch.testing.assert_close(moved, plain, rtol=0, atol=1e-4)
        rule = Prism()
        trained = rule.start(start)
        noise = rule.noise(trained, 1.0, SystemNormal())
        trained = rule.update(trained, noise, 1.0, 0.05)
        with residual_base(family.model, start), adapters(family.model, trained):
            inside = family.model(x, t).sample
        with adapters(family.model, rebase(trained, start)):
            outside = family.model(x, t).sample
    assert (inside - plain).abs().max() > 1e-3
    torch.testing.assert_close(outside, inside, rtol=0, atol=1e-4)
    assert all(torch.equal(p, before[n]) for n, p in family.model.state_dict().items())


def test_a_small_change_of_a_large_start_survives_being_rebased():
    """Z and Z0 are of size 1 and differ by 1e-4: their float32 difference keeps 5 digits of it."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 2, 3, 3, 3, generator=rng), torch.randn(1, 5, 2, generator=rng)
    start = {"conv": (a, b)}
    moved = {"conv": (a + 1e-4 * torch.randn(a.shape, generator=rng), b)}
    (new_a, new_b) = rebase(moved, start)["conv"]
    assert new_a.shape == (1, 4, 3, 3, 3)
    assert new_b.shape == (1, 5, 4)
    wanted = b[0].double() @ (moved["conv"][0] - a)[0].flatten(1).double()
    found = new_b[0].double() @ new_a[0].flatten(1).double()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert new_a.abs().max() < 0.1  # nothing of the start is left to cancel
    (tall_a, tall_b) = rebase({"fc": (torch.ones(1, 2, 3), torch.eye(2)[None])},
                              {"fc": (torch.zeros(1, 2, 3), torch.eye(2)[None])})["fc"]  # fmt: skip
    torch.testing.assert_close(tall_b[0] @ tall_a[0], torch.ones(2, 3))
    assert tall_b.shape == (1, 2, 4)


def test_the_base_comes_back_when_training_fails():
    family = tiny_family()
    name = family.sites()[0]
    before = {n: p.clone() for n, p in family.model.state_dict().items()}
    start = spectral_start(family.model, [name], 2)
    with pytest.raises(RuntimeError, match="stop"), residual_base(family.model, start):
        assert not torch.equal(
            family.model.state_dict()[f"{name}.weight"], before[f"{name}.weight"]
        )
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in family.model.state_dict().items())


def test_a_rank_that_the_base_does_not_have_is_refused():
    with pytest.raises(UsageError, match="rank at least 9"):
        spectral_start(torch.nn.Sequential(torch.nn.Linear(8, 12)), ["0"], 9)
