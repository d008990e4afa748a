"""Lyapunov exponents and finite-time exponents against closed forms and dense twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from flax import nnx

import pdejax
from pdejax.analysis.jacobian._lyapunov import ftle, gaussian_exponents, lyapunov_exponents, lyapunov_of_maps
from pdejax.exact._attention import consensus_exponents, sphere_attention
from pdejax.models._block import attention_mask
from pdejax.solvers import RK4, Retract

KEY = jax.random.key(1)
MATRIX = np.asarray(jax.random.normal(jax.random.key(0), (4, 4)))
CONFIG = pdejax.Architecture(
    vocab=11, dim=4, heads=2, layers=3, ffn=6, norm="post", dtype="float64", param_dtype="float64"
)


def linear(t, u, args):
    return u @ jnp.asarray(MATRIX, u.dtype)


def rk4(field, t1, steps):
    return pdejax.Discretization(field, "rk4", t1=t1, steps=steps)


def sphere(t, u, args):
    return sphere_attention(u, jnp.asarray(1.0))


def test_linear_system_for_finite_depth_and_in_the_limit():
    u0 = jnp.ones((2, 4))
    found = lyapunov_exponents(rk4(linear, 60.0, 1200), u0, k=8, key=KEY, qr_every=4, discard=20.0)
    rates = np.sort(np.linalg.eigvals(MATRIX).real)[::-1]
    # Complex pairs turn: their mean over a finite depth oscillates.
    np.testing.assert_allclose(found.exponents.value, np.repeat(rates, 2), atol=0.01)
    # All exponents together are the growth of volume, at every depth.
    np.testing.assert_allclose(np.sum(found.history, axis=1), 2 * np.trace(MATRIX), rtol=1e-5)
    assert found.history.shape == (200, 8) and found.ts[-1] == 60 and not bool(found.diverged)
    np.testing.assert_allclose(found.history[-1], found.exponents.value)
    assert np.all(np.asarray(found.exponents.low) <= np.asarray(found.exponents.value))


def test_dense_twin_with_padding():
    # The same tangents through the dense matrices of every layer, with NumPy's QR.
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    mask = jnp.arange(5) < 4
    u = model.embed(jnp.arange(5)).at[4].set(jnp.nan)
    found = lyapunov_exponents(model, u, k=3, key=KEY, mask=mask)
    states = np.asarray(model.run(jnp.where(mask[:, None], u, 0), mask))

    step = jax.jit(jax.jacfwd(lambda u, layer: _layer(model, u, layer, mask).ravel()))
    q = np.where(np.asarray(mask)[:, None], jax.random.normal(KEY, (3, 5, 4)), 0).reshape(3, 20)
    q, logs = np.linalg.qr(q.T)[0], []
    real = np.repeat(np.asarray(mask), 4)
    for layer in range(3):
        q, r = np.linalg.qr(np.where(real[:, None], np.asarray(step(states[layer], layer)).reshape(20, 20) @ q, 0))
        logs.append(np.log(np.abs(np.diag(r))))
    np.testing.assert_allclose(found.exponents.value, np.sort(np.mean(logs, axis=0))[::-1], rtol=1e-9)
    np.testing.assert_array_equal(found.ts, [1, 2, 3])


def _layer(model, u, layer, mask):
    """The Transformer's own Flax block, whatever the field it is lifted to."""
    graph, weights = nnx.split(model.layers)
    block = nnx.merge(graph, jax.tree.map(lambda x: x[layer], weights))
    return block(u, attention_mask(mask, u.shape[0], model.architecture.causal), False)[0]


def test_consensus_spectrum():
    # THEORY 5.7: the common direction turns freely, differences die like e^{-t}.
    x0 = jnp.tile(jnp.eye(3)[:1], (4, 1))
    solver = Retract(RK4(), pdejax.SphereProjection())
    d = pdejax.Discretization(sphere, solver, t1=24.0, steps=240)
    found = lyapunov_exponents(d, x0, k=8, key=KEY, discard=12.0)
    np.testing.assert_allclose(found.exponents.value, consensus_exponents(4, 3), atol=2e-6)


