"""Estimates that count: bins, kernels and Gaussians."""

import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int
from scipy.special import digamma

from pdejax._check import choice, integer, traced
from pdejax.analysis.information._samples import (
    Estimate,
    Kind,
    by_block,
    continuous,
    group,
    is_labels,
    joint,
    labels,
    paired,
    poisoned,
    record,
    sample,
    square_distance,
    standard,
)

Edges = Literal["quantile", "equal"]


def binned_information(
    x: ArrayLike, y: ArrayLike, *, bins: int | None = None, correction: bool = True, edges: str = "quantile"
) -> Estimate:
    r"""$\hat I = \hat H(X_\Delta) + \hat H(Y_\Delta) - \hat H(X_\Delta, Y_\Delta)$ nats of data put into bins, feature by
    feature; integer labels are taken as they are.

    - `bins` per feature, between quantiles (`edges="quantile"`) or of equal width (`"equal"`); default
      $\lfloor(N/5)^{1/(d_x + d_y)}\rfloor \ge 2$, five samples per joint cell if X and Y were independent.
    - `correction`: Miller–Madow, + (K_x + K_y − K_xy − 1)/2N with K occupied cells; without it the value lies too high by
      about that much.

    In truth binned information is at most that of the data; from samples it is biased upward, so the kind is `"neither"`.
    `limit` = min(ln K_x, ln K_y) ≤ ln N. `saturated`: most samples are alone in their joint cell (then the value is
    Ĥ(X) + Ĥ(Y) − ln N whatever the data say), or the value passes 90 % of the ln K of a variable that was binned. In more
    than a few dimensions that is the rule: 2 bins in 20 features are a million cells.

    O(N d log N) time, O(N) memory beside the data. Raises `TypeError`/`ValueError` for bad samples or fewer than 2 bins.
    Source: Miller 1955; Paninski 2003, DOI 10.1162/089976603321780272.
    """
    owner = "mutual_information"
    x, y = sample(owner, "x", x), sample(owner, "y", y)
    count = paired(owner, x, y)
    dims = sum(a.shape[1] for a in (x, y) if a.ndim == 2)
    return _from_cells(x, y, checked_bins(owner, bins, edges, count, dims), bool(correction), edges)


@eqx.filter_jit
def _from_cells(x: Array, y: Array, bins: int, correction: bool, edges: str) -> Estimate:
    count = x.shape[0]
    dtype = x.dtype if x.ndim == 2 else y.dtype if y.ndim == 2 else jnp.result_type(float)
    a, b = codes(x, bins, edges), codes(y, bins, edges)
    both = joint(a, b)
    (hx, kx, _), (hy, ky, _), (hxy, kxy, alone) = (plug_in(c, dtype) for c in (a, b, both))
    value = hx + hy - hxy
    limits = jnp.stack([jnp.log(kx), jnp.log(ky)])
    if correction:
        value = value + (kx + ky - kxy - 1) / (2 * count)
    binned = jnp.asarray([x.ndim == 2, y.ndim == 2])
    # One bin (a constant feature) holds no information and sets no limit.
    near = jnp.any(binned & (limits > 0) & (value > 0.9 * limits))
    # Entropies are sums of about N terms: rounding may pass the limit by that much, Miller–Madow by more.
    value = poisoned(jnp.minimum(value, jnp.min(limits)), x, y)
    return record(value, jnp.min(limits), (alone > 0.5) | near, "neither", count, None)


def codes(x: Array, bins: int, edges: str) -> Int[Array, " N"]:
    """The cell of every sample, numbered below N."""
    if x.ndim == 1:
        return group(x)

    def add(found, column):
        return joint(
            found, jnp.searchsorted(inner_edges(column, bins, edges), column, side="right").astype(jnp.int32)
        ), None

    return lax.scan(add, jnp.zeros(x.shape[0], jnp.int32), x.T)[0]


def inner_edges(column: Float[Array, " N"], bins: int, edges: str) -> Float[Array, " edges"]:
    """The bins − 1 edges between cells."""
    share = jnp.arange(1, bins, dtype=column.dtype) / bins
    if edges == "quantile":
        return jnp.quantile(column, share)
    low, high = jnp.min(column), jnp.max(column)
    return low + (high - low) * share


def plug_in(cells: Int[Array, " N"], dtype) -> tuple[Array, Array, Array]:
    """Plug-in entropy (nats), occupied cells, and the share of samples that are alone in theirs."""
    count = cells.shape[0]
    sizes = jnp.zeros(count, dtype).at[cells].add(1)
    entropy = math.log(count) - jnp.sum(jnp.where(sizes > 0, sizes * jnp.log(jnp.maximum(sizes, 1)), 0)) / count
    return entropy, jnp.sum((sizes > 0).astype(dtype)), jnp.sum((sizes == 1).astype(dtype)) / count


def checked_bins(owner: str, bins: int | None, edges: str, count: int, dims: int) -> int:
    """The number of bins per feature, the default for None."""
    choice(owner, "edges", edges, get_args(Edges))
    if bins is None:
        return max(2, math.floor((count / 5) ** (1 / max(dims, 1))))
    return integer(owner, "bins", bins, 2, advice="it is per feature; None chooses it")


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
    owner = "mutual_information"
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
    return _from_sums(f, checked_noise(owner, noise, f.dtype), bound)


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
def _from_sums(f: Float[Array, "N d"], noise: Float[Array, ""], bound: str) -> Estimate:
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


