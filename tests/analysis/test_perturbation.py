"""Answers to perturbations: a linear system, a field whose departure is known, a Transformer against plain evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax
from pdejax.analysis.jacobian._perturbation import perturbation_sensitivity

KEY = jax.random.key(2)
MATRIX = jax.random.normal(jax.random.key(0), (4, 4))


def linear(t, u, args):
    return u @ MATRIX.astype(u.dtype)


def square(t, u, args):
    return u * u


def total(u, label, mask):
    return jnp.sum(u)


def test_linear_system_is_linear_at_every_size():
    u0 = jax.random.normal(jax.random.key(1), (3, 3, 4)).at[:, 2].set(jnp.nan)
    mask = jnp.asarray([True, True, False])
    d = pdejax.Discretization(linear, "rk4", t1=1.0, steps=10)
    found = perturbation_sensitivity(d, u0, depths=2, key=KEY, mask=mask, draws=3, at=1)
    flow = jax.jit(jax.jacfwd(lambda u: pdejax_flow(u, 5)))(jnp.zeros(4))
    gain = np.linalg.svd(np.asarray(flow), compute_uv=False)[0]
    for answer in (found.random, found.singular):
        assert np.all(np.asarray(answer.state_departure) < 1e-9)
        assert np.all(np.isinf(answer.state_limit)) and np.all(np.asarray(answer.state_resolved))
        predicted = np.asarray(answer.state_slope)[..., None] * np.asarray(found.epsilons)
        np.testing.assert_allclose(answer.state, predicted, rtol=1e-8)
    # The most sensitive direction reaches the largest singular value.
    np.testing.assert_allclose(found.singular.state_slope[:, 0], gain * found.scale, rtol=1e-6)
    assert np.all(np.asarray(found.ratio.value) >= 1) and found.gradient is None and found.base_loss is None


def pdejax_flow(u, steps):
    """`steps` steps of RK4 of the linear field at h = 0.1."""
    term, step = u, jnp.zeros_like(u)
    for _ in range(steps):
        term, step = u, u
        for j in range(1, 5):
            term = 0.1 * term @ MATRIX / j
            step = step + term
        u = step
    return u


def test_departure_of_a_quadratic_field():
    # u' = u^2 from c: u(1) = c/(1 - c). A change x departs by |x|/(1 - c - x), which is 0.1 at x = (1 - c)/11 or -(1 - c)/9.
    found = perturbation_sensitivity(
        pdejax.Discretization(square, "rk4", t1=1.0, steps=200),
        jnp.full((1, 1), 0.5),
        depths=1,
        key=KEY,
        loss=total,
        epsilons=jnp.logspace(-3, -0.5, 26),
        resamples=50,
    )
    up, down = 0.5 / 11 / 0.5, 0.5 / 9 / 0.5
    np.testing.assert_allclose(found.gradient.loss_limit, up, rtol=2e-3)
    for limit in np.ravel(found.random.state_limit):
        assert min(abs(limit / up - 1), abs(limit / down - 1)) < 2e-3
    x = 0.5 * np.asarray(found.epsilons)
    np.testing.assert_allclose(found.gradient.loss[0, 0], (0.5 + x) / (0.5 - x) - 1, rtol=1e-6)
    np.testing.assert_allclose(found.gradient.loss_departure[0, 0], x / (0.5 - x), rtol=1e-5)
    # Up means up: the loss grows along its gradient.
    assert np.all(np.asarray(found.gradient.loss) > 0)


@pytest.fixture(scope="module")
def measured():
    config = pdejax.Architecture(vocab=11, dim=4, heads=2, layers=2, ffn=6, head="classification", classes=3)
    model = pdejax.Transformer(config, rngs=nnx.Rngs(0))
    x, y = jax.random.randint(jax.random.key(4), (4, 5), 0, 11), jnp.arange(4) % 3
    mask = jnp.ones((4, 5), bool).at[0, 3:].set(False)
    return model, x, y, mask, perturbation_sensitivity(model, x, y, mask=mask, key=KEY, at=1, draws=3, resamples=50)


def test_transformer_in_float32_against_plain_evaluations(measured):
    model, x, y, mask, found = measured
    assert found.random.state.shape == (4, 3, 11) and found.gradient.loss.shape == (4, 1, 11)
    states = model.hidden_states(x[0], mask[0])
    u = jnp.where(mask[0][:, None], states[1], 0)
    np.testing.assert_allclose(found.scale[0], jnp.linalg.norm(u), rtol=1e-6)
    np.testing.assert_allclose(found.base_loss[1], -jax.nn.log_softmax(model(x[1], mask[1]))[y[1]], rtol=1e-5)
    # Rounding is said: the smallest sizes do not move a float32 loss by enough.
    assert not np.all(np.asarray(found.random.loss_resolved)[:, :, 0])
    assert np.all(np.asarray(found.random.loss_resolved)[:, :, 6:])
    assert np.all(np.asarray(found.state_floor) > 0) and np.all(np.asarray(found.state_floor) < 1e-4)
    # Adversarial directions are at least as strong as random ones where things are linear.
    assert np.all(np.asarray(found.ratio.value)[3:6] > 1) and np.all(np.asarray(found.loss_ratio.value)[3:6] > 1)
    np.testing.assert_allclose(
        found.loss_ratio.value, found.gradient.loss_median.value / found.random.loss_median.value, rtol=1e-5
    )
    flat = np.abs(np.asarray(found.random.loss)).reshape(12, 11)
    np.testing.assert_allclose(found.random.loss_median.value, np.median(flat, axis=0), rtol=1e-5)
    for answer, of in ((found.random, "state"), (found.gradient, "loss")):
        limits = np.asarray(getattr(answer, f"{of}_limit"))
        departures = np.asarray(getattr(answer, f"{of}_departure"))
        for i, j in np.ndindex(*limits.shape):
            before = np.asarray(found.epsilons) < limits[i, j]
            seen = np.asarray(getattr(answer, f"{of}_resolved"))[i, j]
            assert np.all(departures[i, j][before & seen] <= 0.1)


def test_padding_changes_nothing(measured):
    model, x, y, mask, found = measured
    again = perturbation_sensitivity(model, x.at[0, 3:].set(7), y, mask=mask, key=KEY, at=1, draws=3, resamples=50)
    np.testing.assert_array_equal(again.random.state, found.random.state)
    np.testing.assert_array_equal(again.gradient.loss, found.gradient.loss)


@pytest.mark.slow
def test_one_sequence_has_intervals_over_directions(measured):
    model, x, y, _, _ = measured
    found = perturbation_sensitivity(model, x[1], y[1], key=KEY, directions="random", relative=False, draws=5)
    assert found.gradient is None and found.ratio is None
    low, high = found.random.state_median.low, found.random.state_median.high
    assert np.all(np.asarray(low) <= np.asarray(high)) and np.all(np.isfinite(low))
    np.testing.assert_allclose(found.scale, np.sqrt(20), rtol=1e-6)


def test_bad_input():
    u = jnp.ones((2, 4))
    d = pdejax.Discretization(linear, "rk4", t1=1.0, steps=4)
    falling = jnp.asarray([0.1, 0.01])
    for error, match, call in (
        (
            ValueError,
            "positive, finite and increasing",
            lambda: perturbation_sensitivity(d, u, epsilons=falling),
        ),
        (
            ValueError,
            "positive, finite and increasing",
            lambda: perturbation_sensitivity(d, u, epsilons=jnp.zeros(1)),
        ),
        (ValueError, "epsilons has shape", lambda: perturbation_sensitivity(d, u, epsilons=0.1)),
        (ValueError, "directions='up'", lambda: perturbation_sensitivity(d, u, directions="up")),
        (ValueError, "at=4", lambda: perturbation_sensitivity(d, u, at=4)),
        (ValueError, "draws=0", lambda: perturbation_sensitivity(d, u, draws=0)),
        (ValueError, "tolerance=1", lambda: perturbation_sensitivity(d, u, tolerance=1)),
        (ValueError, "resamples=5", lambda: perturbation_sensitivity(d, u, resamples=5)),
        (ValueError, "NaN or infinite", lambda: perturbation_sensitivity(d, u * jnp.nan)),
    ):
        with pytest.raises(error, match=match):
            call()
