"""Grids: points, weights, norms, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid

BOUNDARIES = ("neumann", "dirichlet", "periodic")


@pytest.mark.parametrize(
    "boundary, points, weights",
    [
        ("neumann", [0.25, 0.75, 1.25, 1.75], [0.5] * 4),
        ("periodic", [0.0, 0.5, 1.0, 1.5], [0.5] * 4),
        ("dirichlet", [0.4, 0.8, 1.2, 1.6], [0.6, 0.4, 0.4, 0.6]),
    ],
)
def test_points_and_weights_by_hand(boundary, points, weights):
    grid = Grid(4, boundary=boundary, length=2.0)
    np.testing.assert_allclose(grid.points, points, rtol=1e-15)
    np.testing.assert_allclose(grid.weights, weights, rtol=1e-15)
    np.testing.assert_allclose(grid.spacing, points[1] - points[0], rtol=1e-15)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_weights_are_positive_and_sum_to_the_length(boundary, n):
    weights = Grid(n, boundary=boundary, length=2.5).weights
    assert weights.shape == (n,) and bool(jnp.all(weights > 0))
    np.testing.assert_allclose(jnp.sum(weights), 2.5, rtol=1e-15)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_quadrature_is_second_order(boundary):
    """For a function that does not vanish at the ends; a smooth periodic one is integrated to rounding."""

    def integrand(x):
        return jnp.exp(jnp.sin(jnp.pi * x)) if boundary == "periodic" else jnp.exp(x) + x**3

    exact = 2.0 * 1.2660658777520082 if boundary == "periodic" else np.exp(2.0) - 1.0 + 4.0
    errors = []
    for n in (64, 128, 256):
        grid = Grid(n, boundary=boundary, length=2.0)
        errors.append(abs(float(grid.mean(integrand(grid.points)[:, None])[0]) * 2.0 - exact))
    if boundary == "periodic":
        assert max(errors) < 1e-13
    else:
        np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2.0, atol=0.05)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_norms(boundary, getkey):
    grid = Grid(9, boundary=boundary, length=1.7)
    u = np.asarray(jax.random.normal(getkey(), (9, 3)))
    w = np.asarray(grid.weights)
    np.testing.assert_allclose(grid.mean(jnp.asarray(u)), w @ u / 1.7, rtol=1e-14)
    np.testing.assert_allclose(grid.norm(jnp.asarray(u)), np.sqrt(np.einsum("i,id,id", w, u, u)), rtol=1e-14)
    np.testing.assert_allclose(grid.max_norm(jnp.asarray(u)), np.linalg.norm(u, axis=1).max(), rtol=1e-14)
    rotated = jnp.asarray(u * np.exp(0.3j))
    np.testing.assert_allclose(grid.norm(rotated), grid.norm(jnp.asarray(u)), rtol=1e-14)
    np.testing.assert_allclose(grid.max_norm(rotated), grid.max_norm(jnp.asarray(u)), rtol=1e-14)


def test_norm_is_mesh_consistent():
    """It tends to the L² norm: ∫ (cos²πx + x²) dx = 1/2 + 1/3 on [0, 1]."""
    for boundary in ("neumann", "dirichlet"):
        grid = Grid(4000, boundary=boundary)
        u = jnp.stack([jnp.cos(jnp.pi * grid.points), grid.points], axis=1)
        np.testing.assert_allclose(grid.norm(u), np.sqrt(5.0 / 6.0), rtol=1e-6)


def test_float32_stays_float32():
    for length in (1.0, jnp.asarray(2.0)):  # a float64 length too
        grid = Grid(5, length=length)
        u = jnp.ones((5, 2), jnp.float32)
        assert grid.mean(u).dtype == grid.norm(u).dtype == grid.max_norm(u).dtype == jnp.float32
    assert Grid(5, length=jnp.float32(2.0)).points.dtype == jnp.float32


def test_length_is_a_dynamic_leaf():
    """One compilation for all lengths, and a derivative with respect to the length."""
    traces = []

    @eqx.filter_jit
    def norm(grid, u):
        traces.append(None)
        return grid.norm(u)

    u = jnp.ones((4, 1))
    for length in (1.0, 4.0):
        value = norm(Grid(4, length=jnp.asarray(length)), u)
        np.testing.assert_allclose(value, np.sqrt(length), rtol=1e-15)
    assert len(traces) == 1
    slope = jax.grad(lambda length: Grid(4, length=length).norm(u))(4.0)
    np.testing.assert_allclose(slope, 0.25, rtol=1e-14)
    assert [leaf for leaf in jax.tree.leaves(Grid(4, length=3.0))] == [3.0]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"n": 0}, ValueError, "Grid: n=0 must be an integer of at least 1"),
        ({"n": -3}, ValueError, "Grid: n=-3 must be an integer of at least 1"),
        ({"n": 2.0}, TypeError, "n=2.0 must be an integer of at least 1"),
        ({"n": True}, TypeError, "integer"),
        ({"n": "8"}, TypeError, "n='8' must be an integer"),
        (
            {"n": 4, "boundary": "reflecting"},
            ValueError,
            "'neumann', 'dirichlet', 'periodic'; got 'reflecting'",
        ),
        ({"n": 4, "boundary": None}, ValueError, "boundary must be one of"),
        ({"n": 4, "length": 0.0}, ValueError, "positive and finite; got 0.0"),
        ({"n": 4, "length": -1}, ValueError, "positive and finite"),
        ({"n": 4, "length": float("nan")}, ValueError, "positive and finite"),
        ({"n": 4, "length": jnp.asarray(jnp.inf)}, ValueError, "positive and finite"),
        ({"n": 4, "length": jnp.ones(2)}, ValueError, "scalar; got an array of shape"),
        ({"n": 4, "length": "1"}, TypeError, "length must be a positive real number"),
        ({"n": 4, "length": 1j}, TypeError, "length must be a positive real number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Grid(**arguments)


def test_numpy_scalars_are_accepted():
    grid = Grid(np.int64(4), length=np.float64(2.0))
    assert type(grid.n) is int and type(grid.length) is float
    assert Grid(4, length=jnp.asarray(2)).length == 2.0


@pytest.mark.parametrize("method", ["mean", "norm", "max_norm"])
def test_field_of_another_size(method):
    with pytest.raises(ValueError, match=r"u has shape \(3, 2\), but the grid has n=4 tokens"):
        getattr(Grid(4), method)(jnp.ones((3, 2)))