def gaussian_information(x: ArrayLike, y: ArrayLike) -> Estimate:
    r"""$I = \tfrac12\ln\frac{\det\Sigma_x\det\Sigma_y}{\det\Sigma} = -\tfrac12\sum_i\ln(1 - \rho_i^2)$ nats, ρ_i the
    canonical correlations, from `x (N, dx)`, `y (N, dy)` as if they were jointly Gaussian.

    The plug-in value is too high by about dx·dy/2N. Its mean for Gaussian data is known, as $E\ln\det S_d =
    \ln\det\Sigma_d + \sum_{k=1}^d\psi(\tfrac{N-k}2) - d\ln\tfrac{N-1}2$, and is taken off: unbiased for them, for every
    N > dx + dy. For other data it is the information of no distribution in particular (Gaussian marginals: a lower
    bound).

    `limit` is inf. If one variable is a linear function of the other the value is inf, or what rounding leaves of it;
    `saturated` then: some 1 − ρ² is below 100 machine epsilons. Constant or linearly dependent features within x or y
    have no density: an error, or NaN under tracing.

    By QR of both centred arrays and the singular values of Q_xᵀQ_y: O(N (dx + dy)²) time, O(N (dx + dy)) memory; no
    covariance is formed, so float32 loses ε/(1 − ρ²) only. Raises `TypeError`/`ValueError` for bad samples, labels, N ≤
    dx + dy, or a singular marginal covariance. Source: Misra, Singh and Demchuk, DOI 10.1016/j.jmva.2003.10.003; Cover
    and Thomas §8.5.
    """
    owner = "mutual_information"
    x, y = continuous(owner, "x", x), continuous(owner, "y", y)
    count, dims = paired(owner, x, y), x.shape[1] + y.shape[1]
    if count <= dims:
        raise ValueError(
            f"{owner}: {count} samples are too few for {dims} features together; it needs more samples than features. "
            "Project to fewer."
        )
    found = _from_correlations(x, y.astype(x.dtype))
    if not traced(found.value) and bool(jnp.isnan(found.value)):
        raise ValueError(
            f"{owner}: x or y has constant or linearly dependent features, whose covariance is singular; leave them "
            "out, "
            "project to fewer (principal components), or add noise."
        )
    return found


@eqx.filter_jit
def _from_correlations(x: Float[Array, "N dx"], y: Float[Array, "N dy"]) -> Estimate:
    count, dx, dy = x.shape[0], x.shape[1], y.shape[1]
    (qx, full_x), (qy, full_y) = _basis(x), _basis(y)
    rho = jnp.clip(jnp.linalg.svd(qx.T @ qy, compute_uv=False), 0.0, 1.0)
    left = (1 - rho) * (1 + rho)
    bias = 0.5 * (_bias(count, dx) + _bias(count, dy) - _bias(count, dx + dy))
    value = jnp.where(full_x & full_y, -0.5 * jnp.sum(jnp.log(left)) - bias, jnp.nan)
    sharp = jnp.min(left) < 100 * jnp.finfo(x.dtype).eps
    return record(poisoned(value, x, y), jnp.inf, sharp, "neither", count, None)


def _basis(x: Array) -> tuple[Array, Array]:
    """An orthonormal basis of the centred, scaled features, and whether they are independent."""
    q, r = jnp.linalg.qr(standard(x))
    diagonal = jnp.abs(jnp.diagonal(r))
    tolerance = 10 * x.shape[1] * float(jnp.finfo(x.dtype).eps)
    return q, jnp.min(diagonal) > tolerance * jnp.sqrt(jnp.asarray(x.shape[0], x.dtype))


def _bias(count: int, dims: int) -> float:
    """E ln det S − ln det Σ of a sample covariance of `dims` features."""
    return float(np.sum(digamma(0.5 * (count - np.arange(1, dims + 1)))) - dims * np.log(0.5 * (count - 1)))


def gaussian_entropy(x: Float[Array, "b d"]) -> Float[Array, ""]:
    r"""Differential entropy $\tfrac12\ln\det(2\pi e\Sigma)$ in nats from samples `x (b, d)`, as if they were Gaussian.

    Unbiased for Gaussian samples: $E\ln\det S = \ln\det\Sigma + \sum_{k=1}^d\psi\big(\tfrac{b-k}2\big) - d\ln\tfrac{b-1}2$
    for the sample covariance S. For any other distribution it lies *above* the entropy, since the Gaussian has the most for
    its covariance. Features that are constant or linearly dependent have no density: NaN.

    Raises `ValueError` unless b > d. Source: Misra, Singh and Demchuk 2005, DOI 10.1016/j.jmva.2003.10.003.
    """
    shape = jnp.shape(x)
    if len(shape) != 2 or shape[0] <= shape[1]:
        raise ValueError(
            f"gaussian_entropy: x has shape {shape}; it must be (b, d) with more rows than features, else the covariance "
            "is singular. Take a larger batch or project to fewer features."
        )
    b, d = shape
    off = x - jnp.mean(x, axis=0, keepdims=True)
    factor = jnp.linalg.cholesky(off.T @ off / (b - 1))
    bias = sum(float(digamma(0.5 * (b - k))) for k in range(1, d + 1)) - d * math.log(0.5 * (b - 1))
    return jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * (d * math.log(2 * math.pi * math.e) - bias)
