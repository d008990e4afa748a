"""Linear operators against dense matrices assembled entry by entry."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pdejax.solvers import AbstractLinearOperator, DiagonalizableOperator, Grid, TridiagonalOperator
from pdejax.solvers._terms import linear_operator_of

BOUNDARIES = ("neumann", "dirichlet", "periodic")
_rng = np.random.default_rng(1)
_A = _rng.normal(size=(3, 3))
DENSE = _A @ _A.T / 10
COEFFICIENTS = {
    "scalar": (0.2, None),
    "damped": (0.2, -1.5),
    "per-feature": (np.array([0.1, 0.0, 0.3]), np.array([-1.0, 2.0, 0.5])),
    "matrix": (DENSE, None),
    "commuting": (DENSE, DENSE @ DENSE - 2.0 * np.eye(3)),
    "reaction": (0.1, DENSE - np.eye(3)),
    "block": (np.array([0.1, 0.1, 0.4]), np.array([[1.0, 0.5, 0.0], [0.5, -1.0, 0.0], [0.0, 0.0, 2.0]])),
    "repeated": (0.2 * np.eye(3), -1.0),
    "dispersive": (0.3j, None),
    "mixed": (np.array([0.1, 0.2j, 0.1 + 0.1j]), 0.5j),
}


def _matrix(value):
    return value * np.eye(3) if np.ndim(value) == 0 else np.diag(value) if np.ndim(value) == 1 else value


def _stencil(n, boundary, faces_of, length=1.0, open_=None):
    """∂x(D ∂x) as a dense matrix, one face after another."""
    dx = length / (n + 1 if boundary == "dirichlet" else n)
    out = np.zeros((n, n))
    faces = [(i, i + 1) for i in range(n - 1)] + ([(n - 1, 0)] if boundary == "periodic" else [])
    for i, j in faces:
        if open_ is None or (open_[i] and open_[j]):
            weight = 0.5 * (faces_of[i] + faces_of[j]) / dx**2
            out[i, i] -= weight
            out[j, j] -= weight
            out[i, j] += weight
            out[j, i] += weight
    if boundary == "dirichlet":
        for i in (0, n - 1):
            if open_ is None or open_[i]:
                out[i, i] -= faces_of[i] / dx**2
    return out


@jax.jit
def _everything(operator, field):
    modes = operator.to_modes(field)
    return {
        "apply": operator(0.0, field, None),
        "exp": operator.apply(jnp.exp, 0.1, field),
        "solve": operator.solve(jnp.asarray(0.3), field),
        "back": operator.from_modes(modes),
        "modes": modes,
        "diagonal": operator.from_modes((operator.eigenvalues() * modes).astype(field.dtype)),
        "eigenvalues": operator.eigenvalues(),
        "radius": operator.spectral_radius(),
    }


GRIDS = [(7, "periodic")] * len(COEFFICIENTS)
CASES = [
    *zip(COEFFICIENTS, GRIDS, strict=True),
    *itertools.product(
        ["commuting"], [(2, "neumann"), (2, "periodic"), (8, "periodic"), (7, "dirichlet"), (7, "neumann")]
    ),
    *itertools.product(["mixed"], [(7, "dirichlet"), (7, "neumann")]),
]


@pytest.mark.parametrize("name, size", CASES)
def test_diagonalizable(name, size):
    (d, m), (n, boundary) = COEFFICIENTS[name], size
    operator = DiagonalizableOperator(Grid(n, boundary=boundary, length=2.0), d, m)
    laplacian = _stencil(n, boundary, np.ones(n), length=2.0)
    dense = np.kron(laplacian, _matrix(d)) + np.kron(np.eye(n), _matrix(0.0 if m is None else m))
    u = _rng.normal(size=(n, 3)) + (1j * _rng.normal(size=(n, 3)) if np.iscomplexobj(dense) else 0.0)
    found, flat, scale = _everything(operator, jnp.asarray(u)), u.ravel(), np.abs(dense).max()
    expected = {
        "apply": (dense @ flat, 1e-14 * scale),
        "exp": (scipy.linalg.expm(0.1 * dense) @ flat, 1e-13),
        "solve": (np.linalg.solve(np.eye(3 * n) - 0.3 * dense, flat), 1e-13),
        "back": (flat, 1e-14),
        "diagonal": (dense @ flat, 2e-14 * scale),
    }
    for key, (value, tolerance) in expected.items():
        assert found[key].dtype == u.dtype
        np.testing.assert_allclose(np.asarray(found[key]).ravel(), value, rtol=0, atol=tolerance, err_msg=key)
    assert found["modes"].dtype == u.dtype  # real stays real
    assert np.linalg.norm(found["modes"]) == pytest.approx(np.linalg.norm(u), rel=1e-14)
    values, exact = np.broadcast_to(found["eigenvalues"], (n, 3)).ravel(), np.linalg.eigvals(dense)
    for value in values:  # each is an eigenvalue of the matrix
        assert np.min(np.abs(exact - value)) < 1e-12 * scale
    assert values.sum() == pytest.approx(np.trace(dense), rel=1e-12)
    assert float(found["radius"]) == pytest.approx(np.abs(exact).max(), rel=1e-12)
    operator.check((n, 3))


def _tridiagonal(n, boundary, kind):
    d = _rng.uniform(0.1, 2.0, size=(n,) if kind != "per-feature" else (n, 3))
    shift = {
        "plain": None,
        "masked": -0.7,
        "per-feature": np.array([-1.0, 0.0, 0.5]),
        "shifted": np.array([-1.0, 0.0, 2.0]),
    }[kind]
    mask = np.arange(n) != n // 2 if kind == "masked" else None
    operator = TridiagonalOperator(Grid(n, boundary=boundary), d, mask=mask, shift=shift)
    blocks = [_stencil(n, boundary, d if d.ndim == 1 else d[:, j], open_=mask) for j in range(3)]
    shifts = np.zeros(3) if shift is None else np.broadcast_to(shift, 3)
    return operator, [block + shifts[j] * np.eye(n) for j, block in enumerate(blocks)]


@jax.jit
def _stepped(operator, u):
    scale, single = jnp.asarray(0.2), u.astype(jnp.float32)
    return operator(0.0, u, None), operator.solve(scale, u), operator.solve(scale, single), operator.spectral_radius()


TRIDIAGONAL = [
    *itertools.product(["plain", "masked", "per-feature", "shifted"], [(9, "periodic")]),
    *itertools.product(["masked"], [(3, "periodic"), (9, "neumann"), (9, "dirichlet")]),
    *itertools.product(["per-feature"], [(2, "neumann"), (2, "dirichlet"), (2, "periodic")]),
]


@pytest.mark.parametrize("kind, grid", TRIDIAGONAL)
def test_tridiagonal(kind, grid):
    n, boundary = grid
    operator, blocks = _tridiagonal(n, boundary, kind)
    u = _rng.normal(size=(n, 3))
    size = max(np.abs(b).max() for b in blocks)
    applied, solved, single, radius = _stepped(operator, jnp.asarray(u))
    expected = np.stack([b @ u[:, j] for j, b in enumerate(blocks)], axis=1)
    np.testing.assert_allclose(applied, expected, rtol=0, atol=1e-14 * size)
    expected = np.stack([np.linalg.solve(np.eye(n) - 0.2 * b, u[:, j]) for j, b in enumerate(blocks)], axis=1)
    np.testing.assert_allclose(solved, expected, rtol=0, atol=1e-13)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)
    largest = max(np.abs(np.linalg.eigvalsh(b)).max() for b in blocks)
    assert largest * (1 - 1e-13) <= float(radius)
    operator.check((n, 3))


def test_tridiagonal_of_a_complex_field(relative):
    operator, _ = _tridiagonal(6, "dirichlet", "shifted")
    u, v = jnp.asarray(_rng.normal(size=(2, 6, 3)))
    both = jax.jit(lambda w: operator(0.0, operator.solve(0.2, w), None))
    assert relative(both(jax.lax.complex(u, v)), jax.lax.complex(both(u), both(v))) < 1e-14


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_constant_coefficients_agree(boundary, relative):
    """Both operators are the same where D is constant, and Gershgorin's bound is sharp on a long grid."""
    grid = Grid(64, boundary=boundary)
    one, other = DiagonalizableOperator(grid, 0.3, -2.0), TridiagonalOperator(grid, jnp.full(64, 0.3), shift=-2.0)
    u = jnp.asarray(_rng.normal(size=(64, 2)))
    run = jax.jit(lambda op: (op(0.0, u, None), op.solve(0.01, u)))
    for a, b in zip(run(other), run(one), strict=True):
        assert relative(a, b) < 1e-12
    assert 1.0 <= float(other.spectral_radius() / one.spectral_radius()) < 1.001


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_single_precision(boundary, relative):
    """Float64 coefficients leave a float32 field in float32."""
    grid = Grid(16, boundary=boundary)
    operator = DiagonalizableOperator(grid, DENSE, -DENSE)
    u = jnp.asarray(_rng.normal(size=(16, 3)))
    run = jax.jit(lambda v: (operator(0.0, v, None), operator.apply(jnp.exp, 0.1, v), operator.solve(0.1, v)))
    for single, double in zip(run(u.astype(jnp.float32)), run(u), strict=True):
        assert single.dtype == jnp.float32
        assert relative(single.astype(jnp.float64), double) < 2e-6
    assert jax.eval_shape(run, u.astype(jnp.bfloat16))[1].dtype == jnp.bfloat16


