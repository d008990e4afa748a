"""A step of training against the same step by hand; norms; what is donated; two kinds of models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pdejax as pj
from pdejax.data import Batch
from pdejax.training import Classification, make_optimizer, make_step, merge_model, split_model, start_training
from pdejax.training._step import AbstractTask, count_parameters, gradient_norms, make_evaluate

SIZES = {"vocab": 7, "dim": 8, "heads": 2, "layers": 3, "ffn": 16, "head": "classification", "classes": 4}


def transformer():
    return pj.Transformer(pj.Architecture(**SIZES), rngs=nnx.Rngs(0))


def simulator():
    return pj.Simulator(pj.SimulatorConfig(pj.Architecture(**SIZES)), key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    tokens = random.integers(1, 7, (6, 5)).astype(np.int32)
    return Batch(tokens, np.arange(5) < random.integers(2, 6, (6, 1)), random.integers(0, 4, 6).astype(np.int32))


class Drawing(AbstractTask):
    """Records a number drawn from the key it is given."""

    def loss(self, model, batch, key):
        drawn = jax.random.uniform(key)
        return jnp.sum(model.w**2) * drawn, {"drawn": drawn}

    def weight(self, batch):
        return jnp.asarray(1.0)


class Weights(eqx.Module):
    w: jax.Array


def test_every_step_and_every_held_out_batch_draws_anew(batch):
    """From the state's key and the step's number, or the batch's: nothing is drawn twice, and the key itself stays."""
    key, optimizer = jax.random.key(5), make_optimizer("sgd", learning_rate=0.1)
    params, static = split_model(Weights(jnp.ones(2)))
    state, step, found = start_training(params, optimizer, key), make_step(Drawing(), optimizer, static), []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append(float(metrics["drawn"]))
    expected = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(3)]
    assert found == expected and len(set(found)) == 3
    assert jnp.all(jax.random.key_data(state.key) == jax.random.key_data(key))
    held_out = make_evaluate(Drawing(), static)(state, [batch] * 3)["drawn"]
    assert held_out == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("build", [transformer, simulator])
def test_a_step_by_hand(build, batch):
    """θ − η ∇L, with ∇L from finite differences in one direction and from `jax.grad` in all."""
    params, static = split_model(build())
    task, rate = Classification(), 0.1

    def loss(params):
        return task.loss(merge_model(params, static), batch, jax.random.key(0))[0]

    step = make_step(task, make_optimizer("sgd", learning_rate=rate), static)
    state, metrics = step(start_training(params, make_optimizer("sgd", learning_rate=rate), jax.random.key(0)), batch)
    gradients = jax.grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
    for found, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics["loss"], loss(params), rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)
    double = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    size = float(optax.tree.norm(gradients))
    direction = jax.tree.map(lambda g: g.astype(jnp.float64) / size, gradients)

    def along(e):
        return float(loss(jax.tree.map(lambda p, v: (p + e * v).astype(jnp.float32), double, direction)))

    assert (along(5e-3) - along(-5e-3)) / 1e-2 == pytest.approx(float(metrics["gradient_norm"]), rel=1e-2)


@pytest.mark.parametrize("build", [transformer, simulator])
def test_layer_norms_by_a_loop(build, batch):
    params, static = split_model(build())

    @jax.jit
    def measured(params):
        gradients = jax.grad(lambda p: Classification().loss(merge_model(p, static), batch, jax.random.key(0))[0])(
            params
        )
        return gradients, gradient_norms(gradients)

    gradients, found = measured(params)
    leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    inside = {k: x for k, x in leaves.items() if x.ndim and ("layers" in k or "stacked" in k)}
    assert len(inside) >= 8
    for layer in range(3):
        expected = np.sqrt(sum(np.sum(x[layer] ** 2) for x in inside.values()))
        np.testing.assert_allclose(found["layer_gradient_norms"][layer], expected, rtol=1e-5)
    outside = sum(np.sum(x**2) for k, x in leaves.items() if k not in inside)
    total = outside + np.sum(np.asarray(found["layer_gradient_norms"]) ** 2)
    np.testing.assert_allclose(found["gradient_norm"], np.sqrt(total), rtol=1e-5)
    assert outside > 0


def test_models_without_layers_have_no_layer_norms():
    assert set(gradient_norms({"w": jnp.ones(3)})) == {"gradient_norm"}


def test_memory_of_the_old_state_is_reused(batch):
    params, static = split_model(transformer())
    optimizer = make_optimizer(learning_rate=1e-3)
    old = start_training(params, optimizer, jax.random.key(0))
    make_step(Classification(), optimizer, static)(old, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("build", [transformer, simulator])
def test_models_come_back_whole(build, batch):
    model = build()
    params, static = split_model(model)
    again = merge_model(params, static)
    x, m = batch.inputs[0], batch.mask[0]
    np.testing.assert_array_equal(again(x, m), model(x, m))
    doubled = merge_model(jax.tree.map(lambda p: 2 * p, params), static)
    assert not np.array_equal(doubled(x, m), model(x, m))
    np.testing.assert_array_equal(merge_model(params, static)(x, m), model(x, m))  # the model itself is left as it was


def test_both_models_have_as_many_parameters():
    counts = [count_parameters(split_model(build())[0]) for build in (transformer, simulator)]
    per_layer = 4 * 8 * 8 + 2 * 8 * 16 + 16 + 8 + 4 * 8
    assert counts == [7 * 8 + 3 * per_layer + 2 * 8 + 8 * 4 + 4] * 2


def test_training_learns(batch):
    """Sixty steps on six sequences: all of them are known by heart."""
    params, static = split_model(transformer())
    optimizer = make_optimizer(learning_rate=1e-2)
    step, state = make_step(Classification(), optimizer, static), start_training(params, optimizer, jax.random.key(0))
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 1.0 and losses[-1] < 0.1 and float(metrics["accuracy"]) == 1.0


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="model is a dict"):
        split_model({"w": 1})
