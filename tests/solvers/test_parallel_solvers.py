"""Solvers parallel in depth against stepping one after another, the textbook's loops, and what theory says of linear maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers.parallel import critical_path, mgrit, newton
from pdejax.solvers.parallel._newton import jacobians, linear_scan

N, M = 24, 4
BEND = jnp.asarray([[0.3, -0.9], [0.8, 0.2]])
U0 = jnp.asarray([0.7, -0.4])


def forced(u, k):
    return jnp.tanh(BEND @ u) + 0.2 * jnp.sin(0.3 * jnp.asarray(k, float))


def fine(k, u):
    return u + 0.1 * forced(u, k)


def coarser(m):
    return lambda k, u: u + 0.1 * m * forced(u, m * k)


def compiled(solve, steps, u, **options):
    """The solution as one program: call by call each operation is compiled alone."""
    return jax.device_get(jax.jit(lambda u: solve(steps, u, **options))(u))


def serial(step, u, count):
    us = jax.jit(lambda u: jax.lax.scan(lambda v, k: (step(k, v),) * 2, u, jnp.arange(count))[1])(u)
    return np.stack([u, *us])


EXACT = serial(fine, U0, N)


def textbook_parareal(k):
    """Lions, Maday and Turinici's formula in loops of NumPy: the coarse points after k iterations."""
    bend, chunks = np.asarray(BEND), N // M

    def step(i, u, size):
        return u + 0.1 * size * (np.tanh(bend @ u) + 0.2 * np.sin(0.3 * i))

    def coarse(j, u):
        return step(j * M, u, M)

    def chunk(j, u):
        for i in range(M):
            u = step(j * M + i, u, 1)
        return u

    points = [np.asarray(U0)]
    for j in range(chunks):
        points.append(coarse(j, points[-1]))
    for _ in range(k):
        new = [points[0]]
        for j in range(chunks):
            new.append(coarse(j, new[j]) + chunk(j, points[j]) - coarse(j, points[j]))
        points = new
    return np.stack(points)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_two_levels_with_one_sweep_are_parareal(k):
    found = compiled(mgrit, (fine, coarser(M)), U0, count=N, coarsening=M, relaxation="F", iterations=k, tolerance=0.0)
    np.testing.assert_allclose(found.us[::M], textbook_parareal(k), rtol=0, atol=1e-14)
    assert int(found.iterations) == k and not bool(found.converged)


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
@pytest.mark.parametrize("levels", [2, 3])
def test_cycles_reach_the_serial_states(relaxation, levels):
    m = {2: M, 3: 2}[levels]
    steps = (fine, *(coarser(m**level) for level in range(1, levels)))
    found = compiled(mgrit, steps, U0, count=N, coarsening=m, relaxation=relaxation, tolerance=1e-13)
    np.testing.assert_allclose(found.us, EXACT, rtol=0, atol=1e-12)
    assert bool(found.converged) and float(found.residual) <= 1e-13
    # As said: the residual is that of the states returned.
    us = np.asarray(found.us)
    defects = us[1:] - jax.jit(jax.vmap(fine))(jnp.arange(N), us[:-1])
    size = np.linalg.norm(defects, axis=1).max() / np.linalg.norm(us, axis=1).max()
    assert size == pytest.approx(float(found.residual), abs=1e-15)


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_states_that_are_exact_after_k_cycles(relaxation):
    """One chunk a cycle, two with FCF, whatever the coarse map is; here one that drifts."""

    def drifting(k, u):
        return coarser(M)(k, u) + 0.3

    for k in (1, 2):
        found = compiled(
            mgrit, (fine, drifting), U0, count=N, coarsening=M, relaxation=relaxation, iterations=k, tolerance=0.0
        )
        exact = k * M * (2 if relaxation == "FCF" else 1)
        np.testing.assert_allclose(found.us[: exact + 1], EXACT[: exact + 1], rtol=0, atol=1e-13)
        assert np.abs(found.us[exact + M] - EXACT[exact + M]).max() > 1e-6


