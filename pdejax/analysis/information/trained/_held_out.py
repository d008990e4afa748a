"""Estimates trained on one half of the pairs, their value from the other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from pdejax._check import choice, traced
from pdejax.analysis.information._estimate import Estimate, record
from pdejax.analysis.information._samples import continuous, is_labels, labels, paired, standard
from pdejax.analysis.information.trained._club import CLUB
from pdejax.analysis.information.trained._fit import fit
from pdejax.analysis.information.trained._infonce import InfoNCE

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
    owner = "trained_information"
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
