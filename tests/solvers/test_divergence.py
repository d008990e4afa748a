"""∂x(D ∂x u): conservation, sign, order, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid, Laplacian, divergence


@pytest.fixture(params=["neumann", "dirichlet", "periodic"])
def boundary(request):
    return request.param


@pytest.mark.parametrize("n", [2, 9])
def test_unit_coefficient_is_the_laplacian(boundary, n, getkey, relative):
    grid = Grid(n, boundary=boundary, length=0.7)
    u = jax.random.normal(getkey(), (n, 3))
    for coefficient in (jnp.ones(n), jnp.ones((n, 3))):
        assert relative(divergence(grid, coefficient, u), Laplacian(grid)(u)) < 1e-14
    assert relative(divergence(grid, jnp.ones(n), u[:, 0]), Laplacian(grid)(u[:, 0])) < 1e-14


def test_textbook_twin(boundary, getkey, relative):
    """Face by face, with explicit loops."""
    n, grid = 6, Grid(6, boundary=boundary, length=1.1)
    coefficient = np.asarray(jax.random.uniform(getkey(), (n, 2)))
    u = np.asarray(jax.random.normal(getkey(), (n, 2)))
    expected = np.zeros((n, 2))
    for i in range(n):
        for step in (-1, 1):
            j = i + step
            if boundary == "periodic":
                j %= n
            if 0 <= j < n:
                face, neighbour = 0.5 * (coefficient[i] + coefficient[j]), u[j]
            else:
                face, neighbour = coefficient[i], u[i] if boundary == "neumann" else 0.0
            expected[i] += face * (neighbour - u[i]) / grid.spacing**2
    assert relative(divergence(grid, jnp.asarray(coefficient), jnp.asarray(u)), jnp.asarray(expected)) < 1e-14


def test_conservative_symmetric_and_negative(boundary, getkey):
    grid = Grid(20, boundary=boundary)
    coefficient = jax.random.uniform(getkey(), (20,))
    operator = jax.jacfwd(lambda u: divergence(grid, coefficient, u))(jnp.zeros(20))
    np.testing.assert_allclose(operator, operator.T, atol=1e-10)
    largest = float(jnp.linalg.eigvalsh(operator)[-1])
    if boundary == "dirichlet":
        assert largest < 0
    else:
        assert abs(largest) < 1e-9
        np.testing.assert_allclose(jnp.sum(operator, axis=0), 0.0, atol=1e-10)


# u and D, with D not flat at the ends, by boundary.
MANUFACTURED = {
    "neumann": (
        lambda x: jnp.cos(jnp.pi * x) + 0.3 * jnp.cos(3 * jnp.pi * x),
        lambda x: 1 + x + jnp.sin(5 * x) / 2,
    ),
    "dirichlet": (lambda x: jnp.sin(jnp.pi * x) * jnp.exp(x), lambda x: 1 + x + jnp.sin(5 * x) / 2),
    "periodic": (lambda x: jnp.exp(jnp.cos(2 * jnp.pi * x)), lambda x: 1.5 + jnp.sin(2 * jnp.pi * x)),
}


def test_second_order_with_a_variable_coefficient(boundary):
    """The solution of (D u')' = f, f manufactured from u and D."""
    solution, coefficient = MANUFACTURED[boundary]
    source = jax.vmap(jax.grad(lambda x: coefficient(x) * jax.grad(solution)(x)))

    @jax.jit
    def error(grid):
        x = grid.points
        u = solution(x)
        operator = divergence(grid, coefficient(x), jnp.eye(grid.n))
        shift = 0.0 if boundary == "dirichlet" else 1.0  # the others have the constants in their kernel
        found = jnp.linalg.solve(operator - shift * jnp.eye(grid.n), source(x) - shift * u)
        return grid.norm(found - u)

    errors = np.array([float(error(Grid(n, boundary=boundary))) for n in (64, 128, 256)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 2.0, atol=0.1)


def test_mask_cuts_the_faces(boundary, getkey, relative):
    """The real tokens behave as if padding were not there, whatever it contains; padding does not move."""
    n, real = 9, 6
    u = jax.random.normal(getkey(), (n, 2)).at[real:].set(jnp.nan)
    coefficient = jax.random.uniform(getkey(), (n,))
    mask = jnp.arange(n) < real
    result = divergence(Grid(n, boundary=boundary, length=9.0), coefficient, u, mask)
    assert bool(jnp.all(result[real:] == 0.0)) and bool(jnp.all(jnp.isfinite(result)))
    if boundary == "neumann":
        alone = divergence(Grid(real, boundary=boundary, length=6.0), coefficient[:real], u[:real])
        assert relative(result[:real], alone) < 1e-14
    if boundary != "dirichlet":  # token 0 keeps its wall there
        np.testing.assert_allclose(jnp.sum(result, axis=0), 0.0, atol=1e-13)
    full = divergence(Grid(n, boundary=boundary), coefficient, jnp.nan_to_num(u), jnp.ones(n, bool))
    assert relative(full, divergence(Grid(n, boundary=boundary), coefficient, jnp.nan_to_num(u))) < 1e-15


def test_gradient_does_not_see_padding(getkey):
    u = jax.random.normal(getkey(), (5, 1)).at[3:].set(jnp.inf)
    mask = jnp.arange(5) < 3

    def energy(u, coefficient):
        return jnp.sum(jnp.where(mask[:, None], divergence(Grid(5), coefficient, u, mask), 0.0) ** 2)

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(jnp.where(mask[:, None], u, 1e30), jnp.ones(5))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    assert bool(jnp.all(gradients[0][3:] == 0.0))


def test_float32_stays_float32(boundary):
    grid = Grid(5, boundary=boundary, length=jnp.asarray(1.0))
    u = jnp.ones((5, 2), jnp.float32)
    assert divergence(grid, jnp.ones(5), u).dtype == jnp.float32


def test_bad_shapes():
    grid, u = Grid(4), jnp.ones((4, 3))
    with pytest.raises(ValueError, match="u has shape"):
        divergence(grid, jnp.ones(4), jnp.ones((5, 3)))
    for shape in ((5,), (3,), (4, 1), (3, 4)):
        with pytest.raises(ValueError, match=r"coefficient has shape .* it must be \(4,\)"):
            divergence(grid, jnp.ones(shape), u)
    for shape in ((3,),):
        with pytest.raises(ValueError, match=r"mask has shape \(3,\); it must be \(4,\)"):
            divergence(grid, jnp.ones(4), u, jnp.ones(shape, bool))


def test_complex_fields_by_parts(boundary, getkey):
    """Under strict promotion too; for D = 1 both stencils are the Laplacian."""
    grid = Grid(9, boundary)
    u = jax.lax.complex(*(jax.random.normal(getkey(), (9, 2)) for _ in range(2)))
    expected = np.asarray(Laplacian(grid)(u.real)) + 1j * np.asarray(Laplacian(grid)(u.imag))
    np.testing.assert_allclose(Laplacian(grid)(u), expected, rtol=1e-14)
    np.testing.assert_allclose(divergence(grid, jnp.ones(9), u), expected, rtol=1e-12)