@pytest.mark.parametrize("a", [-0.5, 1.05])
def test_errors_of_linear_maps_are_those_of_theory(a):
    """u ← a u: parareal multiplies the error at coarse points by (a^m − b) times the inverse of I − b S, b the coarse factor."""
    b, chunks = 1 + M * (a - 1), N // M
    shift = np.eye(chunks + 1, k=-1)
    propagate = (a**M - b) * np.linalg.solve(np.eye(chunks + 1) - b * shift, shift)
    exact = (a**M) ** np.arange(chunks + 1)
    error = b ** np.arange(chunks + 1) - exact
    options = {"count": N, "coarsening": M, "relaxation": "F", "tolerance": 0.0}
    steps = (lambda i, u: a * u, lambda i, u: b * u)

    @jax.jit
    def run(u):
        return [mgrit(steps, u, iterations=k, **options).us for k in range(3)]

    for us in run(jnp.ones(1)):
        np.testing.assert_allclose(np.asarray(us)[::M, 0] - exact, error, rtol=1e-9, atol=1e-13)
        error = propagate @ error


def test_a_coarse_map_that_overflows_is_no_guess():
    found = compiled(
        mgrit, (fine, lambda k, u: 1e300 * (u + 1) ** 3), U0, count=N, coarsening=M, iterations=2, tolerance=1e-12
    )
    assert np.all(np.isfinite(found.us)) and not bool(found.converged) and float(found.residual) > 1e-3
    assert int(found.iterations) <= 2


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_cycles_go_on_where_later_chunks_overflow(relaxation):
    """Euler for u' = −u³ from 3: what lies behind the exact front may be infinite, the front moves on."""

    def cubic(h):
        return lambda k, u: u - h * u**3

    count = 32
    found = compiled(
        mgrit,
        (cubic(1 / 16), cubic(1 / 2)),
        3 * jnp.ones(1),
        count=count,
        coarsening=8,
        relaxation=relaxation,
        tolerance=1e-12,
    )
    assert bool(found.converged)
    np.testing.assert_allclose(found.us, serial(cubic(1 / 16), 3 * jnp.ones(1), count), rtol=1e-12)


def test_the_residual_is_that_of_its_definition():
    """Far from convergence too, and with the largest state inside a chunk."""

    def rotating(k, u):
        return (
            jnp.asarray([[0.0, -1.0], [1.0, 0.0]]) @ u * jnp.where(k % 4 == 1, 8.0, jnp.where(k % 4 == 2, 0.125, 1.0))
        )

    found = compiled(mgrit, (rotating, lambda k, u: 0.9 * u), U0, count=N, coarsening=M, iterations=1, tolerance=1e-12)
    us = np.asarray(found.us)
    defects = us[1:] - jax.jit(jax.vmap(rotating))(jnp.arange(N), us[:-1])
    size = np.linalg.norm(defects, axis=1).max() / np.linalg.norm(us, axis=1).max()
    assert size > 1e-3 and float(found.residual) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("linear", ["scan", "cycles"])
def test_newton_reaches_the_serial_states(linear):
    found = compiled(newton, (fine, coarser(M)), U0, count=N, linear=linear, coarsening=M, tolerance=1e-13)
    np.testing.assert_allclose(found.us, EXACT, rtol=0, atol=1e-12)
    assert bool(found.converged) and int(found.iterations) <= 6
    assert np.all(np.isinf(found.residuals[int(found.iterations) + 1 :]))


def test_newton_needs_one_iteration_of_a_linear_map():
    found = newton((lambda k, u: (BEND + 0.01 * jnp.asarray(k, float)) @ u + 1,), U0, count=N, tolerance=1e-12)
    assert int(found.iterations) == 1 and bool(found.converged)


