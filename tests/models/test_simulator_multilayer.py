"""v1's coupled system as a trainable model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.models import MultilayerSimulator, MultilayerSimulatorConfig
from pdejax.training import merge_model, split_model

TOKENS = np.array([3, 1, 10, 0, 7])
MASK = np.array([True, True, True, True, False])
SIZES = {"vocab": 11, "dim": 6, "heads": 2, "layers": 3, "ffn": 7, "head": "classification", "classes": 4}
DOUBLE = {"dtype": "float64", "param_dtype": "float64"}


def make(**options) -> MultilayerSimulator:
    return MultilayerSimulator(MultilayerSimulatorConfig.of(**SIZES | DOUBLE | options), key=jax.random.key(0))


def test_euler_is_v1_20():
    """One step of v1 (20) written out in NumPy, layer by layer: diffusion by differences, A, R and both exchanges."""
    model = make(diffusion="scalar", diffusivity=0.2, norm="none", activation="tanh", t1=0.5, steps=1, exchange=0.7)
    w = {name.split("/")[-1]: np.asarray(value) for name, value in model.parameters().items() if "/" in name}
    exchange = {
        name[-1]: np.asarray(value) for name, value in model.parameters().items() if name.startswith("exchange")
    }
    w |= {k: np.asarray(v) for k, v in model.parameters().items()}
    u = np.asarray(model.start(TOKENS))
    expected = u.copy()
    for layer in range(3):
        ul = u[layer]
        padded = np.concatenate([ul[:1], ul, ul[-1:]])  # no flux through the walls
        du = 0.2 * (padded[2:] - 2 * ul + padded[:-2])
        part = {n: w[f"stacked/interaction/{n}"][layer] for n in ("wq", "wk", "wv", "wo")}
        q, k, v = (np.einsum("nd,dhk->nhk", ul, part[n]) for n in ("wq", "wk", "wv"))
        z = np.exp(np.einsum("ihk,jhk->hij", q, k) / np.sqrt(3))
        du = du + np.einsum("hij,jhk,hkd->id", z / z.sum(-1, keepdims=True), v, part["wo"])
        ffn = {n: w[f"stacked/reaction/{n}"][layer] for n in ("w1", "b1", "w2", "b2")}
        du = du + np.tanh(ul @ ffn["w1"] + ffn["b1"]) @ ffn["w2"] + ffn["b2"]
        if layer > 0:
            du = du + u[layer - 1] @ exchange["w"][layer - 1].T + exchange["b"][layer - 1]
        if layer < 2:
            du = du - (ul @ exchange["w"][layer].T + exchange["b"][layer])
        expected[layer] = ul + 0.5 * du
    np.testing.assert_allclose(model.trajectory(TOKENS)[-1], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4, "start": "first", "stabilization": "layernorm", "diffusion": "feature"},
        pytest.param({"norm": "none", "stabilization": "retraction", "steps": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"solver": "lietrotter", "stabilization": "damping", "causal": True, "head": "lm", "classes": None},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full-first", "post", "split-decoder"],
)
def test_it_trains(options):
    """Shapes, one solve for all, gradients everywhere, and the round trip through `split_model` under `jit`."""
    model = make(**options)
    params, static = split_model(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.parameter_count

    def scalar(params):
        logits, states, maps = merge_model(params, static).observe(TOKENS, MASK)
        real = jnp.where(MASK[:, None], logits, 0) if logits.ndim == 2 else logits
        return jnp.sum(jnp.sin(real)), (logits, states, maps)

    (_, (logits, states, maps)), gradient = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    np.testing.assert_allclose(logits, model(TOKENS, MASK), rtol=1e-10)
    np.testing.assert_allclose(states, model.hidden_states(TOKENS, MASK), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(maps, model.attention_maps(TOKENS, MASK), rtol=1e-10)
    assert states.shape == (4, 5, 6) and maps.shape == (3, 2, 5, 5)
    np.testing.assert_allclose(states[0], model.embed(TOKENS))
    np.testing.assert_allclose(model.trajectory(TOKENS, MASK)[-1], states[1:], rtol=1e-10, atol=1e-13)
    assert model.trajectory(TOKENS, MASK).shape == (model.config.steps + 1, 3, 5, 6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path)
    assert eqx.tree_equal(merge_model(params, static), model)


def test_start_first_leaves_the_other_layers_empty():
    model = make(start="first")
    state = model.start(TOKENS)
    np.testing.assert_array_equal(state[0], model.embed(TOKENS))
    assert not np.any(state[1:])


def test_parameters_rebuild_the_model():
    model = make(layers=1)
    assert model.exchange is None
    again = MultilayerSimulator.from_parameters(model.config, model.parameters())
    assert eqx.tree_equal(again, model)
