"""What estimators of entropy and information take and give, and how they walk over pairs of samples."""

import abc
import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from pdejax._check import concretely, integer, traced
from pdejax._figure import AbstractRecord
from pdejax.solvers._written import one_line

# Entries of one block of pairs: 32 MB in float64, whatever the number of samples.
_ENTRIES = 2**22


@concretely
def continuous(owner: str, name: str, value: ArrayLike, *, repeats: bool = True) -> Float[Array, "N d"]:
    """Samples `(N, d)` from `(N,)` or `(N, d)` floats.

    Raises `TypeError`/`ValueError` for other types and shapes, fewer than two samples, values that are not finite, and,
    with `repeats=False`, for samples of which more than 1 % occur twice: those have no density.
    """
    x = jnp.asarray(value)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{owner}: {name} has type {x.dtype}; it must be real floating-point numbers.")
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise ValueError(f"{owner}: {name} has shape {x.shape}; it must be (N,) or (N, d), one row per sample.")
    x = x[:, None] if x.ndim == 1 else x
    if x.shape[0] < 2:
        raise ValueError(f"{owner}: {name} has one sample; at least two are needed.")
    if not traced(x):
        seen = np.asarray(x)  # on the host: two small programs less to wait for
        good = np.isfinite(seen)
        if not good.all():
            row = int(np.argmin(good.all(axis=1)))
            raise ValueError(
                f"{owner}: {name} has values that are not finite, first in sample {row}; drop those samples."
            )
        share = 0.0 if repeats else _share_of_repeats(seen)
        if share > 0.01:
            raise ValueError(
                f"{owner}: {share:.0%} of the samples of {name} occur more than once: discrete or mixed data have no "
                'density. Give classes as integers, take variant="mixed" of "ksg", "binned", or add noise (noise=, '
                "key=)."
            )
    return x


def _share_of_repeats(x: np.ndarray) -> float:
    """Share of rows that are equal to another row. Equal rows are equal in the first feature: most often that settles
    it (and the share returned is then one of that feature, at most 1 %)."""
    first = np.sort(x[:, 0])
    equal = first[1:] == first[:-1]
    share = float(np.mean(np.append(equal, False) | np.append(False, equal)))
    if share <= 0.01 or x.shape[1] == 1:
        return share
    _, sizes = np.unique(x, axis=0, return_counts=True)
    return float(np.sum(sizes[sizes > 1]) / len(x))


@concretely
def labels(owner: str, name: str, value: ArrayLike) -> Int[Array, " N"]:
    """Class labels `(N,)` of integers or booleans, codes of their classes where int32 does not hold them; raises
    `TypeError`/`ValueError` for anything else."""
    if not is_labels(value):
        y = jnp.asarray(value)
        raise TypeError(f"{owner}: {name} has type {y.dtype}; class labels are integers.")
    y = jnp.asarray(value if traced(value) else _in_int32(np.asarray(value)))
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.shape[0] < 2:
        raise ValueError(f"{owner}: {name} has shape {y.shape}; class labels are integers (N,), two or more.")
    return y.astype(jnp.int32)


def is_labels(value: ArrayLike) -> bool:
    """Whether these are class labels: integers or booleans."""
    kind = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    return bool(jnp.issubdtype(kind, jnp.integer) or kind == jnp.bool_)


def _in_int32(known: np.ndarray) -> np.ndarray:
    """Labels as they are, or codes 0, 1, … of their values in ascending order where JAX would wrap them."""
    ends = np.iinfo(np.int32)
    if known.dtype == bool or known.size == 0 or (known.min() >= ends.min and known.max() <= ends.max):
        return known
    return np.unique(known, return_inverse=True)[1].reshape(known.shape)


def sample(owner: str, name: str, value: ArrayLike, *, repeats: bool = True) -> Array:
    """Floats `(N, d)` or labels `(N,)`, as the type says."""
    return labels(owner, name, value) if is_labels(value) else continuous(owner, name, value, repeats=repeats)


