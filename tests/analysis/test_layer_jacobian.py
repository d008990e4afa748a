"""The layer Jacobian against dense matrices, finite differences and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax
from pdejax.analysis.jacobian._krylov import arnoldi, golub_kahan
from pdejax.analysis.jacobian._operator import layer_jacobian, marchenko_pastur_cdf
from pdejax.analysis.jacobian._systems import shuffle_weights

KEY = jax.random.key(3)
CONFIG = pdejax.Architecture(
    vocab=11, dim=4, heads=2, layers=3, ffn=6, norm="post", dtype="float64", param_dtype="float64"
)


@pytest.fixture(scope="module")
def equation():
    grid = pdejax.Grid(6, "neumann", 6.0)
    made = pdejax.MasterEquation(
        pdejax.Attention(4, 2, key=jax.random.key(0)),
        pdejax.FeedForward(4, 8, key=jax.random.key(1)),
        pdejax.Diffusion(grid, 0.3),
    )
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, made)


@pytest.fixture(scope="module")
def field():
    return jax.random.normal(jax.random.key(2), (6, 4))


def euler(equation, h, t=0.0):
    """One step of forward Euler at depth t."""
    return pdejax.Discretization(equation, "euler", t0=t, t1=t + h, steps=1)


def singular(matrix):
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)


def test_equation_against_finite_differences_and_dense_svd(equation, field):
    mask = jnp.arange(6) < 5
    jacobian = layer_jacobian(euler(equation, 0.2, 0.1), field.at[5].set(jnp.nan), step=0, mask=mask)
    matrix = np.asarray(jacobian.matrix())
    real = np.repeat(np.asarray(mask), 4)
    assert np.all(matrix[~real] == 0) and np.all(matrix[:, ~real] == 0)
    padded = np.where(np.asarray(mask)[:, None], field, 0)
    args = pdejax.FieldArgs(mask)
    evaluate = jax.jit(lambda u: u + 0.2 * equation(0.1, u, args))
    for column in (0, 7, 18):
        change = np.zeros(24)
        change[column] = 1e-5
        change = change.reshape(6, 4)
        difference = np.asarray(evaluate(padded + change) - evaluate(padded - change)).ravel() / 2e-5
        np.testing.assert_allclose(matrix[real, column], difference[real], atol=1e-9)
    v = jax.random.normal(jax.random.key(4), (6, 4))
    np.testing.assert_allclose(np.ravel(jacobian.matvec(v)), matrix @ np.ravel(v), atol=1e-13)
    np.testing.assert_allclose(np.ravel(jacobian.rmatvec(v)), matrix.T @ np.ravel(v), atol=1e-13)

    found = jacobian.singular_values(key=KEY)
    exact = singular(matrix[real][:, real])
    assert found.values.shape == (20,)  # no more than the real entries
    np.testing.assert_allclose(found.values, exact, atol=1e-12)
    assert np.all(np.asarray(found.converged))
    np.testing.assert_allclose(jnp.linalg.norm(jacobian.matvec(found.right[0])), exact[0], rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(jacobian.matvec(found.right[1])), exact[-1], rtol=1e-10)
    assert np.all(np.asarray(found.right)[:, 5] == 0)
    assert abs(found.frobenius - np.linalg.norm(matrix)) < 5 * found.frobenius_error
    np.testing.assert_allclose(found.edge, 2 * found.frobenius / np.sqrt(20))
    np.testing.assert_allclose(jnp.sum(found.weights), 1)

    eigen = jacobian.eigenvalues(key=KEY)
    exact = np.linalg.eigvals(matrix[real][:, real])
    for value in exact:  # as sets
        assert np.min(np.abs(np.asarray(eigen.values) - value)) < 1e-11
    np.testing.assert_allclose(eigen.radius, np.abs(exact).max(), rtol=1e-12)


def test_few_iterations_bound_from_inside_and_say_so(equation, field):
    jacobian = layer_jacobian(euler(equation, 0.2), field, step=0)
    exact = singular(jacobian.matrix())
    found = jacobian.singular_values(key=KEY, iterations=4)
    assert exact[-1] <= found.smallest and found.largest <= exact[0]
    assert not bool(found.converged[1])
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.min(np.abs(exact - float(value))) <= float(residual) + 1e-12


def test_linear_field_in_closed_form():
    matrix = 0.5 * jax.random.normal(jax.random.key(8), (4, 4))
    u = jnp.zeros((5, 4))
    jacobian = layer_jacobian(lambda u: u + 0.3 * u @ matrix, u)
    exact = singular(np.eye(4) + 0.3 * np.asarray(matrix))
    found = jacobian.singular_values(key=KEY)
    # Each of four values five times: the iteration has to restart within repeated ones.
    np.testing.assert_allclose(found.values, np.repeat(exact, 5), atol=1e-12)
    assert np.all(np.asarray(found.converged))
    identity = layer_jacobian(jax.tree_util.Partial(jnp.multiply, jnp.asarray(2.0)), u)
    np.testing.assert_allclose(identity.singular_values(key=KEY, iterations=7).values, 2, rtol=1e-13)
    np.testing.assert_allclose(identity.eigenvalues(key=KEY, iterations=7).values, 2, rtol=1e-13)
    constant = layer_jacobian(jax.tree_util.Partial(jnp.multiply, jnp.asarray(0.0)), u).singular_values(
        key=KEY, iterations=7
    )
    assert float(constant.largest) == 0 and float(constant.frobenius) == 0 and np.all(np.isfinite(constant.residuals))


def test_a_gaussian_matrix_has_the_edge_of_its_null():
    matrix = np.random.default_rng(9).standard_normal((300, 300))
    jacobian = layer_jacobian(lambda u: matrix @ u, jnp.zeros(300))
    found = jacobian.singular_values(key=KEY, iterations=60, probes=16)
    np.testing.assert_allclose(found.largest, singular(matrix)[0], rtol=1e-3)
    np.testing.assert_allclose(found.largest, found.edge, rtol=0.05)
    # The Ritz values and weights follow the quarter circle.
    order = np.argsort(np.asarray(found.values))
    share = np.cumsum(np.asarray(found.weights)[order])
    law = np.asarray(marchenko_pastur_cdf(np.asarray(found.values)[order], found.edge))
    assert np.max(np.abs(share - law)) < 0.15
    np.testing.assert_allclose(
        np.mean(singular(matrix) < 0.5 * 2 * 300**0.5), marchenko_pastur_cdf(0.5, 1.0), atol=0.02
    )


def test_transformer_layers_against_dense_reverse_mode():
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    tokens, mask = jnp.arange(6), jnp.arange(6) < 4
    states = model.hidden_states(tokens, mask)

    def spectra(layer, u):
        return layer_jacobian(model, u, layer=layer, mask=mask).singular_values(key=KEY)

    found = eqx.filter_vmap(spectra)(jnp.arange(3), states[:-1])
    # The map is the model's own layer, and its matrix what plain reverse mode gives.
    one = layer_jacobian(model, states[1], layer=1, mask=mask)
    value, dense = jax.jit(lambda u: (one.apply(u), jax.jacrev(lambda w: one.apply(w).ravel())(u)))(states[1])
    np.testing.assert_allclose(value[:4], states[2][:4], rtol=1e-12)
    matrix = np.asarray(dense).reshape(24, 24)[:16, :16]
    np.testing.assert_allclose(found.values[1], singular(matrix), atol=1e-11)
    # Post-LN projects out two directions of every token: as many singular values are 0.
    assert np.sum(np.asarray(found.values[2]) < 1e-3) >= 4


@pytest.mark.slow
def test_solver_steps_and_layers_of_an_equation(field):
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    lifted = pdejax.lift(model)
    one = layer_jacobian(lifted, field, step=1).matrix()
    np.testing.assert_allclose(one, layer_jacobian(model, field, layer=1).matrix(), atol=1e-12)
    # Two steps in a layer: the layer's Jacobian is their product.
    fine = lifted.refine(2)
    first = layer_jacobian(fine, field, step=2)
    second = layer_jacobian(fine, first.apply(field), step=3)
    whole = layer_jacobian(fine, field, layer=1).matrix()
    np.testing.assert_allclose(second.matrix() @ first.matrix(), whole, atol=1e-12)
    config = pdejax.SimulatorConfig.of(
        vocab=11, dim=4, heads=2, layers=2, ffn=6, dtype="float64", param_dtype="float64"
    )
    simulator = pdejax.Simulator(config, key=jax.random.key(0))
    states = simulator.run(field)
    jacobian = layer_jacobian(simulator, states[1], layer=1)
    np.testing.assert_allclose(jacobian.apply(states[1]), states[2], atol=1e-13)


@pytest.mark.slow
def test_float32_at_a_thousand_tokens():
    # 128,000 entries, whose dense Jacobian would take 65 GB.
    equation = pdejax.MasterEquation(
        pdejax.Attention(128, 4, key=jax.random.key(0)), pdejax.FeedForward(128, 256, key=jax.random.key(1))
    )
    u = jax.random.normal(jax.random.key(2), (1000, 128), jnp.float32)
    equation = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, equation)
    jacobian = layer_jacobian(euler(equation, 0.1), u, step=0)
    found = jacobian.singular_values(key=KEY, iterations=8, probes=2)
    reached = jnp.linalg.norm(jacobian.matvec(found.right[0]))
    np.testing.assert_allclose(found.largest, reached, rtol=1e-4)
    assert np.all(np.isfinite(found.values)) and float(found.smallest) < float(found.largest)
    with pytest.raises(ValueError, match="128000 entries"):
        jacobian.matrix()


def test_krylov_bases_stay_orthonormal():
    support = np.arange(40) < 35
    matrix = np.random.default_rng(0).standard_normal((40, 40)) * (10.0 ** -np.linspace(0, 12, 40))[:, None]
    matrix = np.where(support[:, None] & support[None], matrix, 0)

    @jax.jit
    def bases(support):
        both = golub_kahan(lambda v: matrix @ v, lambda v: matrix.T @ v, support, 30, KEY, jnp.float64)
        return both, arnoldi(lambda v: matrix @ v, support, 30, KEY, jnp.float64)

    found, (hessenberg, _, basis) = jax.tree.map(np.asarray, bases(support))
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(30), atol=1e-13)
    np.testing.assert_allclose(found.left @ found.left.T, np.eye(30), atol=1e-13)
    np.testing.assert_allclose(found.left @ matrix @ found.right.T, found.matrix, atol=1e-13)
    assert np.all(np.asarray(found.right)[:, 35:] == 0)
    np.testing.assert_allclose(basis @ basis.T, np.eye(30), atol=1e-13)
    np.testing.assert_allclose(basis @ matrix @ basis.T, hessenberg, atol=1e-13)


def test_more_iterations_than_room_keep_the_extremes():
    # Only a traced mask can lead here: 4 real entries, 9 iterations.
    matrix = np.diag([3.0, 2.0, 1.0, 0.5, 0.0, 0.0])

    @jax.jit
    def basis(support):
        return golub_kahan(lambda v: matrix @ v, lambda v: matrix.T @ v, support, 9, KEY, jnp.float64)

    found = basis(np.arange(6) < 4)
    values = singular(found.matrix)
    np.testing.assert_allclose([values[0], values[-1]], [3, 0.5], rtol=1e-12)


def test_shuffled_equation(equation):
    other = shuffle_weights(equation, key=jax.random.key(0))
    np.testing.assert_array_equal(np.sort(np.ravel(other.interaction.wq)), np.sort(np.ravel(equation.interaction.wq)))
    assert not np.array_equal(other.interaction.wq, equation.interaction.wq)


def test_bad_input(equation, field):
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    d = euler(equation, 0.1)
    jacobian = layer_jacobian(d, field, step=0)
    for error, match, call in (
        (ValueError, "give either step=0", lambda: layer_jacobian(d, field)),
        (ValueError, "give either step=0", lambda: layer_jacobian(d, field, step=0, layer=0)),
        (ValueError, "layer_jacobian: step=1 must", lambda: layer_jacobian(d, field, step=1)),
        (ValueError, "layer_jacobian: the discretization has no layers", lambda: layer_jacobian(d, field, layer=0)),
        (ValueError, "NaN or infinite", lambda: layer_jacobian(d, field * jnp.nan, step=0)),
        (ValueError, "give either step=0", lambda: layer_jacobian(model, field)),
        (ValueError, "layer_jacobian: layer=3 must", lambda: layer_jacobian(model, field, layer=3)),
        (TypeError, "system is a int", lambda: layer_jacobian(3, field)),
        (TypeError, "system is a MasterEquation", lambda: layer_jacobian(equation, field, step=0)),
        (ValueError, "must keep the shape", lambda: layer_jacobian(lambda u: u[0], field)),
        (ValueError, "layer_jacobian: u has shape", lambda: layer_jacobian(d, jnp.zeros((0, 4)), step=0)),
        (ValueError, "iterations=1", lambda: jacobian.singular_values(key=KEY, iterations=1)),
        (ValueError, "tolerance=2", lambda: jacobian.eigenvalues(key=KEY, tolerance=2)),
        (ValueError, "probes=1", lambda: jacobian.singular_values(key=KEY, probes=1)),
    ):
        with pytest.raises(error, match=match):
            call()
