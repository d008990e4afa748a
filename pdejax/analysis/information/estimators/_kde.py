"""Entropy and information of a mixture of Gaussians around noiseless representations: bounds from pairwise distances."""

import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from pdejax._check import choice, traced
from pdejax.analysis.information._estimate import Estimate, Kind, record
from pdejax.analysis.information._samples import (
    by_block,
    continuous,
    group,
    is_labels,
    labels,
    paired,
    poisoned,
    square_distance,
)

Bound = Literal["upper", "lower", "neither"]
# Exponent of a pair at squared distance D²: −D²/(2σ²) is minus the KL divergence, −D²/(8σ²) minus the Bhattacharyya distance.
_DIVISOR = {"upper": 2.0, "lower": 8.0, "neither": 2.0}
_OTHER = {"upper": "lower", "lower": "upper", "neither": "neither"}


def kde_information(x: ArrayLike, y: ArrayLike, *, noise: ArrayLike | None, bound: Bound = "upper") -> Estimate:
    r"""Bounds on the information in a representation with Gaussian noise, T = f(X) + σξ, ξ ~ N(0, 1), nats.

    With two float arrays `y (N, d)` holds the *noiseless* f(x_i) and the answer is about I(X; f(X) + σξ):

    $$\hat I = -\frac1N\sum_i\ln\frac1N\sum_j e^{-\|f_i - f_j\|^2/(2\sigma^2)},$$

    8σ² in place of 2σ² for `bound="lower"`: bounds of the information about which of the N samples it was, from the KL
    divergence above and the Bhattacharyya distance below. `x` is only counted: that y is a function of x (and holds no
    noise of its own) is assumed, not measured; shuffling x changes nothing. With integer labels y (or x) the other
    array holds f and

    $$\hat I(T; Y) = \hat H(T) - \sum_y\tfrac{N_y}{N}\hat H(T\,|\,Y = y)$$

    with the upper entropy first and lower ones subtracted, or the other way round: again bounds for the N samples, far
    apart unless the samples overlap either fully or not at all. `bound="neither"` subtracts upper from upper, whose
    gaps nearly cancel: the usual estimate of the information-bottleneck literature, and much nearer to the truth, but
    no bound. (With two float arrays it is `"upper"`.)

    `noise` σ > 0 is required and sets the value: as σ → 0 the first tends to `limit` = ln N and says nothing about the
    map (claim C10). `saturated`: in the median sample the others add less than its own share to the sum (first case),
    or the value reaches the limit (second, where it is Ĥ(Y), the labels' entropy; the value is cut there, and at 0).

    O(N² d) time, O(N (d + 1)) memory beside blocks of at most 2²² pairs. Distances are summed without expanding
    squares: float32 holds 1e-6 of the exponent. Raises `TypeError`/`ValueError` for bad samples, a missing σ, σ ≤ 0, or
    two label arrays. Source: Kolchinsky and Tracey, arXiv 1706.02419, (10)–(13).
    """
    owner = "kde_information"
    choice(owner, "bound", bound, get_args(Bound))
    if is_labels(x) and is_labels(y):
        raise TypeError(f'{owner}: x and y are both discrete; a Gaussian mixture needs floats. Take "binned".')
    if is_labels(x):
        x, y = y, x
    if is_labels(y):
        f, y = continuous(owner, "the representation", x), labels(owner, "labels", y)
        paired(owner, f, y)
        return _with_labels(f, y, checked_noise(owner, noise, f.dtype), bound)
    x, f = continuous(owner, "x", x), continuous(owner, "y", y)
    paired(owner, x, f)
    return _information(f, checked_noise(owner, noise, f.dtype), bound)


def checked_noise(owner: str, noise: ArrayLike | None, dtype) -> Float[Array, ""]:
    """σ as a scalar of this type; `ValueError` unless it is given, positive and finite."""
    if noise is None:
        raise ValueError(
            f"{owner}: noise is missing; without noise on the representation its information is infinite or "
            "constant. Give "
            "the standard deviation σ > 0, in the unit of the representation."
        )
    if jnp.shape(noise) != () or (not traced(noise) and not 0 < float(np.asarray(noise)) < math.inf):
        raise ValueError(f"{owner}: noise={noise!r} must be one positive, finite standard deviation.")
    return jnp.asarray(noise, dtype)


@eqx.filter_jit
def _information(f: Float[Array, "N d"], noise: Float[Array, ""], bound: str) -> Estimate:
    count = f.shape[0]
    sums = log_sums(f, noise, _DIVISOR[bound])
    value = poisoned(jnp.clip(math.log(count) - jnp.mean(sums), 0.0, math.log(count)), f)
    kind: Kind = "lower" if bound == "lower" else "upper"
    return record(value, math.log(count), jnp.median(sums) < math.log(2), kind, count, noise)


@eqx.filter_jit
def _with_labels(f: Float[Array, "N d"], y: Int[Array, " N"], noise: Array, bound: Any) -> Estimate:
    count, other = f.shape[0], _OTHER[bound]
    classes = group(y)
    sizes = jnp.zeros(count, f.dtype).at[classes].add(1)[classes]
    entropy = math.log(count) - jnp.mean(log_sums(f, noise, _DIVISOR[bound]))
    within = jnp.mean(jnp.log(sizes) - log_sums(f, noise, _DIVISOR[other], classes))
    limit = jnp.mean(math.log(count) - jnp.log(sizes))
    raw = entropy - within
    return record(poisoned(jnp.clip(raw, 0.0, limit), f), limit, raw >= limit, bound, count, noise)


def log_sums(
    f: Float[Array, "N d"], noise: Float[Array, ""], divisor: float, classes: Int[Array, " N"] | None = None
) -> Float[Array, " N"]:
    """ln Σ_j exp(−‖f_i − f_j‖²/(divisor σ²)) of every sample, over all j or those of its class; at least 0 by j = i."""
    scaled = f / noise
    marks = jnp.zeros(f.shape[0], jnp.int32) if classes is None else classes

    def block(rows, own):
        exponent = -square_distance(scaled, rows) / divisor
        return jax.nn.logsumexp(jnp.where(marks[:, None] == own[None], exponent, -jnp.inf), axis=0)

    return by_block(block, (scaled, marks), f.shape[0])
