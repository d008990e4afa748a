"""Training of an information estimate on pairs."""

import math
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax.analysis.information._estimate import AbstractInformation, checked_pairs, checked_sizes


def fit(
    estimator: AbstractInformation,
    x: Float[Array, "b dx"],
    t: Float[Array, "b dt"],
    *,
    key: PRNGKeyArray,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
) -> tuple[AbstractInformation, Float[Array, " steps"]]:
    """Train an estimate on pairs `x (N, dx)`, `t (N, dt)` by Adam with a cosine schedule; returns it and its losses in nats.

    Batches of `batch_size` pairs (of all, if there are fewer) go through the pairs in a new random order in every epoch. Use
    other pairs for `estimate`: on these it also counts what it has memorized.

    Raises `TypeError` for something that is no estimate, `ValueError` for pairs that do not fit it, sizes below 1 (batch: 2)
    or a learning rate that is not positive.
    """
    if not isinstance(estimator, AbstractInformation):
        raise TypeError(f"fit: estimator is a {type(estimator).__name__}; it must be an information estimate.")
    checked_sizes("fit", {"batch_size": 2}, steps=steps, batch_size=batch_size)
    if not (isinstance(learning_rate, (int, float)) and math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"fit: learning_rate={learning_rate!r} must be a positive number.")
    x, t = checked_pairs(estimator, x, t)
    return _fit(estimator, x, t, key, int(steps), min(int(batch_size), x.shape[0]), float(learning_rate))  # pyright: ignore[reportReturnType]


@eqx.filter_jit
def _fit(estimator, x: Array, t: Array, key: PRNGKeyArray, steps: int, batch_size: int, learning_rate: float) -> Any:
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    parameters, rest = eqx.partition(estimator, eqx.is_inexact_array)

    def loss(parameters, x, t, key):
        return eqx.combine(parameters, rest).fit_loss(x, t, key)

    def step(carry, inputs):
        parameters, state = carry
        rows, key = inputs
        value, gradient = jax.value_and_grad(loss)(parameters, x[rows], t[rows], key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
            updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value

    draw, own = jax.random.split(key)
    count, per_epoch = x.shape[0], x.shape[0] // batch_size
    epochs = -(-steps // per_epoch)
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(draw, epochs))
    batches = orders[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]
    start = parameters, optimizer.init(parameters)
    (parameters, _), losses = jax.lax.scan(step, start, (batches, jax.random.split(own, steps)))
    return eqx.combine(parameters, rest), losses