def test_products_of_matrices():
    rng = np.random.default_rng(3)
    stochastic = scipy.special.softmax(rng.standard_normal((400, 6, 6)), axis=-1)
    found = lyapunov_of_maps(jnp.asarray(stochastic), k=2, key=KEY, discard=50)
    np.testing.assert_allclose(found.exponents.value[0], 0, atol=1e-12)
    assert found.exponents.high[1] < -1
    # Gaussian matrices are their own null.
    gaussian = jnp.asarray(rng.standard_normal((2000, 4, 4)))
    found = lyapunov_of_maps(gaussian, k=4, key=KEY)
    np.testing.assert_allclose(found.exponents.value, found.exponents.nulls["gaussian"], atol=0.06)
    np.testing.assert_allclose(found.exponents.value, gaussian_exponents(4, 4), atol=0.07)
    np.testing.assert_allclose(gaussian_exponents(6, 2, 3.0), gaussian_exponents(6, 2) + np.log(3))
    # The sum is log|det|, whatever the tangents.
    dets = np.mean(np.linalg.slogdet(np.asarray(gaussian))[1])
    np.testing.assert_allclose(np.sum(found.exponents.value), dets, rtol=1e-10)


@pytest.mark.parametrize(("level", "student"), [(0.95, 2.2621571628540993), (0.8, 1.3830287383964925)])
def test_the_interval_is_students_over_ten_parts(level, student):
    """A product of numbers has the exponent mean log|a|, and the interval t₉ s/√10 of its means over ten parts, s with nine
    degrees of freedom: with ten it would be 5 % too narrow."""
    logs = np.random.default_rng(0).standard_normal(43)
    found = lyapunov_of_maps(np.exp(logs)[:, None, None], k=1, key=KEY, level=level)
    parts = [sum(logs[4 * i : 4 * i + 4]) / 4 for i in range(10)]  # three are left over
    centre = sum(parts) / 10
    half = student * (sum((p - centre) ** 2 for p in parts) / 9 / 10) ** 0.5
    value = sum(logs) / 43
    np.testing.assert_allclose(found.exponents.value, [value], rtol=1e-12)
    np.testing.assert_allclose(
        [found.exponents.low, found.exponents.high], [[value - half], [value + half]], rtol=1e-10
    )


def test_a_step_function_and_a_projection():
    diagonal = jnp.asarray([2.0, 0.5, 0.0])
    found = lyapunov_of_maps(lambda i, u: diagonal * u, jnp.ones(3), k=3, steps=40, key=KEY, discard=20)
    np.testing.assert_allclose(found.exponents.value[:2], [np.log(2), -np.log(2)], rtol=1e-5)
    assert found.exponents.value[2] < -30  # -inf, to rounding


def test_blow_up_is_said():
    found = lyapunov_exponents(rk4(lambda t, u, args: u**2, 2.0, 60), jnp.full((1, 1), 5.0), k=1, key=KEY)
    assert bool(found.diverged) and np.all(np.isnan(found.exponents.value))


def test_null_runs_beside():
    euler = pdejax.Discretization(linear, "euler", t1=2.0, steps=8)
    nothing = euler.replace(field=lambda t, u, args: 0.0 * u)
    found = lyapunov_exponents(euler, jnp.ones((2, 4)), k=2, key=KEY, null=nothing)
    np.testing.assert_allclose(found.exponents.nulls["null"], 0, atol=1e-12)
    assert "exponents" in repr(found) and np.all(found.exponents > found.exponents.nulls["null"])


@pytest.mark.slow
def test_lorenz():
    def lorenz(t, u, args):
        x, y, z = u
        return jnp.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])

    found = lyapunov_exponents(rk4(lorenz, 320.0, 32000), jnp.ones(3), k=3, discard=20.0, key=KEY)
    np.testing.assert_allclose(found.exponents.value, [0.906, 0.0, -14.572], atol=0.03)
    # Volume shrinks at the divergence, but for the O(h^4) of RK4: 1.0e-4 at h = 0.01, a sixteenth of it at half the step.
    np.testing.assert_allclose(np.sum(found.exponents.value), -(10 + 1 + 8 / 3), atol=2e-4)
    assert found.exponents.low[0] < 0.906 < found.exponents.high[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["lietrotter", "rkc2", "etdrk2", "tsit5"])
def test_solvers_by_name_against_dense(solver):
    # The product of all steps is the solve that `simulate` differentiates.
    equation = pdejax.MasterEquation(
        pdejax.Attention(2, 1, key=jax.random.key(0)), diffusion=pdejax.Diffusion(pdejax.Grid(3, "neumann", 3.0), 0.3)
    )
    u0 = jax.random.normal(jax.random.key(4), (3, 2))
    d = pdejax.Discretization(equation, solver, t1=1.0, steps=3)
    found = lyapunov_exponents(d, u0, k=6, key=KEY)
    matrix = jax.jacfwd(lambda u: pdejax.simulate(d, u, save="end").us[-1])(u0)
    exact = np.linalg.slogdet(np.asarray(matrix).reshape(6, 6))[1]
    np.testing.assert_allclose(np.sum(found.exponents.value), exact, rtol=1e-8)


