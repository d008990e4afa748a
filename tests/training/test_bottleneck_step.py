"""A bottleneck step: what it computes, on a linear-Gaussian model with closed forms, and what it refuses."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdejax.analysis.information.trained import CLUB, BarberAgakov, InfoNCE, PaperEstimate
from pdejax.data._dataset import Batch
from pdejax.models import Architecture, Transformer
from pdejax.training._bottleneck import (
    EstimatorState,
    InputProjection,
    bottleneck_flow,
    make_bottleneck_step,
    mean_hidden_states,
    start_estimator,
)
from pdejax.training._step import TrainState, merge_model, split_model

NOISE = 0.5


class _Linear(eqx.Module):
    """T = the mean over tokens of u W: with independent tokens X = Σ/√n ~ N(0, 1), a Gaussian channel."""

    w: jax.Array

    def hidden_states(self, tokens, mask):
        del mask
        return jnp.stack([tokens, tokens @ self.w])

    def __call__(self, tokens, mask):
        return self.hidden_states(tokens, mask)[-1].mean(axis=0)


class _Squares(eqx.Module):
    """A task without labels: L = |mean logits − 1|²/2."""

    weight: float = 1.0

    def loss(self, model, batch, key):
        del key
        out = jax.vmap(model)(batch.inputs, batch.mask)
        loss = self.weight * 0.5 * jnp.mean(jnp.sum((out - 1) ** 2, axis=-1))
        return loss, {"accuracy": jnp.mean((out > 0).astype(out.dtype))}


def batch(seed=0, b=64, n=4, dtype=np.float64):
    values = np.random.default_rng(seed).standard_normal((b, n, 2)).astype(dtype) * 2.0
    return Batch(jnp.asarray(values), jnp.ones((b, n), bool), jnp.zeros(b, jnp.int32))


def start(model, flow, estimator, estimator_optimizer):
    params, static = split_model(model)
    params = jax.tree.map(jnp.copy, params)
    extra = start_estimator(estimator, estimator_optimizer)
    return TrainState(jnp.zeros((), jnp.int32), params, flow.init(params), jax.random.key(1), extra), static


def linear(scale=1.0):
    return _Linear(scale * jnp.asarray([[1.0, 0.2], [-0.3, 0.8]]))


@pytest.mark.parametrize("kind", [{"vocab": 5}, {"features": 3}])
def test_a_projection_keeps_the_size_of_what_it_projects(kind):
    """x of independent entries of variance 1 has variance 1, however long the sequence: over 64 numbers and 200 sequences."""
    projection, rng = InputProjection(64, length=40, key=jax.random.key(0), **kind), np.random.default_rng(0)
    inputs = rng.integers(0, 5, (200, 40)) if "vocab" in kind else rng.standard_normal((200, 40, 3))
    x = eqx.filter_jit(projection)(Batch(jnp.asarray(inputs), jnp.ones((200, 40), bool), jnp.zeros(200, jnp.int32)))
    assert x.shape == (200, 64) and np.mean(np.asarray(x) ** 2) == pytest.approx(1, abs=0.25)


def test_states_are_means_over_real_tokens():
    """State 0 is the input: tokens 0 and 2 of the first sequence are real, one of the second, none of the third."""
    values = jnp.arange(18.0).reshape(3, 3, 2)
    mask = jnp.asarray([[True, False, True], [False, True, False], [False] * 3])
    found = mean_hidden_states(linear(), Batch(values, mask, jnp.zeros(3, jnp.int32)))
    means = np.asarray([[2.0, 3.0], [8.0, 9.0], [0.0, 0.0]])
    np.testing.assert_allclose(found, np.stack([means, means @ np.asarray(linear().w)], axis=1), rtol=1e-12)


@eqx.filter_jit
def parts_of_a_step(model, task, data, estimator):
    """Of the first step: the estimator after two updates, its estimate and the loss, and the gradients of both by W."""
    params, static = split_model(model)
    _, noise_key, _, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 4)
    xi = jax.random.normal(noise_key, (64, 2))
    x = data.inputs.mean(axis=1)

    def t_of(params):
        return mean_hidden_states(merge_model(params, static), data)[:, -1] + NOISE * xi

    for _ in range(2):
        gradient = eqx.filter_grad(lambda e: e.fit_loss(x, t_of(params)))(estimator)
        estimator = eqx.apply_updates(
            estimator, jax.tree.map(lambda g: -0.05 * g, eqx.filter(gradient, eqx.is_inexact_array))
        )
    value, compression = jax.value_and_grad(lambda p: estimator.estimate(x, t_of(p)).value)(params)
    loss, slope = jax.value_and_grad(lambda p: task.loss(merge_model(p, static), data, None)[0])(params)
    return estimator, value, loss, slope.w, compression.w


@pytest.mark.parametrize("signs", ["v1 (14)", "v1 (3)", "algorithm 1"])
def test_a_step_equals_its_parts(signs):
    """The same update put together from jax.grad, the estimator's own step and the printed equation."""
    model, task, data = linear(), _Squares(), batch()
    estimator, own = CLUB(2, 2, 8, key=jax.random.key(3), floor=NOISE), optax.sgd(0.05)
    flow = bottleneck_flow(0.3, weight_decay=0.2, beta=0.4, signs=signs, dt=0.1)
    state, static = start(model, flow, estimator, own)
    step = make_bottleneck_step(
        task, flow, static, estimator, noise=NOISE, estimator_optimizer=own, estimator_updates=2
    )
    after, metrics = step(state, data)
    estimator, value, loss, *slopes = parts_of_a_step(model, task, data, estimator)
    w, s, c = map(np.asarray, (model.w, *slopes))
    rate = {
        "v1 (14)": -0.3 * s - 0.2 * w - 0.4 * c,
        "v1 (3)": -0.3 * s + 0.2 * w - 0.4 * c,
        "algorithm 1": -0.3 * (s + 0.2 * w - 0.4 * c),
    }[signs]
    np.testing.assert_allclose(after.params.w, w + 0.1 * rate, rtol=1e-10)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-12)
    assert float(metrics["information"]) == pytest.approx(float(value), rel=1e-10)
    assert float(metrics["gradient_norm"]) == pytest.approx(np.linalg.norm(s), rel=1e-10)
    assert float(metrics["information_gradient_norm"]) == pytest.approx(np.linalg.norm(c), rel=1e-10)
    assert float(metrics["parameter_norm"]) == pytest.approx(np.linalg.norm(after.params.w), rel=1e-12)
    assert metrics["information_saturated"] == 0 and math.isinf(metrics["information_limit"])
    assert int(after.step) == 1 and isinstance(after.extra, EstimatorState)
    np.testing.assert_allclose(after.extra.params.q.mean.w, estimator.q.mean.w, rtol=1e-10)
    assert 0 <= float(metrics["accuracy"]) <= 1


