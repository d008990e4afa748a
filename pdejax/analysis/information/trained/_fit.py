"""Training an estimate, and its value on pairs that it has not seen."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import choice, traced
from pdejax.analysis.information._samples import (
    AbstractInformation,
    Estimate,
    checked_pairs,
    checked_sizes,
    continuous,
    is_labels,
    labels,
    paired,
    record,
    standard,
)
from pdejax.analysis.information.trained._estimates import CLUB, InfoNCE


@checked
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


TRAINED = ("infonce", "club")


def trained_information(
    x: ArrayLike,
    y: ArrayLike,
    estimator: str = "infonce",
    *,
    key: PRNGKeyArray | None,
    steps: int = 500,
    batch_size: int = 128,
    hidden: int = 32,
    learning_rate: float = 3e-3,
    classes: int | None = None,
) -> Estimate:
    """[`InfoNCE`][pdejax.analysis.information.trained.InfoNCE] or [`CLUB`][pdejax.analysis.information.trained.CLUB] trained on a
    random half of the pairs, and its mean over batches of the other half, which it has not seen.

    Features are centred and scaled (information does not depend on it); labels become one-hot rows, and for CLUB the
    condition. `limit` is ln `batch_size` for InfoNCE, inf for CLUB; `saturated` if most batches are; `samples` counts
    all pairs. Batches hold `batch_size` pairs, or what half of the pairs allow. `classes` (labels below it) is needed
    under tracing only.

    Trains for `steps` batches: compile and run take seconds; O(steps · batch_size · hidden · (dx + dy + hidden)) time
    and a score table of batch_size². Raises `TypeError`/`ValueError` for bad samples, a missing key, fewer than 8
    pairs, or sizes below 1.
    """
    owner = "mutual_information"
    choice(owner, "estimator", estimator, TRAINED)
    if key is None:
        raise ValueError(f'{owner}: "{estimator}" is trained from random numbers; give key=jax.random.key(...).')
    if estimator == "club" and is_labels(y):
        if is_labels(x):
            raise TypeError(f'{owner}: x and y are both labels, which no Gaussian describes; take "binned".')
        x, y = y, x  # q describes the floats, given the labels
    x, y = _rows(owner, "x", x, classes), _rows(owner, "y", y, classes)
    count = paired(owner, x, y)
    if count < 8:
        raise ValueError(
            f"{owner}: {count} pairs are too few to train on one half and test on the other; give 8 or more."
        )
    x, y = standard(x), standard(y.astype(x.dtype))
    split, made, own = jax.random.split(key, 3)
    make = InfoNCE if estimator == "infonce" else CLUB
    start = make(x.shape[1], y.shape[1], hidden, key=made)
    order = jax.random.permutation(split, count)
    train, test = order[: count // 2], order[count // 2 :]
    trained, _ = fit(
        start, x[train], y[train], key=own, steps=steps, batch_size=batch_size, learning_rate=learning_rate
    )
    return _held_out(trained, x[test], y[test], min(batch_size, count // 2), count)


@eqx.filter_jit
def _held_out(trained, x: Array, y: Array, size: int, count: int) -> Estimate:
    batches = x.shape[0] // size
    kept = batches * size
    # The record's text and count are static: only numbers go through the map.
    values, saturated, limit = lax.map(
        lambda pair: (lambda e: (e.value, e.saturated, e.limit))(trained.estimate(*pair)),
        (x[:kept].reshape(batches, size, -1), y[:kept].reshape(batches, size, -1)),
    )
    kind = "lower" if isinstance(trained, InfoNCE) else "upper"
    return record(jnp.mean(values), limit[0], jnp.mean(saturated.astype(values.dtype)) > 0.5, kind, count, None)


def _rows(owner: str, name: str, value: ArrayLike, classes: int | None) -> Array:
    if not is_labels(value):
        return continuous(owner, name, value)
    y = labels(owner, name, value)
    if traced(y):
        if classes is None:
            raise ValueError(f"{owner}: {name} are traced labels; give classes=, their number, with labels below it.")
        codes, count = y, classes
    else:
        seen, codes = np.unique(np.asarray(y), return_inverse=True)
        count = len(seen)
    return jax.nn.one_hot(codes, max(count, 2), dtype=jnp.result_type(float))