def test_transformations(relative):
    """jit, vmap, and gradients with respect to D, the step and the field, both ways, against finite differences."""
    grid = Grid(6)
    u = jnp.asarray(_rng.normal(size=(4, 6, 3)))
    weight = jnp.asarray(_rng.normal(size=(6, 3)))

    def loss(d, scale, field):
        operator = DiagonalizableOperator(grid, d, -1.0)
        variable = TridiagonalOperator(Grid(6, boundary="periodic"), jnp.abs(field[:, 0]) + 0.1)
        out = operator.apply(jnp.exp, scale, field) + operator.solve(scale, field) + variable.solve(scale, field)
        return jnp.sum(weight * out)

    # Symmetric directions: a perturbed D must stay symmetric.
    step = _rng.normal(size=(3, 3))
    at = (jnp.asarray(DENSE), jnp.asarray(0.05), u[0])
    along = (jnp.asarray(step + step.T), jnp.asarray(0.3), u[1])
    h = 1e-5

    @jax.jit
    def values():
        def moved(s):
            return loss(*(a + s * v for a, v in zip(at, along, strict=True)))

        forward = jax.jvp(loss, at, along)[1]
        return forward, jax.grad(loss, argnums=(0, 1, 2))(*at), jax.lax.map(moved, np.asarray([h, -h]))

    forward, gradient, shifted = jax.device_get(values())
    backward = sum(np.sum(g * v) for g, v in zip(gradient, along, strict=True))
    numeric = (shifted[0] - shifted[1]) / (2 * h)
    assert float(forward) == pytest.approx(float(numeric), rel=1e-7)
    assert float(backward) == pytest.approx(float(forward), rel=1e-12)
    operator = DiagonalizableOperator(grid, DENSE)
    batch, alone = jax.jit(lambda u: (jax.vmap(lambda v: operator.solve(0.1, v))(u)[2], operator.solve(0.1, u[2])))(u)
    assert relative(batch, alone) < 1e-14