def exact_information(w):
    """x = the mean of 4 tokens of variance 4 is N(0, I₂), and T = xW + σξ."""
    return 0.5 * np.linalg.slogdet(np.eye(2) + np.asarray(w).T @ np.asarray(w) / NOISE**2)[1]


@pytest.mark.slow
@pytest.mark.parametrize("make", [CLUB, PaperEstimate, BarberAgakov, InfoNCE])
def test_training_shows_what_the_signs_do(make):
    """Without a loss: both ‖θ‖ and the exact I fall under (14), ‖θ‖ grows under (3), I grows under line 33 (claim C9)."""
    ends = {}
    initial = linear(0.7)
    for signs in ("v1 (14)", "v1 (3)", "algorithm 1"):
        estimator = make(2, 2, 16, key=jax.random.key(5))
        beta, decay = (0.02, 0.4) if signs == "v1 (3)" else (0.4, 0.1)
        flow = bottleneck_flow(1.0, weight_decay=decay, beta=beta, signs=signs, dt=0.05)
        own = optax.adam(5e-3)
        state, static = start(initial, flow, estimator, own)
        step = make_bottleneck_step(
            _Squares(0.0), flow, static, estimator, noise=NOISE, estimator_optimizer=own, estimator_updates=4
        )
        for n in range(60):
            state, metrics = step(state, batch(n, 128))
        assert all(bool(jnp.isfinite(m)) or name == "information_limit" for name, m in metrics.items())
        ends[signs] = float(jnp.linalg.norm(state.params.w)), exact_information(state.params.w)
    size, information = float(jnp.linalg.norm(initial.w)), exact_information(initial.w)
    assert ends["v1 (14)"][0] < 0.9 * size and ends["v1 (14)"][1] < 0.9 * information
    assert ends["v1 (3)"][0] > 1.2 * size
    assert ends["algorithm 1"][1] > 1.1 * information