def test_finite_time_exponents_of_tokens():
    u0 = jax.random.normal(jax.random.key(2), (3, 4))
    found = ftle(rk4(linear, 2.0, 100), u0, key=KEY)
    exact = np.log(np.linalg.svd(scipy.linalg.expm(2 * MATRIX), compute_uv=False)[0]) / 2
    np.testing.assert_allclose(found.exponents, exact, rtol=1e-6)
    assert np.all(np.asarray(found.converged)) and found.depth == 2


@pytest.mark.parametrize("response", ["all", pytest.param("own", marks=pytest.mark.slow)])
def test_finite_time_exponents_against_dense(response):
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    mask = jnp.arange(5) < 4
    u = model.embed(jnp.arange(5))
    found = ftle(model, u.at[4].set(jnp.nan), key=KEY, mask=mask, response=response, batch_size=2)
    dense = jax.jit(lambda u, m: jax.jacrev(lambda w: model.run(w, m)[-1])(u))(jnp.where(mask[:, None], u, 0), mask)
    dense = np.asarray(dense)[:4]
    for i in range(4):
        block = dense[:, :, i].reshape(16, 4) if response == "all" else dense[i, :, i]
        np.testing.assert_allclose(found.exponents[i], np.log(np.linalg.svd(block, compute_uv=False)[0]) / 3, rtol=1e-8)
        reached = np.linalg.norm(block @ np.asarray(found.directions[i]))
        np.testing.assert_allclose(np.log(reached) / 3, found.exponents[i], rtol=1e-6, atol=1e-9)
    assert np.isnan(found.exponents[4]) and bool(found.converged[4]) and np.all(found.directions[4] == 0)


def test_bad_input():
    u = jnp.ones((2, 4))
    model = pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))
    d = rk4(linear, 1.0, 4)
    adaptive = d.replace(rtol=1e-3, atol=1e-3, solver="tsit5")
    for error, match, call in (
        (ValueError, "lyapunov_exponents: k=9 must", lambda: lyapunov_exponents(d, u, k=9)),
        (ValueError, "1 … 4", lambda: lyapunov_exponents(d, u, k=5, mask=jnp.asarray([True, False]))),
        (ValueError, "lyapunov_exponents: qr_every=3", lambda: lyapunov_exponents(d, u, k=1, qr_every=3)),
        (ValueError, "lyapunov_exponents: discard=2", lambda: lyapunov_exponents(d, u, k=1, discard=2.0)),
        (ValueError, "lyapunov_exponents: level=1", lambda: lyapunov_exponents(d, u, k=1, level=1)),
        (ValueError, "lyapunov_exponents: steps are adaptive", lambda: lyapunov_exponents(adaptive, u, k=1)),
        (TypeError, "lyapunov_exponents: the system is a function", lambda: lyapunov_exponents(linear, u, k=1)),
        (ValueError, "lyapunov_exponents: .*shape", lambda: lyapunov_exponents(model, u[0], k=1)),
        (ValueError, "lyapunov_exponents: .*NaN or infinite", lambda: lyapunov_exponents(d, u * jnp.nan, k=1)),
        (ValueError, "same shape", lambda: lyapunov_exponents(rk4(lambda t, u, a: u[0], 1.0, 4), u, k=1)),
        (TypeError, "system is a int", lambda: lyapunov_exponents(3, u, k=1)),
        (ValueError, "lyapunov_of_maps: maps has shape", lambda: lyapunov_of_maps(u, k=1)),
        (ValueError, "lyapunov_of_maps: maps has 18 NaN", lambda: lyapunov_of_maps(jnp.full((2, 3, 3), jnp.nan), k=1)),
        (ValueError, "needs u0", lambda: lyapunov_of_maps(lambda i, u: u, k=1)),
        (ValueError, "lyapunov_of_maps: k=7", lambda: lyapunov_of_maps(jnp.ones((2, 3, 3)), k=7)),
        (ValueError, "gaussian_exponents: k=7", lambda: gaussian_exponents(6, 7)),
        (ValueError, "ftle: response='x'", lambda: ftle(d, u, response="x")),
        (ValueError, "ftle: u0 has shape", lambda: ftle(d, u[0])),
        (ValueError, "ftle: iterations=0", lambda: ftle(d, u, iterations=0)),
    ):
        with pytest.raises(error, match=match):
            call()
