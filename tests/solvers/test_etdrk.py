"""Exponential Runge–Kutta methods: twins with dense matrices, orders, stability, error control, derivatives."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pdejax.solvers import DiagonalizableOperator, Grid
from pdejax.solvers._etdrk import ETDRK1, ETDRK2, ETDRK4

pytestmark = pytest.mark.filterwarnings("ignore:Complex dtype support")

SOLVERS = {
    "etdrk1": ETDRK1(),
    "etdrk2": ETDRK2(),
    "krogstad": ETDRK4(),
    "cox-matthews": ETDRK4(variant="cox-matthews"),
    "hochbruck-ostermann": ETDRK4(variant="hochbruck-ostermann"),
}
ORDERS = {"etdrk1": 1, "etdrk2": 2, "krogstad": 4, "cox-matthews": 4, "hochbruck-ostermann": 4}


def _terms(rest, operator):
    return diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator))


@eqx.filter_jit
def _solve(solver, rest, operator, u0, t0, t1, dt0, ts, controller, args):
    """Values at ts, by dense output, and at t1; accepted steps."""
    saveat = diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)])
    solution = diffrax.diffeqsolve(
        _terms(rest, operator), solver, t0, t1, dt0, u0, args, saveat=saveat, stepsize_controller=controller,
        adjoint=diffrax.ForwardMode(), max_steps=16384,
    )  # fmt: skip
    assert solution.ys is not None
    return jnp.concatenate(list(solution.ys)), solution.stats["num_accepted_steps"]


def _fixed(solver, rest, operator, u0, t1, steps, ts, t0=0.0, args=None):
    t0, t1, dt0 = (jnp.asarray(t) for t in (t0, t1, (t1 - t0) / steps))
    values, taken = _solve(solver, rest, operator, u0, t0, t1, dt0, ts, diffrax.ConstantStepSize(), args)
    assert int(taken) == steps
    return values


@eqx.filter_jit
def _march(solver, rest, operator, u0, times, args):
    """Steps from each time to the next in one scan: the end, and each step's error estimate."""
    terms = _terms(rest, operator)

    def step(carry, interval):
        u, memory = carry
        u, error, _, memory, _ = solver.step(terms, *interval, u, args, memory, made_jump=False)
        return (u, memory), error

    memory = solver.init(terms, times[0], times[1], u0, args)
    (u, _), errors = jax.lax.scan(step, (u0, memory), (times[:-1], times[1:]))
    return u, errors


# A step against its formula, with φ-functions of dense matrices.

_rng = np.random.default_rng(2)
_A = _rng.normal(size=(2, 2))
_D, _M = _A @ _A.T / 5, _A @ _A.T / 3 - 1.5 * np.eye(2)
_N = 5


def _nonlinear(t, u, args):
    rest = jnp.sin(3.0 * t + u) * jnp.flip(u, 1) + 0.5 * jnp.mean(u, axis=0, keepdims=True) * jnp.cos(t)
    return args * rest


def _dense(boundary):
    operator = DiagonalizableOperator(Grid(_N, boundary=boundary), _D, _M)
    lap = -2.0 * np.eye(_N) + np.eye(_N, k=1) + np.eye(_N, k=-1)
    if boundary == "neumann":
        lap[0, 0] = lap[-1, -1] = -1.0
    elif boundary == "periodic":
        lap[0, -1] = lap[-1, 0] = 1.0
    lap *= (_N + (boundary == "dirichlet")) ** 2
    return operator, np.kron(lap, _D) + np.kron(np.eye(_N), _M)


def _phis(matrix):
    """φ0 … φ3 from the exponential of one augmented matrix."""
    m = len(matrix)
    big = np.zeros((4 * m, 4 * m))
    big[:m, :m] = matrix
    for k in range(3):
        big[k * m : (k + 1) * m, (k + 1) * m : (k + 2) * m] = np.eye(m)
    top = scipy.linalg.expm(big)[:m]
    return [top[:, k * m : (k + 1) * m] for k in range(4)]


