"""Gradient flow against closed forms, plain automatic differentiation and the training step's own norms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax
from pdejax import Figure
from pdejax.analysis.jacobian._gradient_flow import gradient_flow, medians_of, stack_gradient_flows
from pdejax.analysis.jacobian._systems import shuffle_weights

CONFIG = pdejax.Architecture(
    vocab=11, dim=4, heads=2, layers=3, ffn=6, head="classification", classes=3, dtype="float64", param_dtype="float64"
)
MATRIX = 0.3 * jax.random.normal(jax.random.key(5), (4, 4))
WEIGHTS = jax.random.normal(jax.random.key(6), (3, 4))


def linear(t, u, args):
    return u @ MATRIX


def weighted(u, label, mask):
    return jnp.sum(WEIGHTS * u)


def batch(b=5, n=6):
    key = jax.random.key(1)
    mask = jnp.ones((b, n), bool).at[0, 4:].set(False)
    return jax.random.randint(key, (b, n), 0, 11), jnp.arange(b) % 3, mask


@pytest.fixture(scope="module")
def model():
    return pdejax.Transformer(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def measured(model):
    x, y, mask = batch()
    return gradient_flow(model, x, y, mask=mask, key=jax.random.key(2), resamples=100)


def test_linear_field_in_closed_form():
    # Euler steps u <- u (I + hM): the gradient at l is G ((I + hM)^T)^(L - l), whatever u is.
    u0 = jax.random.normal(jax.random.key(0), (4, 3, 4)).at[:, 2].set(jnp.nan)
    mask = jnp.asarray([True, True, False])
    d = pdejax.Discretization(linear, "euler", t1=2.0, steps=8)
    found = gradient_flow(d, u0, key=jax.random.key(1), loss=weighted, mask=mask, depths=4)
    step = np.linalg.matrix_power(np.eye(4) + 0.25 * np.asarray(MATRIX), 2)
    expected = [np.linalg.norm(np.asarray(WEIGHTS)[:2] @ np.linalg.matrix_power(step.T, 4 - l)) for l in range(5)]
    np.testing.assert_allclose(found.states, np.tile(expected, (4, 1)), rtol=1e-12)
    np.testing.assert_allclose(found.depths, np.linspace(0, 2, 5))
    np.testing.assert_allclose(found.median.low, expected, rtol=1e-12)  # all sequences are alike
    assert found.parameters is None and not found.median.nulls and found.ratio is None


@pytest.mark.slow
def test_transformer_against_training_and_plain_gradients(model, measured):
    x, y, mask = batch()
    pure, static = pdejax.training.split_model(model)
    task = pdejax.training.Classification()
    given = pdejax.data.Batch(x, mask, y)

    def objective(pure):
        return task.loss(pdejax.training.merge_model(pure, static), given, jax.random.key(0))[0]

    from pdejax.training._step import gradient_norms

    value, gradients = jax.value_and_grad(objective)(pure)
    norms = gradient_norms(gradients)["layer_gradient_norms"]
    np.testing.assert_allclose(measured.batch_parameters, norms, rtol=1e-10)
    np.testing.assert_allclose(jnp.mean(measured.loss), value, rtol=1e-12)

    def from_start(u, i):
        u = model.run(u, mask[i])[-1]
        u = u if model.final_norm is None else pdejax.models._block.apply_norm(model.final_norm, u)
        logits = model.head(jnp.mean(u, axis=0, where=mask[i][:, None]))
        return -jax.nn.log_softmax(logits)[y[i]]

    for i in (0, 3):
        gradient = jnp.where(mask[i][:, None], jax.grad(from_start)(model.embed(x[i]), i), 0)
        np.testing.assert_allclose(measured.states[i, 0], jnp.linalg.norm(gradient), rtol=1e-10)
    assert measured.parameters.shape == (5, 3)
    np.testing.assert_allclose(measured.median.value, np.median(measured.states, axis=0), rtol=1e-12)
    assert np.all(np.asarray(measured.median.low) <= np.asarray(measured.median.value))


def test_nulls_stand_beside(model, measured):
    x, y, mask = batch()
    np.testing.assert_allclose(
        measured.ratio.value, measured.median.value / jnp.asarray(measured.median.nulls["labels"]), rtol=1e-12
    )
    assert not np.allclose(measured.median.nulls["labels"], measured.median.value)
    other = shuffle_weights(model, key=jax.random.key(3))
    found = gradient_flow(model, x, y, mask=mask, key=jax.random.key(2), null=other, resamples=100)
    direct = gradient_flow(other, x, y, mask=mask, key=jax.random.key(2), resamples=100)
    np.testing.assert_array_equal(found.median.nulls["model"], direct.median.value)
    np.testing.assert_array_equal(found.states, measured.states)


def test_padding_changes_nothing(model, measured):
    x, y, mask = batch()
    found = gradient_flow(model, x.at[0, 4:].set(9), y, mask=mask, key=jax.random.key(2), resamples=100)
    np.testing.assert_array_equal(found.states, measured.states)
    np.testing.assert_array_equal(found.batch_parameters, measured.batch_parameters)


def test_shuffled_weights_keep_their_entries(model):
    other = shuffle_weights(model, key=jax.random.key(3)).parameters()
    for name, leaf in model.parameters().items():
        kept = np.sort(np.ravel(leaf)), np.sort(np.ravel(other[name]))
        np.testing.assert_array_equal(*kept)
    name = "layers/feed_forward/first/kernel"
    before, after = np.asarray(model.parameters()[name]), np.asarray(other[name])
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.sort(before[1].ravel()), np.sort(after[1].ravel()))  # within each layer
    with pytest.raises(TypeError, match="no weight matrices"):
        shuffle_weights(linear, key=jax.random.key(0))


@pytest.mark.slow
def test_layered_equation_and_simulator_against_plain_gradients(model):
    x, y, mask = batch()
    equation = pdejax.lift(model).field
    u0 = jax.vmap(model.embed)(x)

    def loss(u, label, mask):
        return jnp.sum(jnp.sin(u))

    d = pdejax.Discretization(equation, "heun", t1=3.0, steps=6)
    found = gradient_flow(d, u0, key=jax.random.key(0), loss=loss, mask=mask, depths=3)

    def plain(equation):
        def one(u, m):
            u = jnp.where(m[:, None], u, 0)
            end = pdejax.simulate(d.replace(field=equation), u, mask=m, save="end").us[-1]
            return loss(jnp.where(m[:, None], end, 0), None, m)

        return jnp.mean(jax.vmap(one)(u0, mask))

    gradient = eqx.filter_grad(plain)(equation)
    leaves = jax.tree.leaves(gradient.stacked)
    squares = sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in leaves)
    np.testing.assert_allclose(found.batch_parameters, jnp.sqrt(squares), rtol=1e-9)

    config = pdejax.SimulatorConfig.of(
        vocab=11,
        dim=4,
        heads=2,
        layers=3,
        ffn=6,
        head="classification",
        classes=3,
        dtype="float64",
        param_dtype="float64",
    )
    simulator = pdejax.Simulator(config, key=jax.random.key(0))
    found = gradient_flow(simulator, x, y, mask=mask, key=jax.random.key(0))

    def training(parameters, rest):
        model = eqx.combine(parameters, rest)
        return pdejax.training.Classification().loss(model, pdejax.data.Batch(x, mask, y), jax.random.key(0))[0]

    parts = eqx.partition(simulator, simulator.trainable())
    value, gradient = jax.value_and_grad(training)(*parts)
    leaves = jax.tree.leaves(gradient.stacked)
    squares = sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in leaves)
    np.testing.assert_allclose(found.batch_parameters, jnp.sqrt(squares), rtol=1e-9)
    np.testing.assert_allclose(jnp.mean(found.loss), value, rtol=1e-12)


def test_history(measured):
    doubled = jax.tree.map(lambda x: 2 * x, measured)
    history = stack_gradient_flows([measured, doubled], [0, 10])
    assert history.flow.states.shape == (2, 5, 4)
    np.testing.assert_array_equal(history.flow.median.value[1], 2 * measured.median.value)
    with pytest.raises(ValueError, match="one whole number for each"):
        stack_gradient_flows([measured], [0, 1])
    with pytest.raises(ValueError, match="one whole number for each"):
        stack_gradient_flows([], [])
    smaller = jax.tree.map(lambda x: x[..., :2] if x.ndim else x, measured)
    with pytest.raises(
        ValueError, match=r"flows\[1\].depths and flows\[0\].depths differ in shape, \(2,\) and \(4,\); take"
    ):
        stack_gradient_flows([measured, smaller], [0, 1])
    for other in (
        eqx.tree_at(lambda f: f.ratio, measured, None),
        eqx.tree_at(lambda f: f.ratio, measured, Figure(measured.ratio, measured.ratio, measured.ratio, level=0.5)),
    ):
        with pytest.raises(ValueError, match=r"flows\[2\].ratio and flows\[0\].ratio differ in null, level or shape"):
            stack_gradient_flows([measured, measured, other], [0, 1, 2])


def test_weighted_medians():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    weights = jnp.asarray([2.0, 0.0, 1.0, 0.0, 3.0, 0.0])
    repeated = np.repeat(np.asarray(x), np.asarray(weights, int), axis=0)
    np.testing.assert_allclose(medians_of(x)(weights), np.median(repeated, axis=0), rtol=1e-14)
    np.testing.assert_allclose(medians_of(x)(jnp.ones(6)), np.median(x, axis=0), rtol=1e-14)
    assert np.isnan(medians_of(x.at[2, 1].set(jnp.nan))(weights)).tolist() == [False, True]


def test_bad_input(model):
    x, y, mask = batch()
    key = jax.random.key(0)
    u = jnp.ones((3, 4))
    d = pdejax.Discretization(linear, "rk4", t1=1.0, steps=4)
    given = {"key": key, "loss": weighted}
    for error, match, call in (
        (TypeError, "gradient_flow: the system is a function", lambda: gradient_flow(linear, u, **given)),
        (ValueError, "gradient_flow: there are no logits", lambda: gradient_flow(d, u, key=key)),
        (ValueError, "whole-number labels", lambda: gradient_flow(model, x, key=key)),
        (ValueError, "labels has shape", lambda: gradient_flow(model, x, y[:2], key=key)),
        (ValueError, "depths=3 belongs", lambda: gradient_flow(model, x, y, key=key, depths=3)),
        (
            ValueError,
            "gradient_flow: inputs does not fit",
            lambda: gradient_flow(model, x.at[0, 0].set(11), y, key=key),
        ),
        (ValueError, "null='x' is unknown", lambda: gradient_flow(model, x, y, key=key, null="x")),
        (TypeError, "null is a", lambda: gradient_flow(model, x, y, key=key, null=3)),
        (ValueError, "no real token", lambda: gradient_flow(model, x, y, key=key, mask=mask & False)),
        (ValueError, "gradient_flow: inputs has 12 NaN", lambda: gradient_flow(d, u * jnp.nan, **given)),
        (ValueError, "one sequence", lambda: gradient_flow(d, u[0], **given)),
        (ValueError, "do not divide", lambda: gradient_flow(d, u, depths=3, **given)),
        (TypeError, "system is a int", lambda: gradient_flow(3, u, **given)),
        (TypeError, "inputs=an object of type Discretization", lambda: gradient_flow(u, d, **given)),
        (ValueError, "one number per sequence", lambda: gradient_flow(d, u, key=key, loss=lambda u, y, m: u)),
    ):
        with pytest.raises(error, match=match):
            call()
