"""The Laplacian against dense matrices, SciPy's transforms and matrix functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg

from pdejax.solvers import Grid, Laplacian, divergence

BOUNDARIES = ("neumann", "dirichlet", "periodic")


def dense(n: int, boundary: str, length: float) -> np.ndarray:
    """The matrix of the stencil, entry by entry."""
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in (i - 1, i + 1):
            matrix[i, i] -= 1.0
            if boundary == "periodic":
                matrix[i, j % n] += 1.0
            elif 0 <= j < n:
                matrix[i, j] += 1.0
            elif boundary == "neumann":
                matrix[i, i] += 1.0
    dx = length / (n + 1) if boundary == "dirichlet" else length / n
    return matrix / dx**2


@pytest.fixture(params=BOUNDARIES)
def boundary(request):
    return request.param


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("n", [2, 3])
def test_stencil_is_the_dense_matrix(boundary, n, relative):
    laplacian = Laplacian(Grid(n, boundary=boundary, length=1.3))
    u, matrix = normal(n, 3), dense(n, boundary, 1.3)
    whole, column = jax.jit(lambda u: (laplacian(u), laplacian(u[:, 0])))(u)
    assert relative(whole, matrix @ u) < 1e-14
    assert relative(column, matrix @ u[:, 0]) < 1e-14


@pytest.mark.parametrize("n", [2, 8])
def test_eigenvalues_and_eigenvectors(boundary, n, relative):
    """The spectrum is that of the dense matrix, and the transform diagonalizes it in this order."""
    laplacian = Laplacian(Grid(n, boundary=boundary, length=1.3))
    values, basis = jax.jit(lambda: (laplacian.eigenvalues(), laplacian.transform(jnp.eye(n))))()
    values, basis = np.asarray(values), np.asarray(basis)  # rows: eigenvectors, conjugated
    assert values.shape == (n,) and np.all(values <= 0)
    matrix = dense(n, boundary, 1.3)
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(matrix), atol=1e-12 * abs(values).max())
    np.testing.assert_allclose(basis @ matrix, values[:, None] * basis, atol=1e-12 * abs(values).max())
    np.testing.assert_allclose(basis @ basis.conj().T, np.eye(n), atol=1e-14)


@pytest.mark.parametrize("n", [2, 7])
def test_transform_is_scipy_s(boundary, n, relative):
    laplacian = Laplacian(Grid(n, boundary=boundary))
    u = normal(n, 3)
    expected = {
        "neumann": lambda v: scipy.fft.dct(v, type=2, axis=0, norm="ortho"),
        "dirichlet": lambda v: scipy.fft.dst(v, type=1, axis=0, norm="ortho"),
        "periodic": lambda v: scipy.fft.fft(v, axis=0, norm="ortho"),
    }[boundary]

    @jax.jit
    def there_and_back(v):
        return laplacian.transform(v), laplacian.inverse(laplacian.transform(v))

    for v in (u, u + 1j * np.flip(u)):
        coefficients, again = map(np.asarray, there_and_back(v))
        assert relative(coefficients, expected(v)) < 1e-14
        assert np.iscomplexobj(coefficients) == (boundary == "periodic" or np.iscomplexobj(v))
        assert relative(again if np.iscomplexobj(v) else again.real, v) < 1e-14


@pytest.mark.parametrize("n", [2, 9])
def test_functions_of_the_operator(boundary, n, relative):
    """exp(tL), a resolvent and the dispersive exp(itL), against SciPy on the dense matrix."""
    laplacian = Laplacian(Grid(n, boundary=boundary, length=1.3))
    matrix, u = dense(n, boundary, 1.3), normal(n, 3)
    functions = [
        lambda z: jnp.exp(0.01 * z),
        lambda z: 1.0 / (1.0 - 0.3 * z),
        lambda z: jnp.exp(jax.lax.complex(0.0 * z, 0.01 * z)),
        lambda z: z,
    ]
    matrices = [
        scipy.linalg.expm(0.01 * matrix),
        np.linalg.inv(np.eye(n) - 0.3 * matrix),
        scipy.linalg.expm(0.01j * matrix),
        matrix,
    ]
    apply_all = jax.jit(lambda v: [laplacian.apply(f, v) for f in functions])
    for field in (u, u + 1j * np.flip(u)):
        for result, exact in zip(apply_all(field), matrices, strict=True):
            expected = exact @ field
            assert result.dtype == expected.dtype  # complex only where the answer is
            assert relative(result, expected) < 1e-13


def test_one_function_per_feature(boundary, relative):
    laplacian = Laplacian(Grid(9, boundary=boundary))
    u, rates = jnp.asarray(normal(9, 3)), np.array([0.1, 0.0, 0.02])

    @jax.jit
    def both():
        together = laplacian.apply(lambda z: jnp.exp(z[:, None] * rates[None, :]), u)
        alone = [laplacian.apply(lambda z, j=j: jnp.exp(z * rates[j]), u[:, j]) for j in range(3)]
        return together, jnp.stack(alone, axis=1)

    assert relative(*both()) < 1e-14


def test_heat_modes_are_exact_in_depth(boundary):
    """A mode decays as e^{λ_k t} (THEORY §5.1), and e^{λ_k t} tends to e^{−κ² t} at second order in dx."""
    wave = (4.0 if boundary == "periodic" else 3.0) * jnp.pi
    index = {"neumann": 3, "dirichlet": 2, "periodic": 2}[boundary]

    @jax.jit
    def errors(grid):
        laplacian = Laplacian(grid)
        mode = (jnp.cos if boundary == "neumann" else jnp.sin)(wave * grid.points)
        decay = jnp.exp(0.01 * laplacian.eigenvalues()[index])
        after = laplacian.apply(lambda z: jnp.exp(0.01 * z), mode)
        return jnp.max(jnp.abs(after - decay * mode)), jnp.abs(decay - jnp.exp(-0.01 * wave**2))

    found = np.array([errors(Grid(n, boundary=boundary)) for n in (32, 64, 128)])
    assert found[:, 0].max() < 1e-13
    np.testing.assert_allclose(np.log2(found[:-1, 1] / found[1:, 1]), 2.0, atol=0.05)


def test_symmetric_negative_and_conservative(boundary):
    laplacian = Laplacian(Grid(16, boundary=boundary))
    u, v = normal(2, 16)
    of_u, of_v = map(np.asarray, jax.jit(lambda u, v: (laplacian(u), laplacian(v)))(u, v))
    np.testing.assert_allclose(v @ of_u, of_v @ u, rtol=1e-12)
    assert u @ of_u < 0
    total = abs(of_u.sum()) / np.abs(of_u).sum()
    assert (total < 1e-15) == (boundary != "dirichlet")


def test_derivatives_and_batches(boundary, relative):
    """Reverse and forward derivatives with respect to u, t and the length, and `vmap`, against plain
    evaluation.
    """

    def heat(u, t, length):
        laplacian = Laplacian(Grid(7, boundary=boundary, length=length))
        return laplacian.apply(lambda z: jnp.exp(t * z), u)

    u, direction, cotangent, other = map(jnp.asarray, normal(4, 7, 2))
    arguments, tangents = (u, 0.02, 1.3), (direction, 0.7, -0.4)
    eps = 1e-6

    @jax.jit
    def derivatives():
        ahead = heat(*(a + eps * d for a, d in zip(arguments, tangents, strict=True)))
        behind = heat(*(a - eps * d for a, d in zip(arguments, tangents, strict=True)))
        forward = jax.jvp(heat, arguments, tangents)[1]
        return (ahead - behind) / (2 * eps), forward, jax.vjp(heat, *arguments)[1](cotangent)

    difference, forward, gradients = derivatives()
    assert relative(forward, difference) < 1e-7
    reverse = sum(np.vdot(g, d) for g, d in zip(gradients, tangents, strict=True))
    np.testing.assert_allclose(reverse, np.vdot(cotangent, forward), rtol=1e-12)
    together, alone = jax.jit(
        lambda batch: (jax.vmap(lambda v: heat(v, 0.02, 1.3))(batch)[1], heat(batch[1], 0.02, 1.3))
    )(np.stack([u, other]))
    assert relative(together, alone) < 1e-14


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_precision_is_kept(boundary, dtype):
    laplacian = Laplacian(Grid(8, boundary=boundary, length=jnp.asarray(1.3)))
    u = jnp.asarray(normal(8, 2))

    @jax.jit
    def run(u):
        return laplacian(u), laplacian.apply(lambda z: jnp.exp(0.01 * z), u)

    stencil, result = run(u.astype(dtype))
    assert stencil.dtype == result.dtype == dtype
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(result, float), run(u)[1], atol=tolerance)
    if dtype == jnp.float32:
        assert jax.eval_shape(laplacian.transform, u.astype(dtype)).dtype in (jnp.float32, jnp.complex64)
    rotated = jax.eval_shape(lambda v: laplacian.apply(lambda z: jax.lax.complex(0.0 * z, z), v), u.astype(dtype))
    assert rotated.dtype == jnp.complex64


def test_cost_is_that_of_a_fast_transform(boundary):
    """No n × n matrix: the compiled program is far below n² operations and n² bytes."""
    laplacian = Laplacian(Grid(4096, boundary=boundary))
    compiled = jax.jit(lambda u: laplacian.apply(jnp.exp, u)).lower(jnp.ones((4096, 1))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096**2


def test_one_token_cannot_diffuse():
    for boundary in BOUNDARIES:
        with pytest.raises(ValueError, match="diffusion needs at least 2 tokens"):
            Laplacian(Grid(1, boundary=boundary))
        with pytest.raises(ValueError, match="diffusion needs at least 2 tokens"):
            divergence(Grid(1, boundary=boundary), jnp.ones(1), jnp.ones((1, 2)))


def test_fields_of_another_size():
    laplacian = Laplacian(Grid(4))
    for call in (laplacian, laplacian.transform, lambda u: laplacian.apply(jnp.exp, u)):
        with pytest.raises(ValueError, match=r"u has shape \(5, 2\), but the grid has n=4 tokens"):
            call(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="coefficients has shape"):
        laplacian.inverse(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"f returned shape \(\) for the 4 eigenvalues"):
        laplacian.apply(jnp.sum, jnp.ones((4, 2)))
