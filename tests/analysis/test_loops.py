"""Loops planted with known points, cycles, spectra and exponents: every kind is told, residuals are certified."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag

from pdejax import Figure
from pdejax.analysis.loops import classify_loop, fixed_point, loop_eigenvalues, loop_exponents, loop_of
from pdejax.analysis.loops._kinds import KINDS, _falls, exponent_kind

N, D = 3, 2
U = jax.random.normal(jax.random.key(0), (N, D))
IN = jax.nn.sigmoid(U)
ZERO = jnp.zeros((N, D))
TURN = np.linalg.qr(np.random.default_rng(0).standard_normal((N * D, N * D)))[0]


# One structure for each family of maps, so that its members share a program.
class Linear(eqx.Module):
    matrix: jax.Array
    shift: jax.Array

    def __call__(self, u):
        return (self.matrix @ u.ravel()).reshape(u.shape) + self.shift


class Polynomial(eqx.Module):
    """Entry by entry a u + b u² + c u³ + e."""

    a: jax.Array
    b: jax.Array
    c: jax.Array
    e: jax.Array

    def __call__(self, u):
        return self.a * u + self.b * u**2 + self.c * u**3 + self.e


class Inverse(eqx.Module):
    """u + 1/u: u grows as the root of 2k, its steps fall as one over it."""

    def __call__(self, u):
        return u + 1 / u


class Root(eqx.Module):
    """sqrt(u² − 0.01): falls, and has no value after 100 u² passes."""

    def __call__(self, u):
        return jnp.sqrt(u**2 - 0.01)


class Tanh(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, u):
        return jnp.tanh(u @ self.weight + self.bias)


def linear(*blocks, shift=0.0):
    """A linear map of these blocks, 0.2 I beside them, in turned axes."""
    matrix = block_diag(*blocks)
    matrix = block_diag(matrix, 0.2 * np.eye(N * D - len(matrix)))
    return Linear(jnp.asarray(TURN @ matrix @ TURN.T), jnp.full((N, D), shift))


def turn(size, angle):
    c, s = math.cos(angle), math.sin(angle)
    return size * np.asarray([[c, -s], [s, c]])


def polynomial(a=0.0, b=0.0, c=0.0, e=0.0):
    return Polynomial(*(jnp.asarray(float(x)) for x in (a, b, c, e)))


def logistic(r):
    return polynomial(a=r, b=-r)


def planted(weight, point):
    """tanh(u W + b) with this point: b = arctanh(u*) − u* W, the same for every token, so that DG there is known."""
    w, x = jnp.asarray(weight), jnp.broadcast_to(jnp.asarray(point), (N, D))
    return Tanh(w, jnp.arctanh(x) - x @ w)


def slopes(weight, point):
    """Eigenvalues of DG of a token at the planted point."""
    return np.linalg.eigvals(np.asarray(weight) * (1 - np.asarray(point) ** 2)[None, :])


def cycle_slope(r, period):
    """The derivative of r x (1 − x) along its cycle, by plain iteration."""
    x, found = 0.3, 1.0
    for _ in range(100_000):
        x = r * x * (1 - x)
    for _ in range(period):
        found *= r * (1 - 2 * x)
        x = r * x * (1 - x)
    return found


W, POINT = np.asarray([[0.9, -0.7], [0.8, 0.6]]), np.asarray([0.4, -0.2])
LOG = math.log
# name: map, start, kind, period, dominant eigenvalues of the map (of its power p on a cycle), largest exponents, passes for them.
CASES = {
    "stable": (linear(np.diag([0.9, 0.5, -0.3])), U, "fixed point", 1, [0.9, 0.5, -0.3], [LOG(0.9), LOG(0.5)], 1024),
    "affine": (linear(np.diag([0.8, -0.5]), shift=1.0), U, "fixed point", 1, [0.8, -0.5], [LOG(0.8), LOG(0.5)], 1024),
    "slow": (linear(np.diag([0.995])), U, "fixed point", 1, [0.995], [LOG(0.995)], 1024),
    "slow, from afar": (polynomial(a=0.997, e=0.003), ZERO, "fixed point", 1, [0.997] * 6, [LOG(0.997)], 1024),
    "slower, from afar": (polynomial(a=0.999, e=0.001), ZERO, "fixed point", 1, [0.999] * 6, [LOG(0.999)], 1024),
    "negative": (linear(np.diag([-0.97])), U, "fixed point", 1, [-0.97], [LOG(0.97)], 1024),
    "spiral": (
        linear(turn(0.95, 1.0), turn(0.7, 0.4)),
        U,
        "fixed point",
        1,
        [0.95 * np.exp(1j), 0.95 * np.exp(-1j), 0.7 * np.exp(0.4j), 0.7 * np.exp(-0.4j)],
        [LOG(0.95), LOG(0.95), LOG(0.7)],
        1024,
    ),
    "far from normal": (
        linear(np.asarray([[0.9, 50.0], [0.0, 0.8]])),
        U,
        "fixed point",
        1,
        [0.9, 0.8],
        [LOG(0.9), LOG(0.8)],
        1024,
    ),
    "rotation": (linear(turn(1.0, 1.0), turn(0.5, 2.0)), U, "marginal", 0, None, [0.0, 0.0, LOG(0.5)], 1024),
    "a fifth of a turn": (linear(turn(1.0, 2 * np.pi / 5)), U, "marginal", 5, [1.0, 1.0], [0.0, 0.0], 1024),
    "a line of points": (linear(np.diag([1.0, 0.5])), U, "marginal", 1, [1.0, 0.5], [0.0, LOG(0.5)], 1024),
    "a change of sign": (linear(np.diag([-1.0, 0.5])), U, "marginal", 2, [1.0, 0.25], [0.0, LOG(0.5)], 1024),
    "algebraic": (polynomial(a=1.0, c=-0.2), U, "marginal", 1, None, [0.0], 4096),
    "shear": (linear(np.asarray([[1.0, 1.0], [0.0, 1.0]])), U, "drift", 0, None, [0.0], 4096),
    "drift": (polynomial(a=1.0, e=0.3), U, "drift", 0, None, [0.0], 256),
    "drift of one": (
        Linear(jnp.diag(jnp.asarray([1.0] + [0.5] * 5)), jnp.full((N, D), 0.1)),
        U,
        "drift",
        0,
        None,
        [0.0, LOG(0.5)],
        1024,
    ),
    "drift by a root": (Inverse(), 1 + U**2, "drift", 0, None, None, 0),
    "expanding, from 0": (polynomial(a=2.0, e=1.0), ZERO, "expanding", 0, None, [LOG(2.0)], 256),
    "expanding": (linear(np.diag([1.3, 0.5])), U, "expanding", 0, None, [LOG(1.3), LOG(0.5)], 256),
    "slowly expanding": (linear(np.diag([1.003, 0.5])), U, "expanding", 0, None, [LOG(1.003)], 1024),
    "an expanding spiral": (linear(turn(1.05, 1.0)), U, "expanding", 0, None, [LOG(1.05), LOG(1.05)], 1024),
    "fast": (linear(np.diag([30.0, 0.5])), U, "expanding", 0, None, [LOG(30)], 64),
    "on an unstable point": (polynomial(a=2.0), jnp.zeros((N, D)), "expanding", 1, [2.0] * 6, [LOG(2)], 256),
    "square": (polynomial(a=1.0, b=1.0, e=1.0), U, "blow-up", 0, None, None, 0),
    "cube": (polynomial(a=1.0, c=1.0), 2 + U**2, "blow-up", 0, None, None, 0),
    "logistic 2.8": (logistic(2.8), IN, "fixed point", 1, [-0.8] * 6, [LOG(0.8)] * 3, 1024),
    "logistic 3": (logistic(3.0), IN, "marginal", 1, None, [0.0], 4096),
    "logistic 3.2": (logistic(3.2), IN, "cycle", 2, [0.16] * 6, [LOG(0.16) / 2] * 3, 1024),
    "logistic 3.5": (
        logistic(3.5),
        IN,
        "cycle",
        4,
        [cycle_slope(3.5, 4)] * 6,
        [LOG(abs(cycle_slope(3.5, 4))) / 4],
        1024,
    ),
    "logistic 3.55": (logistic(3.55), IN, "cycle", 8, [cycle_slope(3.55, 8)] * 6, None, 0),
    "logistic 3.83": (logistic(3.83), IN, "cycle", 3, [cycle_slope(3.83, 3)] * 6, None, 0),
    "chaos": (logistic(4.0), IN[:1, :1], "expanding", 0, None, [LOG(2.0)], 8192),
    "tanh": (planted(0.8 * W, POINT), U, "fixed point", 1, slopes(0.8 * W, POINT), None, 0),
    "tanh, alternating": (planted(-2 * np.eye(2), [0.0, 0.0]), U, "cycle", 2, None, None, 0),
}
SLOW = {
    "slow",
    "far from normal",
    "algebraic",
    "an expanding spiral",
    "logistic 3.55",
    "logistic 3.83",
    "cube",
    "logistic 3",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_every_kind_is_told(name):
    step, start, kind, period, eigenvalues, exponents, passes = CASES[name]
    loop = loop_of(step, start)
    found = classify_loop(loop)
    assert (found.kind, found.period) == (kind, period)
    if kind in ("fixed point", "cycle"):
        # By hand: the point comes back after p passes, and after no fewer.
        point = np.asarray(found.point.state)
        orbit = [point]
        for _ in range(period):
            orbit.append(np.asarray(step(jnp.asarray(orbit[-1]))))
        size = max(np.abs(point).max(), 1e-12)
        assert np.abs(orbit[period] - point).max() <= 1e-9 * max(size, 1e-3)
        assert all(np.abs(orbit[k] - point).max() > 1e-3 for k in range(1, period))
        assert found.point.converged and found.rate < 1
    if eigenvalues is not None:
        wanted = np.asarray(eigenvalues, complex)
        values = loop_eigenvalues(loop, found.point.state, count=len(wanted), period=max(period, 1)).values[
            : len(wanted)
        ]
        order = [np.lexsort((x.imag.round(6), -np.abs(x).round(6))) for x in (values, wanted)]
        np.testing.assert_allclose(values[order[0]], wanted[order[1]], atol=1e-6)
    if exponents is not None:
        measured = loop_exponents(loop, k=len(exponents), loops=passes, discard=passes // 2).exponents
        np.testing.assert_allclose(np.asarray(measured), exponents, atol=1e-3)


def test_all_kinds_are_planted():
    assert {case[2] for case in CASES.values()} == set(KINDS) - {"not decided"}


def test_a_rate_too_slow_for_these_passes_decides_nothing():
    """1 − 0.9999^k has gone a twentieth of its way: no drift, though it grows as k does."""
    found = classify_loop(loop_of(polynomial(a=0.9999, e=1e-4), ZERO))
    assert (found.kind, found.bounded) == ("not decided", True) and found.growth > 0.9


def test_what_steps_fall_at_a_rate():
    """Exponential ones; not those of a power of k, of equal length with noise, or with a transient beside a drift."""
    k, noise = np.arange(1.0, 513.0), np.random.default_rng(0).standard_normal(512)
    assert _falls(0.9999**k) and _falls(0.98**k * np.exp(0.05 * noise))
    walks = np.exp(0.003 * np.cumsum(np.random.default_rng(1).standard_normal((50, 512)), axis=1))
    others = [k**-0.5, k**-1.0, k**-3.0, np.ones(512), np.exp(0.1 * noise), 0.99**k + 0.1, 1.01**k, 0 * k]
    assert not any(map(_falls, others))
    assert sum(map(_falls, walks)) <= 5


def test_the_exponent_of_growth_from_zero():
    found = classify_loop(loop_of(polynomial(a=2.0, e=1.0), ZERO))
    assert float(found.exponent) == pytest.approx(LOG(2.0), rel=1e-6)


@pytest.mark.parametrize("start", [1 + 0.1 * IN, 0.05 * IN, IN[:1, :1] * 1e-3])
def test_no_value_is_no_growth(start):
    """Lengths that fall until a root has no value, after a hundred passes or at once: neither expanding nor a blow-up."""
    found = classify_loop(loop_of(Root(), start))
    assert found.kind == "not decided" and not found.bounded and math.isnan(float(found.exponent))
    assert np.isnan(found.norms[-1]) and found.norms[0] < 10


@pytest.mark.slow
def test_random_linear_loops():
    """Forty drawn spectra, complex pairs among them, on the sides of the unit circle that are known."""
    rng = np.random.default_rng(1)
    wrong = []
    for i in range(40):
        radius = [rng.uniform(0.3, 0.98), 1.0, rng.uniform(1.02, 1.5)][i % 3]
        first = turn(radius, rng.uniform(0.3, 2.8)) if i % 2 else np.diag([radius * rng.choice([-1, 1])])
        inside = np.diag(rng.uniform(-0.9, 0.9, 3) * min(radius, 1.0))
        found = classify_loop(loop_of(linear(first, inside), U))
        kind = ["fixed point", "marginal", "expanding"][i % 3]
        if found.kind != kind or (kind == "fixed point" and abs(found.rate - radius) > 1e-6):
            wrong.append((i, radius, found.kind, kind, found.rate))
    assert wrong == []


def test_a_slow_approach_is_called_its_point_or_nothing():
    """u − u² + 1e-6 is drawn to 1e-3, where its slope is 0.998: what 64 passes show as an exponent near 0 is no neutral loop."""
    found = classify_loop(loop_of(polynomial(a=1.0, b=-1.0, e=1e-6), U * 0 + 0.5), loops=64)
    assert found.kind == "fixed point"
    np.testing.assert_allclose(found.point.state, 1e-3, rtol=1e-6)


def jordan(radius):
    """A block of one eigenvalue: powers of k before it falls."""
    return Linear(jnp.asarray(radius * np.eye(N * D) + np.eye(N * D, k=1)), ZERO)


# name: map, start, passes, the truth, and whether it must be said.
TRUTHS = {
    # Cycles of more than 8 passes, true exponents −0.021, −0.075 and −0.0025; and weak chaos, +0.023.
    "a long cycle": (logistic(3.569), IN, 512, "cycle", False),
    "a long cycle, seen for longer": (logistic(3.569), IN, 4096, "cycle", False),
    "a strong cycle of 16": (logistic(3.566), IN, 512, "cycle", False),
    "a weak cycle of 16": (logistic(3.5645), IN, 4096, "cycle", False),
    "weak chaos": (logistic(3.5702), IN, 512, "expanding", False),
    "weak chaos, seen for longer": (logistic(3.5702), IN, 4096, "expanding", True),
    "chaos": (logistic(3.7), IN, 512, "expanding", True),
    "Jordan, 64": (jordan(0.985), U, 64, "fixed point", True),
    "Jordan, 128": (jordan(0.985), U, 128, "fixed point", True),
    "Jordan, 256": (jordan(0.985), U, 256, "fixed point", True),
    "Jordan, 512": (jordan(0.985), U, 512, "fixed point", True),
    "Jordan of 1, 32": (jordan(1.0), U, 32, "drift", True),
    "Jordan of 1, 512": (jordan(1.0), U, 512, "drift", True),
    "Jordan beyond 1": (jordan(1.02), U, 512, "expanding", True),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_kind_is_the_truth_or_not_decided(name):
    """Exponents near 0 and growth before a fall: what is named is so, whatever the point values suggest."""
    step, start, passes, truth, must = TRUTHS[name]
    found = classify_loop(loop_of(step, start), loops=passes)
    assert found.kind in ((truth,) if must else (truth, "not decided"))


@pytest.mark.parametrize(
    ("value", "ci", "kind"),
    [
        (0.0, 0.0, "marginal"),
        (0.001, 0.02, "marginal"),
        (0.001, 0.03, "not decided"),  # reaches beyond what counts as 0
        (-0.021, 0.049, "not decided"),
        (-0.015, 0.002, "not decided"),  # falls at a rate, if slowly
        (0.015, 0.002, "not decided"),
        (-0.004, 0.0004, "marginal"),  # as a power of k does
        (0.03, 0.01, "expanding"),
        (0.03, 0.04, "not decided"),
        (0.03, math.nan, "not decided"),
        (-0.3, 0.01, "not decided"),
    ],
)
def test_what_an_exponent_shows_of_512_passes(value, ci, kind):
    """2 log(512)/512 = 0.0244, 4 log(2)/512 = 0.0054."""
    assert exponent_kind(Figure(value, value - ci, value + ci), 512) == kind


@pytest.mark.parametrize("distance", [0.1, 3.0])
def test_newton_krylov_finds_points_that_repel(distance):
    """x* = 1 − 1/r of the logistic map at r = 3.9, which every orbit leaves; and a planted point from far away."""
    found = fixed_point(loop_of(logistic(3.9), IN), jnp.full((N, D), 1 - 1 / 3.9 + 0.05 * distance))
    np.testing.assert_allclose(found.state, 1 - 1 / 3.9, rtol=1e-10)
    assert found.converged and found.residual < 1e-10
    far = fixed_point(loop_of(planted(0.8 * W, POINT), U), jnp.broadcast_to(jnp.asarray(POINT) + distance, (N, D)))
    np.testing.assert_allclose(far.state, np.broadcast_to(POINT, (N, D)), rtol=1e-9)
    assert far.relative <= 1e-11 and far.correction <= 1e-9


def test_where_there_is_no_point():
    """u + 1 has none: the residual says so."""
    found = fixed_point(loop_of(polynomial(a=1.0, e=1.0), U))
    assert not found.converged and found.residual == pytest.approx(math.sqrt(N * D))


class Mirrored(eqx.Module):
    """H B H with the reflection H of `way` and B of blocks [[a, −b], [b, a]]: eigenvalues a ± ib."""

    a: jax.Array
    b: jax.Array
    way: jax.Array

    def __call__(self, u):
        def mirrored(x):
            return x - 2 * jnp.vdot(self.way, x) * self.way

        first, second = mirrored(u.ravel()).reshape(-1, 2).T
        moved = jnp.stack([self.a * first - self.b * second, self.b * first + self.a * second], axis=1)
        return mirrored(moved.ravel()).reshape(u.shape)


@pytest.mark.slow
def test_spectra_without_a_matrix():
    """840 entries, beyond those of a formed matrix: complex pairs to 1e-8, whole, their residuals true."""
    rng = np.random.default_rng(2)
    size = np.concatenate([[0.95, 0.9, 0.85], rng.uniform(0.0, 0.7, 417)])
    angles = np.concatenate([[1.0, 0.3, 2.0], rng.uniform(0.0, 3.0, 417)])
    way = rng.standard_normal(840)
    step = Mirrored(
        *(jnp.asarray(x) for x in (size * np.cos(angles), size * np.sin(angles), way / np.linalg.norm(way)))
    )
    loop = loop_of(step, jax.random.normal(jax.random.key(1), (40, 21)))
    found = loop_eigenvalues(loop, loop.start, count=3)
    assert not found.complete and found.converged and len(found.values) == 4
    exact = size[:2] * np.exp(1j * angles[:2])
    np.testing.assert_allclose(found.values[found.values.imag > 0], exact, atol=1e-8)
    np.testing.assert_allclose(found.values[found.values.imag < 0], exact.conj(), atol=1e-8)
    v = np.asarray(found.vector)
    moved = np.asarray(step(jnp.asarray(v.real))) + 1j * np.asarray(step(jnp.asarray(v.imag)))
    assert float(np.linalg.norm(moved - found.values[0] * v)) == pytest.approx(found.residuals[0], abs=1e-12)
    behaviour = classify_loop(loop)
    assert behaviour.kind == "fixed point" and behaviour.rate == pytest.approx(0.95, abs=1e-6)


def test_padding_is_no_part_of_a_loop():
    """A loop on two real tokens of three: the same kind, spectrum and exponents as on two, whatever lies at padding."""
    step, mask = planted(0.8 * W, POINT), jnp.asarray([True, True, False])
    padded = loop_of(step, U.at[2].set(1e3), mask=mask)
    short = loop_of(Tanh(step.weight, step.bias[:2]), U[:2])
    one, two = classify_loop(padded), classify_loop(short)
    assert one.kind == two.kind == "fixed point"
    np.testing.assert_allclose(np.asarray(one.point.state)[:2], two.point.state, rtol=1e-9)
    np.testing.assert_allclose(np.sort(np.abs(one.eigenvalues)), np.sort(np.abs(two.eigenvalues)), atol=1e-9)
    np.testing.assert_allclose(one.norms, two.norms, rtol=1e-9)


WRONG = {
    "no function": (lambda: loop_of(3, U), TypeError, "loop_of: the system is a int"),
    "another shape": (lambda: loop_of(lambda u: u[:1], U), ValueError, "it must keep the shape"),
    "not finite": (lambda: loop_of(jnp.tanh, U.at[0, 0].set(jnp.nan)), ValueError, "loop_of: inputs"),
    "few passes": (
        lambda: classify_loop(loop_of(jnp.tanh, U), loops=8),
        ValueError,
        "loops=8 must be an integer of at",
    ),
    "long periods": (lambda: classify_loop(loop_of(jnp.tanh, U), loops=32, periods=9), ValueError, "periods=9"),
    "another state": (lambda: fixed_point(loop_of(jnp.tanh, U), U[:1]), ValueError, "u has shape"),
    "no tolerance": (lambda: fixed_point(loop_of(jnp.tanh, U), tolerance=0.0), ValueError, "tolerance=0"),
    "no passes": (lambda: loop_of(jnp.tanh, U).states(0), ValueError, "loops=0"),
    "no head": (lambda: loop_of(jnp.tanh, U).outputs(U[None]), ValueError, "has no head"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(name):
    run, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        run()