def paired(owner: str, x: Array, y: Array) -> int:
    """The number of pairs; `ValueError` if the two differ in number."""
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{owner}: x has {x.shape[0]} samples and y {y.shape[0]}; they must be pairs.")
    return x.shape[0]


def checked_neighbours(owner: str, k: int, count: int) -> int:
    """k as an integer with 1 ≤ k < N, else `ValueError`."""
    integer(owner, "k", k, advice="3 to 5 is usual")
    if count <= k:
        raise ValueError(f"{owner}: {count} samples have no k={k} neighbours each; take k < {count} or more samples.")
    return k


def group(x: Int[Array, " N"]) -> Int[Array, " N"]:
    """Codes 0, 1, … of the values of x in ascending order, each below N."""
    order = jnp.argsort(x)
    ranked = x[order]
    new = jnp.concatenate([jnp.zeros(1, jnp.int32), (ranked[1:] != ranked[:-1]).astype(jnp.int32)])
    return jnp.zeros_like(new).at[order].set(jnp.cumsum(new, dtype=jnp.int32))


def group_rows(x: Array) -> Int[Array, " N"]:
    """Codes 0, 1, …, below N, equal where rows of `x (N, d)` are equal. d sorts, O(N) memory."""
    count = x.shape[0]

    def add(codes, column):
        ranked = jnp.sort(column)
        # Equal values have equal places.
        return joint(codes, jnp.searchsorted(ranked, column).astype(jnp.int32)), None

    return lax.scan(add, jnp.zeros(count, jnp.int32), x.T)[0]


def joint(a: Int[Array, " N"], b: Int[Array, " N"]) -> Int[Array, " N"]:
    """Codes below N of the pairs (a, b), without their product, which may not fit an integer."""
    order = jnp.lexsort((b, a))
    first, second = a[order], b[order]
    new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    ranks = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new, dtype=jnp.int32)])
    return jnp.zeros(a.shape[0], jnp.int32).at[order].set(ranks)


@jax.jit
def repeated_share(x: Float[Array, "N d"]) -> Float[Array, ""]:
    """Share of rows that are equal to another row."""
    codes = group_rows(x)
    counts = jnp.zeros(x.shape[0], jnp.int32).at[codes].add(1)
    return jnp.mean((counts[codes] > 1).astype(x.dtype))