@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False])
def test_the_flax_transformer_trains_with_it(single):
    from flax import nnx

    dtype = jnp.float32 if single else jnp.float64
    config = Architecture(
        vocab=11, dim=8, heads=2, layers=2, ffn=16, classes=3, head="classification", dtype=dtype, param_dtype=dtype
    )
    params, static = split_model(Transformer(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.random((32, 6)) < 0.8).at[:, 0].set(True)
    data = Batch(jnp.asarray(rng.integers(0, 11, (32, 6))), mask, jnp.asarray(rng.integers(0, 3, 32), dtype=jnp.int32))

    class Task(eqx.Module):
        def loss(self, model, batch, key):
            del key
            logits = jax.vmap(model)(batch.inputs, batch.mask)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
            return loss, {
                "accuracy": jnp.mean((jnp.argmax(logits, -1).astype(jnp.int32) == batch.labels).astype(loss.dtype))
            }

    x = InputProjection(4, length=6, vocab=11, key=jax.random.key(1))
    estimator, own = InfoNCE(4, 8, 16, key=jax.random.key(2)), optax.sgd(1e-2)
    flow = bottleneck_flow(1.0, weight_decay=1e-3, beta=1e-2, optimizer=optax.adam(3e-3))
    state = TrainState(
        jnp.zeros((), jnp.int32), params, flow.init(params), jax.random.key(0), start_estimator(estimator, own)
    )
    step = make_bottleneck_step(
        Task(), flow, static, estimator, noise=0.1, estimator_optimizer=own, representation=1, summary=x
    )
    losses = []
    for _ in range(8):
        state, metrics = step(state, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert float(metrics["information"]) <= math.log(32) and float(metrics["information_limit"]) == pytest.approx(
        math.log(32)
    )
    assert metrics["loss"].dtype == metrics["information"].dtype == dtype
    # Padding reaches neither x nor T.
    noisy = data._replace(inputs=jnp.where(mask, data.inputs, 10 - data.inputs))
    np.testing.assert_array_equal(x(data), x(noisy))
    model = merge_model(state.params, static)
    np.testing.assert_allclose(mean_hidden_states(model, data), mean_hidden_states(model, noisy), rtol=1e-5)


def test_projections_are_linear_maps_of_the_input():
    data = batch(b=3, n=5)
    projection = InputProjection(4, length=5, features=2, key=jax.random.key(0))
    np.testing.assert_allclose(projection(data), data.inputs.reshape(3, 10) @ projection.table, rtol=1e-12)
    half = data._replace(mask=data.mask.at[:, 3:].set(False))
    np.testing.assert_allclose(projection(half), data.inputs[:, :3].reshape(3, 6) @ projection.table[:6], rtol=1e-12)
    ids = Batch(jnp.asarray([[1, 2, 0]]), jnp.asarray([[True, True, False]]), jnp.zeros(1, jnp.int32))
    projection = InputProjection(4, length=3, vocab=5, key=jax.random.key(0))
    expected = projection.places[0] * projection.table[1] + projection.places[1] * projection.table[2]
    np.testing.assert_allclose(projection(ids)[0], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="do not fit"):
        projection(data)
    with pytest.raises(ValueError, match="not both"):
        InputProjection(4, length=3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="x_dim=0"):
        InputProjection(0, length=3, vocab=5, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"noise": 0.0}, ValueError, "C10"),
        ({"noise": -1.0}, ValueError, "noise=-1.0"),
        ({"estimator": "club"}, TypeError, "estimator is a str"),
        ({"representation": 1.5}, TypeError, "representation=1.5"),
        ({"estimator_updates": 0}, ValueError, "estimator_updates=0"),
        ({"summary": "pca"}, TypeError, "summary='pca'"),
        ({"optimizer": optax.adam(0.1)}, ValueError, "ignore"),
    ],
)
def test_bad_options_are_refused(change, error, words):
    _, static = split_model(linear())
    given = {"task": _Squares(), "optimizer": bottleneck_flow(0.1), "static": static, "noise": 0.1,
             "estimator": CLUB(2, 2, 4, key=jax.random.key(0)), "estimator_optimizer": optax.sgd(0.1), **change}  # fmt: skip
    with pytest.raises(error, match=words):
        make_bottleneck_step(**given)


def test_a_state_without_an_estimator_is_refused():
    model, flow, own = linear(), bottleneck_flow(0.1), optax.sgd(0.1)
    estimator = CLUB(2, 2, 4, key=jax.random.key(0))
    state, static = start(model, flow, estimator, own)
    step = make_bottleneck_step(_Squares(), flow, static, estimator, noise=0.1, estimator_optimizer=own)
    with pytest.raises(TypeError, match="start_estimator"):
        step(state._replace(extra=None), batch())