def test_newton_on_a_chaotic_map_ends_as_promised():
    """u ← 3.9 u (1 − u): undamped iterates may leave the interval and overflow; each one taken makes one more state exact."""

    def logistic(k, u):
        return 3.9 * u * (1 - u)

    count = 40
    found = compiled(newton, (logistic,), jnp.asarray([0.3]), count=count, tolerance=1e-13)
    assert bool(found.converged) and int(found.iterations) > 8
    # The states agree as long as rounding has not been amplified to their size.
    np.testing.assert_allclose(found.us[:25], serial(logistic, jnp.asarray([0.3]), 24), atol=1e-6)
    few = compiled(newton, (logistic,), jnp.asarray([0.3]), count=count, iterations=3, tolerance=1e-13)
    assert not bool(few.converged) and np.isfinite(float(few.residual)) and int(few.iterations) == 3


def test_a_scan_of_matrices_is_the_recurrence():
    rng = np.random.default_rng(0)
    matrices, sides = rng.normal(size=(7, 3, 3)), rng.normal(size=(7, 3))
    x, expected = np.zeros(3), []
    for a, b in zip(matrices, sides, strict=True):
        x = a @ x + b
        expected.append(x)
    np.testing.assert_allclose(jax.jit(linear_scan)(matrices, sides), expected, rtol=1e-12)
    us, bend = rng.normal(size=(5, 2)), np.asarray(BEND)
    exact = np.eye(2) + 0.1 * (1 - np.tanh(us @ bend.T) ** 2)[:, :, None] * bend
    np.testing.assert_allclose(jax.jit(lambda us: jacobians(fine, us))(us), exact, rtol=1e-12)


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_the_critical_path_is_what_the_solver_takes(relaxation):
    """Sweeps of fine steps in a row, told by a callback of the first chunk: one chunk of m steps a sweep."""
    calls = []

    def counted(k, u):
        jax.debug.callback(lambda k: calls.append(int(k)), k)
        return fine(k, u)

    found = compiled(
        mgrit, (counted, coarser(M)), U0, count=N, coarsening=M, relaxation=relaxation, iterations=2, tolerance=0.0
    )
    jax.block_until_ready(found.us)
    jax.effects_barrier()
    sweeps = calls.count(0)
    coarse = (1 + 2) * (N // M) + 2  # the guess and each cycle solve serially; each cycle takes one step everywhere
    assert critical_path(N, iterations=2, coarsening=M, relaxation=relaxation) == sweeps * M + coarse


def test_the_critical_path_is_counted():
    """Two levels of F by hand: the coarse guess, k times (a sweep, one coarse step everywhere, the coarse solve), a sweep."""
    assert critical_path(64, iterations=3, coarsening=8, relaxation="F") == 8 + 3 * (8 + 1 + 8) + 8
    assert critical_path(64, iterations=3, coarsening=8) == 8 + 3 * (2 * 8 + 1 + 8) + 8
    assert critical_path(64, iterations=0, coarsening=4, levels=3) == 4 + 4 + 4
    with pytest.raises(
        ValueError, match="critical_path: coarsening=5 on 2 levels needs steps in multiples of 5; got 64"
    ):
        critical_path(64, iterations=1, coarsening=5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mgrit((fine,), U0, count=N, coarsening=M), "mgrit: 1 levels and coarsening=4 on 24 steps"),
        (lambda: mgrit((fine, fine), U0, count=N, coarsening=5), "mgrit: 2 levels and coarsening=5 on 24 steps"),
        (lambda: newton((fine,), U0, count=0), "newton: count=0 must be the number of steps"),
        (lambda: newton((fine, fine), U0, count=N, linear="cycles", coarsening=5), "newton: coarsening=5 on 2 grids"),
        (lambda: newton((fine,), U0, count=N, guess=jnp.zeros((3, 2))), r"newton: guess has shape \(3, 2\)"),
        (lambda: newton((fine,), U0, count=N, linear="cycles"), "newton: linear='cycles' needs steps of two grids"),
        (
            lambda: newton((fine,), U0, count=N, tolerance=-1e-3),
            "newton: tolerance=-0.001 must be one finite number ≥ 0",
        ),
        (lambda: newton((fine,), U0, count=N, tolerance=float("nan")), "newton: tolerance=nan must be"),
        (lambda: mgrit((fine, fine), U0, count=N, coarsening=4, tolerance=-1.0), "mgrit: tolerance=-1.0 must be"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