def by_block(function: Callable, rows: tuple[Array, ...], count: int) -> Any:
    """`function(block of rows) -> array or tree, rows along the last axis of size b` over all `count` rows, one block
    after another: blocks of at most 256 rows and 2²² pairs."""
    size = max(1, min(256, _ENTRIES // count, count))
    blocks = math.ceil(count / size)
    # The last block repeats the last row; what it gives is cut off.
    index = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)
    found = lax.map(lambda i: function(*jax.tree.map(lambda a: a[i], rows)), index)
    return jax.tree.map(lambda a: a.reshape(blocks * size, *a.shape[2:])[:count], found)


def square_distance(at: Float[Array, "N d"], rows: Float[Array, "b d"]) -> Float[Array, "N b"]:
    """Squared Euclidean distances, summed feature by feature: no cancellation, O(N b) memory."""
    start = jnp.zeros((at.shape[0], rows.shape[0]), at.dtype)
    if at.shape[1] <= 8:  # one fused pass
        for feature in range(at.shape[1]):
            start = start + (at[:, feature, None] - rows[None, :, feature]) ** 2
        return start
    return lax.scan(lambda total, c: (total + (c[0][:, None] - c[1][None]) ** 2, None), start, (at.T, rows.T))[0]


def standard(x: Float[Array, "N d"]) -> Float[Array, "N d"]:
    """Features centred, with variance 1; constant ones become 0."""
    off = x - jnp.mean(x, axis=0, keepdims=True)
    scale = jnp.sqrt(jnp.mean(off**2, axis=0, keepdims=True))
    return off / jnp.where(scale > 0, scale, 1)


def poisoned(value: Float[Array, ""], *given: Array) -> Float[Array, ""]:
    """NaN where any given float is not finite: comparisons would hide it."""
    good: Bool[Array, ""] = jnp.asarray(True)
    for x in given:
        if jnp.issubdtype(x.dtype, jnp.floating):
            good = good & jnp.all(jnp.isfinite(x))
    return jnp.where(good, value, jnp.nan)


Kind = Literal["lower", "upper", "neither"]


class Estimate(AbstractRecord):
    """An estimate of information, I(X; T) from one batch of pairs, or of an entropy from samples.

    - `value`: nats; a differential entropy may be negative.
    - `limit`: the largest value this estimator can return for this batch, nats; inf where there is none.
    - `saturated`: whether the limit, not the data, sets the value: the information is then larger than it can tell.
    - `kind`: `"lower"` or `"upper"` bound in expectation (of a `"kde"` entropy with σ: for these samples), or
      `"neither"`.
    - `samples`: pairs in the batch, or samples. `noise`: standard deviation σ of the noise that was added (for `"kde"`: in the
      formula), if it was said.
    """

    value: Float[Array, ""]
    limit: Float[Array, ""]
    saturated: Bool[Array, ""]
    noise: Float[Array, ""] | None
    kind: Kind = eqx.field(static=True)
    samples: int = eqx.field(static=True)


class AbstractInformation(eqx.Module):
    """A trainable estimate of the mutual information of pairs `x (b, dx)`, `t (b, dt)`, drawn independently.

    `fit_loss` trains the estimator's own parameters; `estimate` is differentiable in `x` and `t` too, so that its gradient
    reaches the network behind t. Parameters are cast to the type of `t`. A value is a bound for pairs the parameters were
    not trained on; on training pairs it also holds what was memorized.
    """

    x_dim: eqx.AbstractVar[int]
    t_dim: eqx.AbstractVar[int]

    __repr__ = one_line

    @abc.abstractmethod
    def estimate(
        self, x: Float[Array, "b dx"], t: Float[Array, "b dt"], key: PRNGKeyArray | None = None, *, noise=None
    ) -> Estimate:
        """The estimate for this batch. `key` is needed only where negatives are drawn; `noise` σ is only recorded.

        Raises `ValueError`/`TypeError` for arrays that are not `(b, dx)` and `(b, dt)` of floats with b ≥ 2.
        """

    @abc.abstractmethod
    def fit_loss(
        self, x: Float[Array, "b dx"], t: Float[Array, "b dt"], key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        """What the estimator's own parameters minimize: a negative log-likelihood or the negative bound, nats."""


def record(value, limit, saturated, kind: Kind, samples: int, noise) -> Estimate:
    """The record, with every number in the type of `value`."""
    level = None if noise is None else jnp.asarray(noise, value.dtype)
    return Estimate(value, jnp.asarray(limit, value.dtype), jnp.asarray(saturated), level, kind, samples)


def checked_pairs(estimator: AbstractInformation, x, t, least: int = 2) -> tuple[Array, Array]:
    """`x` and `t` as float arrays of one type, or an error that says what is wrong."""
    owner = type(estimator).__name__
    for name, value, width in (("x", x, estimator.x_dim), ("t", t, estimator.t_dim)):
        shape = jnp.shape(value)
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(
                f"{owner}: {name} has shape {shape}; it must be (b, {width}), one row per pair, as the estimator was built."
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                f"{owner}: {name} has dtype {jnp.result_type(value)}; it must be real numbers. Turn classes or token ids "
                "into one-hot rows or a projection of them."
            )
    if jnp.shape(x)[0] != jnp.shape(t)[0]:
        raise ValueError(f"{owner}: x has {jnp.shape(x)[0]} rows and t {jnp.shape(t)[0]}; they must be pairs.")
    if jnp.shape(x)[0] < least:
        raise ValueError(f"{owner}: {jnp.shape(x)[0]} pairs are too few; it needs at least {least}.")
    t = jnp.asarray(t)
    return jnp.asarray(x).astype(t.dtype), t


def checked_sizes(owner: str, least: dict[str, int] | None = None, **sizes) -> None:
    """Raise unless every size is an integer of at least 1, or what `least` says."""
    for name, value in sizes.items():
        integer(owner, name, value, (least or {}).get(name, 1))