def test_operator_inside_a_solve():
    """A solver reads the operator through diffrax's wrapper."""
    operator = DiagonalizableOperator(Grid(4), 0.1)
    assert linear_operator_of(diffrax.ODETerm(operator)) is operator
    seen = []

    class Probe(diffrax.AbstractSolver):
        term_structure = diffrax.AbstractTerm
        interpolation_cls = diffrax.LocalLinearInterpolation

        def order(self, terms):
            return 1

        def init(self, terms, t0, t1, y0, args):
            return None

        def func(self, terms, t0, y0, args):
            return y0

        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            seen.append(linear_operator_of(terms, DiagonalizableOperator))
            return y0, None, {"y0": y0, "y1": y0}, None, diffrax.RESULTS.successful

    diffrax.diffeqsolve(diffrax.ODETerm(operator), Probe(), 1.0, 0.0, -0.5, jnp.ones((4, 1)))
    assert seen and isinstance(seen[0], AbstractLinearOperator)


def test_refuses_other_terms():
    grid = Grid(4)
    with pytest.raises(TypeError, match="first the nonlinear rest, then the linear operator"):
        linear_operator_of(diffrax.ODETerm(lambda t, u, args: u))
    with pytest.raises(TypeError, match="implicit-explicit"):
        linear_operator_of(diffrax.ODETerm(TridiagonalOperator(grid, jnp.ones(4))), DiagonalizableOperator)
    with pytest.raises(TypeError, match="ODETerm"):
        linear_operator_of("diffusion")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda g: DiagonalizableOperator(Grid(1), 1.0), "at least 2 tokens"),
        (lambda g: DiagonalizableOperator(g, -1.0), "negative"),
        (lambda g: DiagonalizableOperator(g, -0.1 + 1j), "negative"),
        (lambda g: DiagonalizableOperator(g, np.diag([1.0, -1.0])), "negative"),
        (lambda g: DiagonalizableOperator(g, np.nan), "NaN"),
        (lambda g: DiagonalizableOperator(g, np.array([[1.0, 1.0], [0.0, 1.0]])), "symmetric"),
        (lambda g: DiagonalizableOperator(g, np.ones((2, 3))), "allowed are a scalar"),
        (lambda g: DiagonalizableOperator(g, np.eye(2) * 1j), "complex matrix"),
        (lambda g: DiagonalizableOperator(g, np.ones(2), np.ones(3)), "agree on d"),
        (lambda g: DiagonalizableOperator(g, np.array([1.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]])), "commute"),
        (lambda g: DiagonalizableOperator(g, np.array([1j, 2j]), np.eye(2)), "complex"),
        (lambda g: DiagonalizableOperator(g, 1.0, np.array([[0.0, 1.0], [-1.0, 0.0]])), "CoupledOperator takes"),
        (lambda g: DiagonalizableOperator(g, np.ones(2)).check((4, 3)), r"\(4, 2\)"),
        (lambda g: DiagonalizableOperator(g, 1.0).check((5, 3)), r"\(4, d\)"),
        (lambda g: DiagonalizableOperator(g, 1.0).check((4,)), r"\(4, d\)"),
        (lambda g: TridiagonalOperator(Grid(1), np.ones(1)), "at least 2 tokens"),
        (lambda g: TridiagonalOperator(g, np.ones(3)), "one D per token"),
        (lambda g: TridiagonalOperator(g, np.array([1.0, -1.0, 1.0, 1.0])), "backward heat"),
        (lambda g: TridiagonalOperator(g, np.ones(4) * 1j), "real"),
        (lambda g: TridiagonalOperator(g, np.ones(4), mask=np.ones(3, bool)), "booleans"),
        (lambda g: TridiagonalOperator(g, np.ones((4, 2)), shift=np.ones(3)), "shift"),
        (lambda g: TridiagonalOperator(g, np.ones((4, 2))).check((4, 3)), r"\(4, 2\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(Grid(4))


def test_not_a_number():
    with pytest.raises(TypeError, match="must be a number"):
        DiagonalizableOperator(Grid(4), "fast")
