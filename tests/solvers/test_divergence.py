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
def test_unit_coefficient_is_the_laplacian(boundary, n, relative):
    grid = Grid(n, boundary=boundary, length=0.7)

    @jax.jit
    def pairs(u):
        one, whole = Laplacian(grid)(u[:, 0]), Laplacian(grid)(u)
        each = [divergence(grid, c, u) for c in (jnp.ones(n), jnp.ones((n, 3)))]
        return [(each[0], whole), (each[1], whole), (divergence(grid, jnp.ones(n), u[:, 0]), one)]

    for found, expected in pairs(np.random.default_rng(0).normal(size=(n, 3))):
        assert relative(found, expected) < 1e-14


def test_textbook_twin(boundary, relative):
    """Face by face, with explicit loops."""
    n, grid = 6, Grid(6, boundary=boundary, length=1.1)
    rng = np.random.default_rng(0)
    coefficient, u = rng.uniform(size=(n, 2)), rng.normal(size=(n, 2))
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
    assert relative(jax.jit(lambda c, u: divergence(grid, c, u))(coefficient, u), expected) < 1e-14


def test_conservative_symmetric_and_negative(boundary):
    grid = Grid(20, boundary=boundary)
    coefficient = jnp.asarray(np.random.default_rng(0).uniform(size=20))
    operator = np.asarray(jax.jit(jax.jacfwd(lambda u: divergence(grid, coefficient, u)))(np.zeros(20)))
    np.testing.assert_allclose(operator, operator.T, atol=1e-10)
    largest = float(np.linalg.eigvalsh(operator)[-1])
    if boundary == "dirichlet":
        assert largest < 0
    else:
        assert abs(largest) < 1e-9
        np.testing.assert_allclose(np.sum(operator, axis=0), 0.0, atol=1e-10)


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


def test_mask_cuts_the_faces(boundary, relative):
    """The real tokens behave as if padding were not there, whatever it contains; padding does not move."""
    n, real, rng = 9, 6, np.random.default_rng(0)
    u, coefficient, mask = rng.normal(size=(n, 2)), rng.uniform(size=n), np.arange(n) < real

    @jax.jit
    def run(u, coefficient, mask):
        grid = Grid(n, boundary=boundary, length=9.0)
        spoilt = jnp.where(mask[:, None], u, jnp.nan)
        alone = divergence(Grid(real, boundary=boundary, length=6.0), coefficient[:real], u[:real])
        return (
            divergence(grid, coefficient, spoilt, mask),
            alone,
            divergence(grid, coefficient, u, jnp.ones(n, bool)),
            divergence(grid, coefficient, u),
        )

    result, alone, full, plain = map(np.asarray, run(u, coefficient, mask))
    assert np.all(result[real:] == 0.0) and np.isfinite(result).all()
    if boundary == "neumann":
        assert relative(result[:real], alone) < 1e-14
    if boundary != "dirichlet":  # token 0 keeps its wall there
        np.testing.assert_allclose(np.sum(result, axis=0), 0.0, atol=1e-13)
    assert relative(full, plain) < 1e-15


def test_gradient_does_not_see_padding():
    u, mask = np.random.default_rng(0).normal(size=(5, 1)), jnp.asarray(np.arange(5) < 3)

    def energy(u, coefficient):
        return jnp.sum(jnp.where(mask[:, None], divergence(Grid(5), coefficient, u, mask), 0.0) ** 2)

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(np.where(mask[:, None], u, 1e30), np.ones(5))
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.all(np.asarray(gradients[0])[3:] == 0.0)


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


def test_complex_fields_by_parts(boundary):
    """Under strict promotion too; for D = 1 both stencils are the Laplacian."""
    grid = Grid(9, boundary)
    real, imaginary = np.random.default_rng(0).normal(size=(2, 9, 2))

    @jax.jit
    def run(u):
        parts = Laplacian(grid)(u.real), Laplacian(grid)(u.imag)
        return parts, Laplacian(grid)(u), divergence(grid, jnp.ones(9), u)

    (a, b), found, conservative = run(real + 1j * imaginary)
    expected = np.asarray(a) + 1j * np.asarray(b)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(conservative, expected, rtol=1e-12)