def _textbook(name, matrix, f, t, u, h):
    """One step, written with the coefficients as they are printed."""
    p0, p1, p2, p3 = _phis(h * matrix)
    q0, q1, q2, q3 = _phis(0.5 * h * matrix)
    n1 = f(t, u)
    if name == "etdrk1":
        return p0 @ u + h * p1 @ n1
    if name == "etdrk2":
        a = p0 @ u + h * p1 @ n1
        return a + h * p2 @ (f(t + h, a) - n1)
    n2 = f(t + h / 2, q0 @ u + h / 2 * q1 @ n1)
    if name == "cox-matthews":
        n3 = f(t + h / 2, q0 @ u + h / 2 * q1 @ n2)
        n4 = f(t + h, p0 @ u + h * (0.5 * q1 @ (q0 - np.eye(len(u))) @ n1 + q1 @ n3))
    else:
        n3 = f(t + h / 2, q0 @ u + h * ((0.5 * q1 - q2) @ n1 + q2 @ n2))
    simpson = [p1 - 3 * p2 + 4 * p3, 2 * p2 - 4 * p3, 2 * p2 - 4 * p3, 4 * p3 - p2]
    if name == "krogstad":
        n4 = f(t + h, p0 @ u + h * ((p1 - 2 * p2) @ n1 + 2 * p2 @ n3))
    if name == "hochbruck-ostermann":
        n4 = f(t + h, p0 @ u + h * ((p1 - 2 * p2) @ n1 + p2 @ n2 + p2 @ n3))
        a52 = 0.5 * q2 - p3 + 0.25 * p2 - 0.5 * q3
        a54 = 0.25 * q2 - a52
        n5 = f(t + h / 2, q0 @ u + h * ((0.5 * q1 - 2 * a52 - a54) @ n1 + a52 @ (n2 + n3) + a54 @ n4))
        return p0 @ u + h * (simpson[0] @ n1 + (4 * p2 - 8 * p3) @ n5 + simpson[3] @ n4)
    return p0 @ u + h * sum(w @ n for w, n in zip(simpson, (n1, n2, n3, n4), strict=True))


def _adams(matrix, f, t, u, h, before, after):
    """Exponential Adams–Moulton: the quadratic through N at t − r h, t and t + h."""
    p0, p1, p2, p3 = _phis(h * matrix)
    nodes = np.array([before[0] - t, 0.0, h]) / h
    values = np.stack([f(*before), f(t, u), f(t + h, after)])
    c = np.linalg.solve(np.vander(nodes, increasing=True), values)
    return p0 @ u + h * (p1 @ c[0] + p2 @ c[1] + 2 * p3 @ c[2])


@pytest.mark.parametrize("name", SOLVERS)
def test_textbook_steps(name):
    """Two steps of different size, their error estimate, and exactness without a rest, with matrices D and M."""
    solver, steps = SOLVERS[name], (0.02, 0.05)
    times = np.cumsum([0.3, *steps])
    boundary = {"etdrk1": "neumann", "etdrk2": "periodic"}.get(name, "dirichlet")
    operator, matrix = _dense(boundary)

    def f(t, u):
        return np.asarray(_nonlinear(t, jnp.asarray(u.reshape(_N, 2)), 2.0)).ravel()

    u0 = _rng.normal(size=(_N, 2))
    u1 = _textbook(name, matrix, f, times[0], u0.ravel(), steps[0])
    u2 = _textbook(name, matrix, f, times[1], u1, steps[1])
    found, errors = _march(solver, _nonlinear, operator, jnp.asarray(u0), jnp.asarray(times), jnp.asarray(2.0))
    np.testing.assert_allclose(np.asarray(found).ravel(), u2, rtol=0, atol=1e-13)
    if name == "etdrk1":
        trapezoid = _phis(steps[1] * matrix)[2] @ (f(times[2], u2) - f(times[1], u1))
        np.testing.assert_allclose(-np.asarray(errors[1]).ravel(), trapezoid, rtol=1e-9, atol=1e-12)
    else:
        third = _adams(matrix, f, times[1], u1, steps[1], (times[0], u0.ravel()), u2)
        scale = steps[1] if name == "etdrk2" else 1.0
        np.testing.assert_allclose(np.asarray(errors[1]).ravel(), (u2 - third) / scale, rtol=1e-6, atol=1e-12)
    for h in (1e-3, 0.4, 70.0):
        jump = jnp.asarray([0.0, h / 2, h])
        found, errors = _march(solver, _nonlinear, operator, jnp.asarray(u0), jump, jnp.asarray(0.0))
        exact = scipy.linalg.expm(h * matrix) @ u0.ravel()
        np.testing.assert_allclose(np.asarray(found).ravel(), exact, rtol=1e-12, atol=1e-14)
        assert not np.any(np.asarray(errors))


# Orders.


@eqx.filter_jit
def _reference(rest, operator, u0, ts):
    def field(t, u, args):
        return operator(t, u, args) + rest(t, u, args)

    controller = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e-13, atol=1e-14), step_ts=ts)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Dopri8(), 0.0, ts[-1], 1e-3, u0, saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=controller, adjoint=diffrax.ForwardMode(), max_steps=200_000,
    )  # fmt: skip
    return solution.ys


def _between(count, t1=1.0):
    return jnp.sort(jnp.asarray((np.arange(1, count + 1) * np.sqrt(2.0)) % 1.0)) * t1


