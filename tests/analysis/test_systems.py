"""One conversion serves every analysis of derivatives: layer functions of one's own as a network, beside plain JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis.jacobian import (
    ftle,
    gradient_flow,
    layer_jacobian,
    lyapunov_exponents,
    perturbation_sensitivity,
    shuffle_weights,
)
from pdejax.analysis.numerics import convergence
from pdejax.analysis.stability import predict_dt_max, spectral_bounds

N, D, LAYERS = 3, 4, 3


class Block(eqx.Module):
    """u + tanh(u W) / 2, a layer of one's own."""

    w: jax.Array

    def __call__(self, u):
        return u + jnp.tanh(u @ self.w) / 2


BLOCKS = [Block(jax.random.normal(jax.random.key(i), (D, D))) for i in range(LAYERS)]
TABLE = jax.random.normal(jax.random.key(8), (7, D))
READ = jax.random.normal(jax.random.key(9), (D, 2))


def embed(tokens):
    return TABLE[tokens]


def head(u, mask):
    return jnp.mean(u, axis=0) @ READ


@pytest.fixture(scope="module")
def net():
    return pj.network(BLOCKS, embed=embed, head=head)


@pytest.fixture(scope="module")
def u0():
    return embed(jnp.arange(N))


def plain(blocks, u):
    for block in blocks:
        u = block(u)
    return u


def dense(function, u):
    """The Jacobian by plain JAX, (n·d, n·d)."""
    return np.asarray(jax.jit(jax.jacfwd(function))(u)).reshape(u.size, u.size)


def test_gradients_of_a_network_are_those_of_its_functions(net):
    tokens, labels = jnp.asarray([[0, 1, 2], [3, 4, 5]]), jnp.asarray([0, 1])
    found = gradient_flow(net, tokens, labels, resamples=20)

    def loss(blocks, u, label):
        return -jax.nn.log_softmax(head(plain(blocks, u), None))[label]

    differentiated = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (by_blocks, by_state) = differentiated(BLOCKS, embed(tokens[1]), labels[1])
    np.testing.assert_allclose(found.loss[1], value, rtol=1e-10)
    np.testing.assert_allclose(found.states[1, 0], np.linalg.norm(by_state), rtol=1e-10)
    np.testing.assert_allclose(found.parameters[1], [np.linalg.norm(block.w) for block in by_blocks], rtol=1e-10)
    assert "labels" in found.median.nulls


def test_derivatives_of_a_network_are_those_of_its_functions(net, u0):
    whole = dense(lambda u: plain(BLOCKS, u), u0)
    found = lyapunov_exponents(net, u0, k=N * D)
    np.testing.assert_allclose(np.sum(found.exponents.value) * LAYERS, np.linalg.slogdet(whole)[1], rtol=1e-10)
    block = whole.reshape(N, D, N, D)[0, :, 0]
    np.testing.assert_allclose(
        ftle(net, u0).exponents[0] * LAYERS, np.log(np.linalg.svd(block, compute_uv=False)[0]), rtol=1e-8
    )
    np.testing.assert_allclose(layer_jacobian(net, u0, layer=1).matrix(), dense(BLOCKS[1], u0), atol=1e-12)
    # Half the step: two steps a layer, as many states.
    fine = net.replace(discretization=net.discretization.refine(2))
    assert layer_jacobian(fine, u0, layer=1).function.maps.inner == 2
    assert not np.array_equal(shuffle_weights(net, key=jax.random.key(0)).hidden_states(jnp.arange(N)), u0)


def test_a_network_is_perturbed_and_its_step_limited(net, u0):
    tokens, labels = jnp.asarray([[0, 1, 2], [3, 4, 5]]), jnp.asarray([0, 1])
    found = perturbation_sensitivity(net, tokens, labels, draws=2, resamples=20)
    assert found.loss_ratio is not None and np.all(np.isfinite(found.singular.state_slope))
    slopes = np.linalg.eigvals(dense(lambda u: BLOCKS[2](u) - u, u0))
    bounds = spectral_bounds(net, u0, t=2.5)["field"]
    np.testing.assert_allclose(bounds.rightmost.real, np.max(np.real(slopes)), atol=1e-10)
    assert predict_dt_max(net, u0, t=2.5).dt_max == predict_dt_max(net.discretization, u0, "euler", t=2.5).dt_max > 0


@pytest.mark.slow
def test_orders_of_a_network_of_ones_own(net, u0):
    found = convergence(net, u0, steps=(6, 12, 24, 48), solvers=("heun",))
    assert found.schemes[0].order == pytest.approx(2, abs=0.1) and found.t1 == LAYERS


def test_a_transformer_and_its_network_have_one_answer():
    config = pj.Architecture(vocab=7, dim=D, heads=2, layers=2, ffn=6, dtype="float64", param_dtype="float64")
    model = pj.Transformer(config, rngs=nnx.Rngs(0))
    net = pj.as_network(model)
    u = model.embed(jnp.arange(N))
    ours, theirs = (lyapunov_exponents(system, u, k=2).exponents for system in (net, model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_what_is_no_system_is_refused_by_name(u0):
    for call, name in (
        (lambda: lyapunov_exponents(BLOCKS[0], u0, k=1), "lyapunov_exponents"),
        (lambda: ftle(3, u0), "ftle"),
        (lambda: convergence(pj.MasterEquation(pj.LinearDamping(1.0)), u0), "convergence"),
        (lambda: gradient_flow("model", u0), "gradient_flow"),
        (lambda: perturbation_sensitivity(None, u0), "perturbation_sensitivity"),
    ):
        with pytest.raises(TypeError, match=f"{name}: .*Discretization"):
            call()
