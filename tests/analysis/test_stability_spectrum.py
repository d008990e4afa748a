"""Spectral bounds of a field against the dense Jacobian by finite differences, and its iterative twin against the dense one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from scipy.sparse.linalg import ArpackNoConvergence

import pdejax as pj
from pdejax.analysis.jacobian import _operator
from pdejax.analysis.stability import spectral_bounds

N, D = 6, 3


def laplacian(n):
    """Neumann Laplacian of unit spacing, written out."""
    matrix = np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    matrix[0, 0] = matrix[-1, -1] = -1
    return matrix


@pytest.fixture(scope="module")
def equation():
    keys = jax.random.split(jax.random.key(3), 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, key=keys[0], leak=True),
        reaction=pj.FeedForward(D, 5, key=keys[1], activation="tanh"),
        diffusion=pj.Diffusion(pj.Grid(N), 0.3),
        stabilization=pj.LinearDamping(0.7),
    )


@pytest.fixture(scope="module")
def u():
    return jax.random.normal(jax.random.key(4), (N, D))


@pytest.fixture(scope="module")
def found(equation, u):
    return spectral_bounds(equation, u)


def differences(field, u, eps=1e-6):
    shifts = eps * np.eye(u.size).reshape(-1, *u.shape)
    either = jax.jit(lambda v: jax.lax.map(lambda v: field(0.0, u + v) - field(0.0, u - v), v))(shifts)
    return np.asarray(either).reshape(u.size, -1).T / (2 * eps)


@pytest.mark.parametrize("name", ["interaction", "reaction", "field"])
def test_equals_dense_finite_differences(equation, u, found, name):
    part = equation if name == "field" else equation.only((name,))
    matrix = differences(part, u)
    values, bounds = np.linalg.eigvals(matrix), found[name]
    symmetric = np.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(bounds.rightmost.real, values.real.max(), **close)
    np.testing.assert_allclose(bounds.leftmost.real, values.real.min(), **close)
    np.testing.assert_allclose(bounds.spectral_radius, np.abs(values).max(), **close)
    np.testing.assert_allclose([bounds.log_norm, bounds.lower_log_norm], [symmetric[-1], symmetric[0]], **close)
    np.testing.assert_allclose(bounds.lipschitz, np.linalg.norm(matrix, 2), **close)
    assert bounds.complete and bounds.converged and len(bounds.eigenvalues) == N * D


def test_field_of_values_lies_in_its_polygon(equation, u, found):
    matrix, polygon = differences(equation, u), found["field"].field_of_values
    rng = np.random.default_rng(0)
    v = rng.standard_normal((N * D, 500)) + 1j * rng.standard_normal((N * D, 500))
    v[:, :2] = np.linalg.eig(matrix)[1][:, :2]
    inside = np.sum(v.conj() * (matrix @ v), axis=0) / np.sum(np.abs(v) ** 2, axis=0)
    edges = np.roll(polygon, -1) - polygon
    area = 0.5 * np.sum(polygon.real * np.roll(polygon.imag, -1) - polygon.imag * np.roll(polygon.real, -1))
    cross = np.imag(edges.conj()[:, None] * (inside[None] - polygon[:, None])) * np.sign(area)
    assert cross.min() > -1e-4
    # It is tight: every side touches, so the farthest corner is within √2-ish of the numerical radius.
    assert np.abs(polygon).max() < 1.5 * np.linalg.norm(matrix, 2)


@pytest.mark.parametrize("diffusivity", [0.4, [0.1, 0.4, 0.9], [[1.0, 5.0, 0.0], [-5.0, 1.0, 0.0], [0.0, 0.3, 2.0]]])
def test_diffusion_is_exact(diffusivity, u):
    equation = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N, length=float(N)), jnp.asarray(diffusivity)))
    bounds = spectral_bounds(equation, u)["diffusion"]
    d = np.asarray(diffusivity, float)
    matrix = np.kron(laplacian(N), d if d.ndim == 2 else np.diag(np.broadcast_to(d, D)))
    values = np.linalg.eigvals(matrix)

    def order(z):
        return np.sort_complex(np.round(np.asarray(z, complex), 8))

    np.testing.assert_allclose(order(bounds.eigenvalues), order(values), atol=1e-7)
    symmetric = np.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    np.testing.assert_allclose([bounds.log_norm, bounds.lower_log_norm], [symmetric[-1], symmetric[0]], atol=1e-10)
    np.testing.assert_allclose(bounds.lipschitz, np.linalg.norm(matrix, 2), rtol=1e-10)
    assert bounds.method == "exact"


def test_damping_is_exact(u):
    gamma = jnp.linspace(0.0, 2.0, N)
    bounds = spectral_bounds(pj.MasterEquation(stabilization=pj.LinearDamping(gamma)), u)
    exact, dense = bounds["stabilization"], bounds["field"]
    assert exact.method == "exact" and dense.method == "dense"
    for name in ("rightmost", "leftmost", "spectral_radius", "log_norm", "lower_log_norm", "lipschitz"):
        np.testing.assert_allclose(getattr(exact, name), getattr(dense, name), atol=1e-12, err_msg=name)
    np.testing.assert_allclose(exact.field_of_values, dense.field_of_values, atol=1e-12)


def test_padding_leaves_the_closed_form(u):
    equation = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N, length=float(N)), 1.0))
    bounds = spectral_bounds(equation, u, mask=jnp.arange(N) < 4)["diffusion"]
    assert bounds.method == "dense"
    np.testing.assert_allclose(bounds.leftmost.real, np.linalg.eigvalsh(laplacian(4))[0], rtol=1e-9)


def test_iteration_equals_the_dense_matrix(equation, u, found, monkeypatch):
    monkeypatch.setattr(_operator, "COMPLETE", 4)
    iterated, dense = spectral_bounds(equation, u)["field"], found["field"]
    assert iterated.method == "iteration" and iterated.converged and not iterated.complete
    for name in ("spectral_radius", "log_norm", "lower_log_norm", "lipschitz"):
        np.testing.assert_allclose(getattr(iterated, name), getattr(dense, name), rtol=2e-3, err_msg=name)
    np.testing.assert_allclose(iterated.leftmost, dense.leftmost, rtol=2e-3)
    np.testing.assert_allclose(iterated.rightmost.real, dense.rightmost.real, rtol=2e-3)
    np.testing.assert_allclose(iterated.field_of_values, dense.field_of_values, atol=2e-3 * dense.lipschitz)


def test_an_iteration_that_does_not_converge_is_said(equation, u, monkeypatch):
    def never(*args, **kwargs):
        raise ArpackNoConvergence("no", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(_operator, "COMPLETE", 4)
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", never)
    bounds = spectral_bounds(equation, u)["field"]
    assert not bounds.converged and "lipschitz" in bounds.note and "field of values at 0°" in bounds.note
    assert np.isnan(bounds.lipschitz) and np.isnan(bounds.log_norm) and np.isfinite(bounds.spectral_radius)


def test_bad_input_says_what_to_do(equation, u):
    with pytest.raises(TypeError, match="spectral_bounds"):
        spectral_bounds(3, u)
    with pytest.raises(ValueError, match="u has 1 NaN or infinite"):
        spectral_bounds(equation, u.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="grid of 6 tokens"):
        spectral_bounds(equation, jnp.ones((5, D)))
    with pytest.raises(TypeError, match="floating"):
        spectral_bounds(equation, jnp.ones((N, D), int))
    with pytest.raises(ValueError, match="t="):
        spectral_bounds(equation, u, t=jnp.inf)
    with pytest.raises(TypeError, match="mask has type"):
        spectral_bounds(equation, u, mask=jnp.ones(N))
    with pytest.raises(TypeError, match="outside"):
        jax.jit(lambda v: spectral_bounds(equation, v)["field"].log_norm)(u)
    network = pj.FeedForward(D, D, key=jax.random.key(0), activation="identity")
    huge = eqx.tree_at(lambda r: (r.w1, r.w2), network, (1e200 * jnp.ones((D, D)),) * 2)
    with pytest.raises(ValueError, match="derivative at u is not finite"):
        spectral_bounds(pj.MasterEquation(reaction=huge), 0 * u)
