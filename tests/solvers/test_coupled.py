"""Diffusivities that are matrices of any kind, known or traced, against dense exponentials and finite differences."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import pdejax as pj
from pdejax.solvers import ETDRK4, CoupledOperator, DiagonalizableOperator, Grid
from pdejax.solvers._coupled import summed
from pdejax.solvers._phi import phi_of_matrices

_rng = np.random.default_rng(0)
GRID, T1 = Grid(4), 0.05
TURN = np.array([[1.0, 0.6], [-0.6, 1.0]])  # not symmetric
JORDAN = np.array([[1.0, 0.4], [0.0, 1.0]])  # not even diagonalizable
U0 = jnp.asarray(_rng.normal(size=(4, 2)))
WEIGHT = jnp.asarray(_rng.normal(size=(4, 2)))


def dense(d, m=0.0):
    """∇²⊗D + 1⊗M on a Neumann grid of 4 tokens."""
    laplacian = np.diag([-1.0, -2.0, -2.0, -1.0]) + np.eye(4, k=1) + np.eye(4, k=-1)
    return np.kron(16.0 * laplacian, d) + np.kron(np.eye(4), m * np.eye(2) if np.ndim(m) == 0 else m)


def taylor(z, k):
    """φ_k(z) by its series in extended precision, for ‖z‖ up to 10."""
    term = np.eye(3, dtype=np.longdouble) / np.longdouble(math.factorial(k))
    total = term.copy()
    for j in range(1, 120):
        term = term @ z.astype(np.longdouble) / (j + k)
        total += term
    return total.astype(float)


def test_phi_of_matrices():
    """Any matrix: a random one, a Jordan block, 0 and a multiple of 1 by the series; a stiff and turning one in closed form."""
    jordan = np.diag([-2.0] * 3) + np.eye(3, k=1)
    stiff = -1e3 * np.array([[1.0, 0.6, 0.0], [-0.6, 1.0, 0.0], [0.0, 0.0, 1.0]])
    each = np.stack([_rng.normal(size=(3, 3)) * 3, jordan, np.zeros((3, 3)), -5.0 * np.eye(3), stiff])
    found = jax.jit(lambda z: phi_of_matrices(z, 3))(each)
    for k in range(4):
        for i, z in enumerate(each[:4]):
            exact = taylor(z, k)
            np.testing.assert_allclose(found[k][i], exact, rtol=0, atol=1e-14 * max(1.0, np.abs(exact).max()))
        # Turning by −0.6 in the plane is multiplying by x + iy; e^x is 0 to rounding.
        x = -1e3 * (1.0 - 0.6j)
        value = 0.0
        for j in range(k):
            value = (value - 1 / math.factorial(j)) / x
        plane = [[value.real, -value.imag], [value.imag, value.real]] if k else np.zeros((2, 2))
        np.testing.assert_allclose(found[k][4][:2, :2], plane, rtol=1e-12, atol=1e-16)


def test_operator_against_its_matrix():
    m = _rng.normal(size=(2, 2))
    operator, matrix, flat = CoupledOperator(GRID, TURN, m), dense(TURN, m), np.asarray(U0).ravel()
    applied, solved = jax.jit(lambda u: (operator(0.0, u, None).ravel(), operator.solve(0.3, u).ravel()))(U0)
    np.testing.assert_allclose(applied, matrix @ flat, atol=1e-12)
    np.testing.assert_allclose(solved, np.linalg.solve(np.eye(8) - 0.3 * matrix, flat), atol=1e-13)
    assert float(operator.spectral_radius()) >= np.abs(np.linalg.eigvals(matrix)).max()
    # Symmetric matrices that do not commute: each is diagonalizable, their sum has no common basis.
    one, two = DiagonalizableOperator(GRID, np.array([[2.0, 1.0], [1.0, 1.0]])), np.diag([-1.0, -3.0])
    both = summed(one, DiagonalizableOperator(GRID, 0.0, np.array([-1.0, -3.0])))
    np.testing.assert_allclose(
        jax.jit(lambda u: both.solve(0.1, u).ravel())(U0),
        np.linalg.solve(np.eye(8) - 0.1 * dense([[2, 1], [1, 1]], two), flat),
        atol=1e-13,
    )


def end(d, solver="etdrk4", steps=32):
    field = pj.MasterEquation(diffusion=pj.Diffusion(GRID, d))
    return pj.simulate(pj.Discretization(field, solver, t1=T1, steps=steps), U0).us[-1]


@pytest.mark.parametrize(
    "solver, tolerance", [("etdrk4", 1e-13), ("ark4", 1e-7), ("strangflow", 1e-13), ("auto", 1e-6)]
)
def test_matrix_that_is_not_symmetric(solver, tolerance):
    """Known, and as an argument in a batch: exp(tL) u0, and never the equation of its symmetric part."""
    d = jnp.asarray(TURN)
    exact = (scipy.linalg.expm(T1 * dense(TURN)) @ np.asarray(U0).ravel()).reshape(4, 2)
    wrong = (scipy.linalg.expm(T1 * dense((TURN + TURN.T) / 2)) @ np.asarray(U0).ravel()).reshape(4, 2)
    assert np.abs(exact - wrong).max() > 0.1
    known, batch = jax.jit(lambda ms: (end(d, solver), jax.vmap(lambda m: end(m, solver))(ms)))(
        np.stack([TURN, TURN.T])
    )
    np.testing.assert_allclose(known, exact, atol=tolerance)
    np.testing.assert_allclose(batch[0], exact, atol=tolerance)


@jax.jit
@jax.grad
def gradient(m):
    return jnp.sum(WEIGHT * end(m, steps=2))


@pytest.mark.parametrize("d", [np.eye(2), JORDAN], ids=["equal eigenvalues", "jordan"])
def test_gradient_by_the_matrix(d):
    """Equal eigenvalues, where eigenvectors have no derivative: Fréchet derivatives of the matrix exponential."""
    found = gradient(d)
    matrix, flat = T1 * dense(d), np.asarray(U0).ravel()
    exact = np.zeros((2, 2))
    for i, j in np.ndindex(2, 2):
        step = T1 * dense(np.eye(2)[[i]].T @ np.eye(2)[[j]])
        change = scipy.linalg.expm_frechet(matrix, step, compute_expm=False) @ flat
        exact[i, j] = np.asarray(WEIGHT).ravel() @ change
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)


def test_known_symmetry_is_used_and_never_stale():
    """A matrix known to be symmetric takes the cheap way; one that an optimizer has turned since does not."""
    field = pj.MasterEquation(diffusion=pj.Diffusion(GRID, jnp.eye(2)))
    assert field.looked_at().diffusion.symmetric
    moved = eqx.tree_at(lambda e: e.diffusion.diffusivity, field.looked_at(), jnp.asarray(TURN))
    assert not moved.looked_at().diffusion.symmetric
    run = pj.simulate(pj.Discretization(moved, "etdrk4", t1=T1, steps=2), U0)
    exact = scipy.linalg.expm(T1 * dense(TURN)) @ np.asarray(U0).ravel()
    np.testing.assert_allclose(run.us[-1].ravel(), exact, atol=1e-13)


def test_traced_matrices_without_a_common_basis_give_nan():
    """A `DiagonalizableOperator` cannot refuse what is traced: it must not answer either."""

    def solve(d, m):
        return DiagonalizableOperator(GRID, d, m).solve(0.1, U0)

    run = jax.jit(solve)
    assert np.isfinite(run(jnp.eye(2), jnp.asarray([-1.0, -2.0]))).all()
    assert np.isnan(run(jnp.asarray(TURN), jnp.asarray([-1.0, -1.0]))).all()
    assert np.isnan(run(jnp.asarray([[2.0, 1.0], [1.0, 1.0]]), jnp.asarray([-1.0, -3.0]))).all()


def test_dense_output_and_float32():
    operator = CoupledOperator(GRID, TURN)
    terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, u, args: 0.0 * u), diffrax.ODETerm(operator))
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-5)):
        u0 = U0.astype(dtype)
        saveat = diffrax.SaveAt(ts=jnp.asarray([0.013, T1], dtype))
        times = (jnp.asarray(x, dtype) for x in (0.0, T1, T1))
        found = eqx.filter_jit(diffrax.diffeqsolve)(terms, ETDRK4(), *times, u0, saveat=saveat, max_steps=2).ys
        assert found.dtype == dtype
        for t, u in zip((0.013, T1), found, strict=True):
            exact = scipy.linalg.expm(t * dense(TURN)) @ np.asarray(U0).ravel()
            np.testing.assert_allclose(u.ravel(), exact, atol=tolerance)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: CoupledOperator(Grid(1), TURN), "at least 2 tokens"),
        (lambda: CoupledOperator(GRID, -TURN), "negative"),
        (lambda: CoupledOperator(GRID, 1.0), "one of them must be an array"),
        (lambda: CoupledOperator(GRID, TURN, np.ones(3)), "agree on d"),
        (lambda: CoupledOperator(GRID, np.array([1j, 1.0])), "must be real"),
        (lambda: CoupledOperator(GRID, TURN).plus(DiagonalizableOperator(Grid(5), 1.0)), "on one grid"),
        (lambda: CoupledOperator(GRID, TURN).check((4, 3)), r"\(4, 2\)"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
