"""Additive implicit-explicit Runge–Kutta methods: tableaus, dense twins, orders, stability, tolerances, gradients, input."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import DiagonalizableOperator, TridiagonalOperator
from pdejax.solvers._grid import Grid
from pdejax.solvers._imex import ARK3, ARK4, ARS222

SCHEMES = [ARS222(), ARK3(), ARK4()]
ORDERS = {ARS222: 2, ARK3: 3, ARK4: 4}
IDS = ["ars222", "ark3", "ark4"]
# Weights of the embedded methods, which the explicit and the implicit one share: all on the second stage; and as printed in
# Kennedy and Carpenter's appendix.
EMBEDDED = {
    ARS222: [0.0, 1.0, 0.0],
    ARK3: [
        2756255671327 / 12835298489170,
        -10771552573575 / 22201958757719,
        9247589265047 / 10645013368117,
        2193209047091 / 5459859503100,
    ],
    ARK4: [
        4586570599 / 29645900160,
        0.0,
        178811875 / 945068544,
        814220225 / 1159782912,
        -3700637 / 11593932,
        61727 / 225920,
    ],
}


def full_tableau(solver):
    """(A explicit, A implicit, weights of both, c, weights of the embedded method of both) as NumPy matrices."""
    m = solver.coefficients()
    s = len(m.nodes)
    explicit, implicit = np.zeros((s, s)), np.zeros((s, s))
    for i in range(1, s):
        explicit[i, :i], implicit[i, :i], implicit[i, i] = m.explicit[i], m.implicit[i], m.gamma
    b_explicit, b_implicit = explicit[-1] + np.array(m.corrections), implicit[-1]
    embedded = b_explicit - np.array(m.explicit_error), b_implicit - np.array(m.implicit_error)
    return explicit, implicit, b_explicit, b_implicit, np.array(m.nodes), embedded


@pytest.mark.parametrize("solver", SCHEMES, ids=IDS)
def test_order_conditions(solver):
    """All conditions of the explicit, the implicit and the coupled method up to the order, for every choice of matrices;
    those of the embedded method up to one less; L-stability of the implicit one.
    """
    explicit, implicit, b_explicit, b_implicit, c, embedded = full_tableau(solver)
    np.testing.assert_allclose(explicit.sum(axis=1), c, atol=1e-14)
    np.testing.assert_allclose(implicit.sum(axis=1), c, atol=1e-14)

    def check(b, order):
        np.testing.assert_allclose([b.sum(), b @ c][:order], [1.0, 1 / 2][:order], atol=1e-13)
        for one in (explicit, implicit):
            if order >= 3:
                np.testing.assert_allclose([b @ c**2, b @ one @ c], [1 / 3, 1 / 6], atol=1e-13)
            if order >= 4:
                found = [b @ c**3, (b * c) @ one @ c, b @ one @ c**2]
                np.testing.assert_allclose(found, [1 / 4, 1 / 8, 1 / 12], atol=1e-13)
                np.testing.assert_allclose([b @ one @ two @ c for two in (explicit, implicit)], 1 / 24, atol=1e-13)

    order = ORDERS[type(solver)]
    for b, low in zip((b_explicit, b_implicit), embedded, strict=True):
        check(b, order)
        check(low, order - 1)
        np.testing.assert_allclose(low, EMBEDDED[type(solver)], atol=1e-13)
    assert np.abs(embedded[0] - b_explicit).max() > 1e-3
    z = -np.geomspace(1e-3, 1e6, 60)
    values = np.array(
        [1.0 + x * b_implicit @ np.linalg.solve(np.eye(len(c)) - x * implicit, np.ones(len(c))) for x in z]
    )
    assert np.all(np.abs(values) <= 1.0) and abs(values[-1]) < 1e-4 * np.max(np.abs(values[z < -1.0]))


def step_twin(solver, matrix, rest, t, h, y):
    """One step in its textbook form with dense matrices: all stages, then both weights. (y1, undamped error)."""
    explicit, implicit, b_explicit, b_implicit, c, embedded = full_tableau(solver)
    unit = np.eye(y.size)
    stages, slopes = [], []
    for i in range(len(c)):
        r = y.ravel().astype(np.result_type(y, matrix))
        for j in range(i):
            r = r + h * (explicit[i, j] * slopes[j] + implicit[i, j] * (matrix @ stages[j]))
        stages.append(np.linalg.solve(unit - h * implicit[i, i] * matrix, r))
        slopes.append(rest(t + c[i] * h, stages[-1].reshape(y.shape)).ravel())

    def combined(b, b_hat):
        return y.ravel() + h * sum(b[i] * slopes[i] + b_hat[i] * (matrix @ stages[i]) for i in range(len(c)))

    y1 = combined(b_explicit, b_implicit)
    return y1.reshape(y.shape), (y1 - combined(*embedded)).reshape(y.shape)


def second_difference(grid, coefficient=None, mask=None):
    """Dense matrix of ∂x(D ∂x u) with D on the faces the mean of both sides, assembled face by face."""
    n, matrix = grid.n, np.zeros((grid.n, grid.n))
    coefficient = np.ones(n) if coefficient is None else np.asarray(coefficient)
    mask = np.ones(n, bool) if mask is None else np.asarray(mask)
    pairs = [(i, i + 1) for i in range(n - 1)] + ([(n - 1, 0)] if grid.boundary == "periodic" else [])
    for i, j in pairs:
        flux = 0.5 * (coefficient[i] + coefficient[j]) * (mask[i] and mask[j])
        matrix[i, i] -= flux
        matrix[j, j] -= flux
        matrix[i, j] += flux
        matrix[j, i] += flux
    if grid.boundary == "dirichlet":
        for i in (0, n - 1):
            matrix[i, i] -= coefficient[i]
    return matrix / float(grid.spacing) ** 2


def operators():
    """name: (operator, dense matrix on the flattened (n, 2) state, complex?)."""
    mask = np.arange(9) < 7
    shape = {b: Grid(9, boundary=b) for b in ("neumann", "dirichlet", "periodic")}
    x = np.linspace(0.0, 1.0, 9)
    symmetric = np.array([[2.0, 0.5], [0.5, 1.0]])
    bump = 1.0 + 0.8 * np.sin(5.0 * x)
    unit = np.eye(2)
    return {
        "heat": (
            DiagonalizableOperator(shape["neumann"], jnp.asarray(symmetric), -0.7),
            np.kron(second_difference(shape["neumann"]), symmetric) - 0.7 * np.eye(18),
        ),
        "schroedinger": (
            DiagonalizableOperator(shape["periodic"], 0.3j),
            0.3j * np.kron(second_difference(shape["periodic"]), unit),
        ),
        "variable": (
            TridiagonalOperator(shape["dirichlet"], jnp.asarray(bump), shift=jnp.array([-0.2, 0.1])),
            np.kron(second_difference(shape["dirichlet"], bump), unit) + np.kron(np.eye(9), np.diag([-0.2, 0.1])),
        ),
        "masked": (
            TridiagonalOperator(shape["neumann"], jnp.asarray(bump), mask=jnp.asarray(mask)),
            np.kron(second_difference(shape["neumann"], bump, mask), unit),
        ),
    }


def rest(t, u, args):
    """Nonlinear, non-autonomous, coupling tokens and features; works for NumPy too."""
    strength = 1.0 if args is None else args
    return strength * (0.8 * u[::-1, ::-1] - u**3 + 0.3 * u[:, ::-1] ** 2) * (1.5 - 0.4 * t)


def terms_of(operator, field=rest):
    return diffrax.MultiTerm(diffrax.ODETerm(field), diffrax.ODETerm(operator))


@pytest.mark.parametrize(
    ("name", "solvers"),
    [("heat", SCHEMES), ("schroedinger", SCHEMES[2:]), ("variable", SCHEMES[1:2]), ("masked", SCHEMES[:1])],
)
def test_dense_twin(name, solvers):
    operator, matrix = operators()[name]
    u0 = np.random.default_rng(0).normal(size=(9, 2)) * (0.7 + 0.7j if name == "schroedinger" else 1.0)
    t, h = 0.3, 0.05

    @jax.jit
    def step(u):
        terms = terms_of(operator)
        times = jnp.asarray(t), jnp.asarray(t + h)
        return [solver.step(terms, *times, u, None, None, False)[:2] for solver in solvers]

    for solver, (u1, error) in zip(solvers, step(u0), strict=True):
        expected, plain = step_twin(solver, matrix, lambda t, u: rest(t, u, None), t, h, np.asarray(u0))
        np.testing.assert_allclose(u1, expected, rtol=0, atol=2e-13)
        damped = np.linalg.solve(np.eye(18) - h * solver.coefficients().gamma * matrix, plain.ravel())
        np.testing.assert_allclose(error, damped.reshape(9, 2), rtol=0, atol=2e-13)


def test_evaluations_of_the_rest():
    operator, _ = operators()["heat"]
    for solver, expected in zip(SCHEMES, (2, 4, 6), strict=True):
        calls = []

        def counted(t, u, args, calls=calls):
            calls.append(None)
            return rest(t, u, args)

        step = functools.partial(solver.step, terms_of(operator, counted), jnp.asarray(0.0), jnp.asarray(0.1))
        jax.eval_shape(lambda u, step=step: step(u, None, None, False)[0], jnp.zeros((9, 2)))
        assert solver.step_evaluations() == expected == len(calls) - 1  # dense output's one is removed where unused


# Orders.


@eqx.filter_jit
def _solve(terms, solver, u0, dt0, t1, args, saveat, controller, adjoint, max_steps):
    return diffrax.diffeqsolve(
        terms,
        solver,
        jnp.zeros_like(t1),
        t1,
        dt0,
        u0,
        args,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )


def solve(terms, solver, u0, dt0, t1=1.0, args=None, ts=None, controller=None, adjoint=None, max_steps=65536):
    saveat = diffrax.SaveAt(ts=jnp.asarray([t1] if ts is None else [*ts, t1]))
    controller = diffrax.ConstantStepSize() if controller is None else controller
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    dt0, t1 = jnp.asarray(dt0), jnp.asarray(t1)
    return _solve(terms, solver, u0, dt0, t1, args, saveat, controller, adjoint, max_steps)


TS = tuple(np.sort(np.arange(1, 302) * np.sqrt(2.0) % 1.0).tolist())


def _smooth_problem(kind):
    """(operator, rest, start): moderately stiff, so that the asymptotic order shows; nothing conflicts with the boundary."""
    grid = Grid(12, boundary="neumann" if kind == "mixed" else "periodic")
    x = grid.points[:, None]

    def field(t, u, args):
        return 0.8 * jnp.sin(3.0 * t) * jnp.cos(2.0 * jnp.pi * x) + 1.5 * u - u**3 + 0.7 * jnp.flip(u, 1) ** 2

    def dispersive(t, u, args):
        source = jnp.sin(3.0 * t) * jnp.cos(2.0 * jnp.pi * x)
        size = u.real**2 + u.imag**2
        return jax.lax.complex(source - size * u.imag, size * u.real) + 0.3 * jnp.flip(u, 1)

    start = jnp.concatenate([jnp.cos(2.0 * jnp.pi * x) + 0.3, 0.5 * jnp.cos(4.0 * jnp.pi * x) - 0.2], axis=1)
    if kind == "diffusive":
        return DiagonalizableOperator(grid, jnp.array([0.02, 0.03])), field, start
    # Diffusion of one feature and dispersion of the other, with damping: a complex state.
    return (
        DiagonalizableOperator(grid, jnp.array([0.02 + 0.0j, 0.02j]), -0.3 + 0.0j),
        dispersive,
        jax.lax.complex(start, 0.1 + 0.0 * start),
    )


@functools.cache
def smooth(kind, reference):
    operator, field, u0 = _smooth_problem(kind)
    if not jnp.iscomplexobj(u0):
        return (
            terms_of(operator, field),
            u0,
            reference(lambda t, u, a: field(t, u, a) + operator(t, u, a), u0, jnp.array(TS)),
        )

    def paired(t, v, args):
        u = jax.lax.complex(*v)
        du = field(t, u, args) + operator(t, u, args)
        return du.real, du.imag

    real, imaginary = reference(paired, (u0.real, u0.imag), jnp.array(TS))
    return terms_of(operator, field), u0, real + 1j * imaginary


@pytest.mark.parametrize(("solver", "kind"), [*((solver, "mixed") for solver in SCHEMES), (ARK4(), "diffusive")])
@pytest.mark.filterwarnings("ignore:Complex dtype support:UserWarning")
def test_order(solver, kind, reference):
    """On the steps and, by dense output, between them."""
    terms, u0, exact = smooth(kind, reference)
    errors = []
    for steps in (32, 64, 128):
        difference = np.asarray(solve(terms, solver, u0, 1.0 / steps, ts=TS).ys) - exact
        errors.append([np.linalg.norm(difference[-1]), np.linalg.norm(difference[:-1])])
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    print(type(solver).__name__, kind, "(on, between)", orders.round(3).tolist(), errors[-1])
    np.testing.assert_allclose(orders, ORDERS[type(solver)], atol=0.15)
    assert np.min(errors) > 1e-11
    assert solver.order(terms) == ORDERS[type(solver)]


def _stiff_problem(boundary):
    """Heat with ρ = 920 (Neumann) or 6,700 (Dirichlet), and a source that at Dirichlet walls does not vanish."""
    grid = Grid(128 if boundary == "dirichlet" else 48, boundary=boundary)
    x = grid.points[:, None]

    def field(t, u, args):
        source = jnp.exp(-x) if boundary == "dirichlet" else jnp.cos(jnp.pi * x)
        return (1.0 if args is None else args) * (1.0 + source * jnp.sin(3.0 * t) - u**3)

    start = jnp.sin(jnp.pi * x) if boundary == "dirichlet" else jnp.cos(jnp.pi * x)
    return DiagonalizableOperator(grid, 0.1), field, start


@functools.cache
def stiff(boundary, reference):
    operator, field, u0 = _stiff_problem(boundary)
    return (
        terms_of(operator, field),
        u0,
        reference(lambda t, u, a: field(t, u, a) + operator(t, u, a), u0, jnp.array(TS)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("solver", SCHEMES, ids=IDS)
def test_dirichlet_walls_reduce_the_order(solver, reference):
    """A rest that does not vanish at a Dirichlet wall: 2 stays 2, while 3 and 4 fall to between 2 and 2.6."""
    terms, u0, exact = stiff("dirichlet", reference)
    ends = [solve(terms, solver, u0, 1.0 / steps, ts=TS).ys[-1] - exact[-1] for steps in (32, 64, 128)]
    errors = np.array([float(jnp.linalg.norm(end)) for end in ends])
    orders = np.log2(errors[:-1] / errors[1:])
    print(type(solver).__name__, "Dirichlet", orders.round(3).tolist(), errors[-1])
    if ORDERS[type(solver)] == 2:
        np.testing.assert_allclose(orders, 2.0, atol=0.15)
    else:
        assert np.all((orders > 2.0) & (orders < 2.6))


@pytest.mark.parametrize("solver", SCHEMES, ids=IDS)
def test_adaptive_runs_reach_the_tolerance(solver, reference):
    """Within a factor of ten from 1e-3 to 1e-8."""
    terms, u0, exact = stiff("neumann", reference)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        controller = diffrax.PIDController(rtol=jnp.asarray(tolerance), atol=jnp.asarray(tolerance))
        solution = solve(terms, solver, u0, 1e-3, ts=TS, controller=controller)
        error = float(np.sqrt(np.mean((np.asarray(solution.ys[-1]) - exact[-1]) ** 2)))
        steps, refused = (int(solution.stats[k]) for k in ("num_steps", "num_rejected_steps"))
        print(
            f"{type(solver).__name__} tolerance {tolerance:.0e}: error {error:.1e}, {steps} steps, {refused} refused, "
            f"{steps * solver.step_evaluations()} evaluations"
        )
        assert solution.result == diffrax.RESULTS.successful
        assert 0.02 * tolerance < error < 10.0 * tolerance
        assert steps < 80 * (1e-3 / tolerance) ** (1.0 / solver.order(terms))


# Stability.


def _grow(solver, operator, field, h, u0, steps=60):
    def step(u, _):
        t = jnp.zeros(())
        return solver.step(terms_of(operator, field), t, t + h, u, None, None, False)[0], None

    return jnp.linalg.norm(jax.lax.scan(step, u0, None, length=steps)[0])


@pytest.mark.parametrize("solver", SCHEMES, ids=IDS)
def test_stability_from_noise(solver):
    """60 steps from noise. The linear part is stable for every h, as far as h ρ = 10⁷, also where it is dispersive; the
    rest has the limit of the explicit tableau: decay at 0.95 of it, growth at 1.10.
    """
    grid = Grid(16, boundary="dirichlet")
    noise = np.random.default_rng(0).normal(size=(16, 1))
    size = float(np.linalg.norm(noise))

    @jax.jit
    def linear(d, h):
        def one(d, u):
            operator = DiagonalizableOperator(grid, d)
            return _grow(solver, operator, lambda t, u, args: 0.0 * u, h, u)

        return one(d, noise), one(d * 1j, noise.astype(complex))

    for h in (1e-2, 1.0, 1e2, 1e4):
        heat, wave = linear(jnp.asarray(1.0), jnp.asarray(h))
        assert float(heat) < 0.01 * size and float(wave) <= size * (1.0 + 1e-10), h

    matrix, _, weights, *_ = full_tableau(solver)

    def amplification(z):
        return abs(1.0 + z * weights @ np.linalg.solve(np.eye(len(weights)) - z * matrix, np.ones(len(weights))))

    limit = next(z for z in np.arange(0.5, 20.0, 1e-3) if amplification(-z) > 1.0)
    nothing = DiagonalizableOperator(grid, 0.0)
    explicit = jax.jit(lambda h: _grow(solver, nothing, lambda t, u, args: -u, h, noise))
    assert float(explicit(0.95 * limit)) < 0.05 * size
    assert float(explicit(1.10 * limit)) > 20.0 * size


# Gradients, precision, direction.


@pytest.mark.slow
def test_gradients():
    """Reverse mode by diffrax's checkpoints and by a checkpointed scan, forward mode, and central differences; with respect
    to the rest, the diffusivity and the start.
    """
    solver = ARK4()
    _, field, u0 = _stiff_problem("neumann")
    grid, steps, end = Grid(48, boundary="neumann"), 3, 0.3

    def by_diffrax(p, adjoint=None):
        terms = terms_of(DiagonalizableOperator(grid, p[1]), field)
        ys = solve(terms, solver, p[2] * u0, end / steps, end, p[0], (0.17,), None, adjoint, 8).ys
        return jnp.sum(jnp.sin(ys))

    def by_scan(p):
        terms = terms_of(DiagonalizableOperator(grid, p[1]), field)

        @jax.checkpoint
        def step(y, k):
            t0, t1 = (end * (k + i) / steps for i in (0.0, 1.0))
            y, _, dense, _, _ = solver.step(terms, t0, t1, y, p[0], None, False)
            return y, diffrax.ThirdOrderHermitePolynomialInterpolation(t0=t0, t1=t1, **dense).evaluate(0.17)

        y, between = jax.lax.scan(step, p[2] * u0, jnp.arange(float(steps)))
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(between[1]))

    at, v = jnp.array([1.3, 0.1, 0.9]), jnp.array([0.7, 0.05, -0.4])
    expected = (by_diffrax(at + 1e-4 * v) - by_diffrax(at - 1e-4 * v)) / 2e-4
    found = {
        "recursive": jax.grad(by_diffrax)(at) @ v,
        "scan": jax.jit(jax.grad(by_scan))(at) @ v,
        "forward": jax.jvp(lambda p: by_diffrax(p, diffrax.ForwardMode()), (at,), (v,))[1],
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["heat", "masked"])
def test_float32_and_vmap(name):
    operator, _ = operators()[name]
    u = np.random.default_rng(0).normal(size=(2, 9, 2))

    def step(u, solver):
        times = jnp.zeros((), u.dtype), jnp.full((), 0.05, u.dtype)
        return solver.step(terms_of(operator), *times, u, None, None, False)[:2]

    solver = ARK3()
    step = jax.jit(functools.partial(step, solver=solver))
    together = jax.device_get(jax.vmap(step)(u))
    for i in range(2):
        np.testing.assert_allclose(together[0][i], step(u[i])[0], rtol=0, atol=1e-13)
    single, error = step(u[0].astype(np.float32))
    assert single.dtype == error.dtype == jnp.float32
    np.testing.assert_allclose(single, together[0][0], rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Complex dtype support:UserWarning")
def test_backwards():
    """From 1 to 0 the steps are those of v' = −N(1 − s, v) − L v from 0 to 1, with L a dispersion."""
    operator = DiagonalizableOperator(Grid(9, boundary="periodic"), 0.05j)
    mirror = DiagonalizableOperator(Grid(9, boundary="periodic"), -0.05j)
    u0 = jnp.asarray(np.exp(2j * np.pi * np.arange(9) / 9)[:, None] * np.array([[0.5, 0.3j]]))

    def field(t, u, args):
        return jnp.cos(3.0 * t).astype(u.dtype) * jnp.conj(u) + 0.3 * u**2

    def run(terms, t0, t1):
        return diffrax.diffeqsolve(terms, ARK3(), t0, t1, (t1 - t0) / 4, u0, max_steps=8).ys[-1]

    backward = run(terms_of(operator, field), 1.0, 0.0)
    forward = run(terms_of(mirror, lambda s, v, args: -field(1.0 - s, v, args)), 0.0, 1.0)
    np.testing.assert_allclose(backward, forward, rtol=0, atol=1e-13)
    assert float(jnp.max(jnp.abs(backward - u0))) > 0.1


# Bad input.


@pytest.mark.filterwarnings("ignore:Complex dtype support:UserWarning")
def test_terms_that_do_not_fit():
    operator, _ = operators()["heat"]
    u0 = jnp.zeros((9, 2))

    def run(terms, u0=u0):
        diffrax.diffeqsolve(terms, ARK4(), 0.0, 1.0, 0.1, u0)

    with pytest.raises(TypeError, match="ARK4: terms is ODETerm"):
        run(diffrax.ODETerm(rest))
    with pytest.raises(TypeError, match="the second term must be"):
        run(diffrax.MultiTerm(diffrax.ODETerm(operator), diffrax.ODETerm(rest)))
    with pytest.raises(ValueError, match="acts on states of shape"):
        run(terms_of(operator, lambda t, u, args: u), jnp.zeros((8, 2)))
    with pytest.raises(TypeError, match="give u0 the type complex128"):
        run(terms_of(operators()["schroedinger"][0], lambda t, u, args: u))
    with pytest.raises(TypeError, match="one array"):
        ARK4().step(terms_of(operator), jnp.asarray(0.0), jnp.asarray(0.1), {"u": u0}, None, None, False)