def _errors(values, exact):
    difference = jnp.abs(values - exact)
    return float(jnp.linalg.norm(difference[-1])), float(jnp.sqrt(jnp.mean(difference[:-1] ** 2)))


def _orders(run, exact, steps):
    """[[on the grid, between], …] over the last two halvings, and the smallest error."""
    found = np.array([_errors(run(count), exact) for count in (steps, 2 * steps, 4 * steps)])
    return np.log2(found[:-1] / found[1:]), found.min()


KINDS = {"diffusive": 0.02 + 0j, "dispersive": 0.02j, "mixed": 0.02 + 0.02j}
_GRID = Grid(12, boundary="periodic")
_X = _GRID.points[:, None]


def _complex_rest(t, u, args):
    source = jnp.sin(3.0 * t) * jnp.cos(2.0 * jnp.pi * _X) * jnp.array([[1.0, -1.0]])
    growth = 0.3 * u * (1.0 - u * jnp.conj(u)) + 0.7 * jnp.sin(jnp.flip(u, 1))
    return source.astype(u.dtype) + growth + 0.5 * jnp.mean(u, axis=0, keepdims=True)


@pytest.fixture(scope="module")
def smooth():
    u0 = jnp.concatenate([jnp.sin(2 * jnp.pi * _X) + 0.3, 0.5 * jnp.cos(4 * jnp.pi * _X + 0.4)], axis=1)
    u0 = jax.lax.complex(u0, 0.3 * u0)
    ts = _between(120)
    operators = {kind: DiagonalizableOperator(_GRID, d) for kind, d in KINDS.items()}
    ends = jnp.append(ts, 1.0)
    return u0, ts, {kind: (op, _reference(_complex_rest, op, u0, ends)) for kind, op in operators.items()}


@pytest.mark.parametrize(
    "name", ["krogstad", *(pytest.param(n, marks=pytest.mark.slow) for n in SOLVERS if n != "krogstad")]
)
def test_order(smooth, name):
    """A nonlinear, nonautonomous rest that does not commute with L, on and between the steps."""
    u0, ts, problems = smooth
    solver, order = SOLVERS[name], ORDERS[name]
    assert solver.order(None) == order
    for kind, (operator, exact) in problems.items():

        def run(count, operator=operator):
            return _fixed(solver, _complex_rest, operator, u0, 1.0, count, ts)

        found, smallest = _orders(run, exact, {1: 64, 2: 32, 4: 16}[order])
        np.testing.assert_allclose(found, order, atol=0.15, err_msg=kind)
        assert smallest > 1e-11  # above the rounding floor


class Made(eqx.Module):
    """A stiff problem with the solution u = e^t s(x): a rest f(u) that does not vanish at a wall, and what
    remains.
    """

    operator: DiagonalizableOperator
    shape: jax.Array

    def solution(self, t):
        return jnp.exp(t) * self.shape

    def __call__(self, t, u, args):
        def f(v):
            return 1.0 / (1.0 + v * v) + 2.0 * jnp.mean(v, axis=0, keepdims=True)

        exact = self.solution(t)
        return f(u) - f(exact) + exact - self.operator(t, exact, None)


def _made(boundary, n=64, d=1.0):
    grid = Grid(n, boundary=boundary)
    x = grid.points[:, None]
    shapes = {
        "dirichlet": x * (1.0 - x),
        "neumann": 0.3 + jnp.cos(jnp.pi * x),
    }
    operator = DiagonalizableOperator(grid, d)
    return Made(operator, shapes[boundary]), operator


_slow = pytest.mark.slow


@pytest.mark.parametrize(
    "boundary, name, low, high",
    [
        ("dirichlet", "cox-matthews", 2.1, 2.7),
        pytest.param("dirichlet", "etdrk2", 1.85, 2.15, marks=_slow),
        pytest.param("dirichlet", "krogstad", 2.85, 3.4, marks=_slow),
        pytest.param("dirichlet", "hochbruck-ostermann", 3.85, 4.15, marks=_slow),
        pytest.param("neumann", "krogstad", 3.85, 4.15, marks=_slow),
    ],
)
def test_stiff_order(boundary, name, low, high):
    """4D/dx² = 16,000: full order on a Neumann grid, and what a Dirichlet wall leaves of it."""
    rest, operator = _made(boundary)
    ts = _between(40)
    exact = jax.vmap(rest.solution)(jnp.append(ts, 1.0))

    def run(count):
        return _fixed(SOLVERS[name], rest, operator, rest.shape, 1.0, count, ts)

    found, smallest = _orders(run, exact, 64)
    print(boundary, name, found.round(2).tolist(), smallest)
    assert np.all(found[:, 0] > low) and np.all(found[:, 0] < high)
    assert np.all(found[:, 1] > low - 0.15)  # between the steps
    assert smallest > 1e-12
