"""What every trainable information estimate is asked, and what it answers."""

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pdejax._check import integer
from pdejax._figure import AbstractRecord

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
