"""Entropy of samples, and information between two samples."""

import inspect
import math
from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import choice, traced
from pdejax.analysis.information._counting import (
    binned_information,
    checked_bins,
    checked_noise,
    codes,
    gaussian_entropy,
    gaussian_information,
    inner_edges,
    kde_information,
    log_sums,
    plug_in,
)
from pdejax.analysis.information._neighbours import knn_distances, ksg_information
from pdejax.analysis.information._samples import (
    Estimate,
    Kind,
    by_block,
    checked_neighbours,
    continuous,
    is_labels,
    labels,
    poisoned,
    square_distance,
)
from pdejax.analysis.information.trained._fit import TRAINED, trained_information

EntropyEstimator = Literal["binned", "kde", "gaussian", "knn"]


@checked
def entropy(
    x: ArrayLike, estimator: str = "knn", *, noise: ArrayLike | None = None, key: PRNGKeyArray | None = None, **options
) -> Estimate:
    r"""Entropy of samples `x (N,)` or `(N, d)`, nats. Differential, for a density per unit of x, unless said otherwise:

    - `"knn"` (`k=3`): $\psi(N) - \psi(k) + d\ln 2 + \tfrac dN\sum_i\ln r_i$, r_i the distance to the k-th neighbour in
      the maximum norm: Kozachenko and Leonenko 1987; Kraskov et al., arXiv cond-mat/0305641, (20). O(N²(d + k)).
    - `"kde"` with `noise` σ: bounds of the entropy of the mixture of N(x_i, σ²), $\tfrac d2\ln(2\pi e\sigma^2) -
      \tfrac1N\sum_i\ln\tfrac1N\sum_je^{-\|x_i-x_j\|^2/(2\sigma^2)}$ (8σ² for `bound="lower"`): Kolchinsky and Tracey,
      arXiv 1706.02419. `limit` = ½d ln 2πeσ² + ln N. Without `noise`: minus the mean log of a Gaussian kernel density
      that leaves the sample itself out, bandwidth $s_fN^{-1/(d+4)}$ per feature (Scott). O(N² d).
    - `"gaussian"`: ½ ln det 2πeΣ without bias, the most that this covariance allows:
      [`gaussian_entropy`][pdejax.analysis.information._counting.gaussian_entropy]. Needs N > d.
    - `"binned"` (`bins=None, edges="quantile", correction=True, differential=True`): Ĥ of the cells (Miller–Madow) plus
      the mean log of their volume. `differential=False`: Ĥ of the cells alone, as representations are often measured
      (`edges="equal"`, `bins=30`); it depends on the bins, with `limit` = ln of the number of cells or of N. `bins`
      defaults to $\lfloor(N/5)^{1/d}\rfloor\ge2$; in many dimensions every sample has a cell of its own: `saturated`.
      Integer labels: Ĥ of the counts.

    `noise` σ > 0 is added to x (`key` needed), for `"kde"` in the formula: the entropy of x + σξ. Noiseless
    representations on fewer dimensions than features have entropy −∞; say a σ.

    Raises `TypeError`/`ValueError` for bad samples, an unknown estimator or option, N ≤ k, N ≤ d (`"gaussian"`), a
    missing key, or data without density: constant or dependent features, repeated values (`"knn"`, `"kde"` without
    noise, `"binned"` if a bin has no width). Under tracing those give −inf; values that are not finite give NaN.
    """
    choice("entropy", "estimator", estimator, get_args(EntropyEstimator))
    if is_labels(x):
        if estimator != "binned":
            raise TypeError(
                f'entropy: x holds integers, which have no density; "{estimator}" cannot serve. Take "binned".'
            )
        if noise is not None:
            raise ValueError("entropy: noise is for floats; x holds integers.")
        if set(options) - {"correction"}:
            raise TypeError(f"entropy: integers are counted as they are; {', '.join(options)} cannot serve.")
        return _cells(labels("entropy", "x", x), 2, bool(options.get("correction", True)), "quantile")
    x = continuous("entropy", "x", x)
    sigma = None if noise is None else checked_noise("entropy", noise, x.dtype)
    if sigma is not None and estimator != "kde":
        x = with_noise("entropy", x, sigma, key)
    try:
        found = _ESTIMATORS[estimator](x, sigma, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise TypeError(
                f'entropy: "{estimator}" has no such option: {", ".join(options)}. See the docstring.'
            ) from None
        raise
    if not traced(found.value) and not bool(jnp.isfinite(found.value)):
        raise ValueError(
            f'entropy: x has no density as far as "{estimator}" can tell (value {float(found.value)}): features are '
            "constant, "
            "linearly dependent or hold repeated values. Leave them out, or add noise (noise=, key=)."
        )
    return eqx.tree_at(lambda e: e.noise, found, sigma, is_leaf=lambda leaf: leaf is None)


def with_noise(owner: str, x: Float[Array, "N d"], sigma: Array, key: PRNGKeyArray | None) -> Float[Array, "N d"]:
    """x + σξ; `ValueError` without a key."""
    if key is None:
        raise ValueError(f"{owner}: noise={sigma} is drawn and added; give key=jax.random.key(...).")
    return x + sigma * jax.random.normal(key, x.shape, x.dtype)


def _knn(x: Array, sigma: Array | None, k: int = 3) -> Estimate:
    del sigma
    return _knn_core(x, checked_neighbours("entropy", k, x.shape[0]))


@eqx.filter_jit
def _knn_core(x: Array, k: int) -> Estimate:
    count, d = x.shape
    constant = digamma(jnp.asarray(count, x.dtype)) - digamma(jnp.asarray(k, x.dtype)) + d * math.log(2)
    value = constant + d * jnp.mean(jnp.log(knn_distances(x, k)))
    return _record(poisoned(value, x), jnp.inf, False, "neither", count)


def _kde(x: Array, sigma: Array | None, bound: str = "upper") -> Estimate:
    if bound not in ("upper", "lower"):
        raise ValueError(f'entropy: bound={bound!r} is unknown; choose "upper" or "lower".')
    return _smoothed(x) if sigma is None else _mixture(x, sigma, bound)


@eqx.filter_jit
def _mixture(x: Array, sigma: Array, bound: Kind) -> Estimate:
    count, d = x.shape
    sums = log_sums(x, sigma, 2.0 if bound == "upper" else 8.0)
    own = d * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(sigma))
    value = own + math.log(count) - jnp.mean(sums)
    return _record(poisoned(value, x), own + math.log(count), jnp.median(sums) < math.log(2), bound, count)


@eqx.filter_jit
def _smoothed(x: Array) -> Estimate:
    count, d = x.shape
    width = jnp.std(x, axis=0, ddof=1) * count ** (-1 / (d + 4))
    scaled = (x - jnp.mean(x, axis=0, keepdims=True)) / jnp.where(width > 0, width, 1)[None]
    index = jnp.arange(count)

    def block(i, rows):
        exponent = jnp.where(index[:, None] != i[None], -0.5 * square_distance(scaled, rows), -jnp.inf)
        return jax.nn.logsumexp(exponent, axis=0)

    logs = by_block(block, (index, scaled), count)
    value = math.log(count - 1) - jnp.mean(logs) + jnp.sum(jnp.log(width)) + 0.5 * d * math.log(2 * math.pi)
    return _record(poisoned(value, x), jnp.inf, False, "neither", count)


def _gaussian(x: Array, sigma: Array | None) -> Estimate:
    del sigma
    return _gaussian_core(x)


@eqx.filter_jit
def _gaussian_core(x: Array) -> Estimate:
    value = gaussian_entropy(x)
    # A singular covariance has no Cholesky factor.
    value = poisoned(jnp.where(jnp.isnan(value), -jnp.inf, value), x)
    return _record(value, jnp.inf, False, "neither", x.shape[0])


def _binned(
    x: Array,
    sigma: Array | None,
    bins: int | None = None,
    edges: str = "quantile",
    correction: bool = True,
    differential: bool = True,
) -> Estimate:
    del sigma
    bins = checked_bins("entropy", bins, edges, x.shape[0], x.shape[1])
    return _volumes(x, bins, bool(correction), edges) if differential else _cells(x, bins, bool(correction), edges)


@eqx.filter_jit
def _cells(x: Array, bins: int, correction: bool, edges: str) -> Estimate:
    count, dtype = x.shape[0], x.dtype if x.ndim == 2 else jnp.result_type(float)
    value, occupied, alone = plug_in(codes(x, bins, edges), dtype)
    most = math.log(count) if x.ndim == 1 else min(math.log(count), x.shape[1] * math.log(bins))
    if correction:
        value = jnp.minimum(value + (occupied - 1) / (2 * count), most)
    return _record(poisoned(value, x), most, alone > 0.5, "neither", count)


@eqx.filter_jit
def _volumes(x: Array, bins: int, correction: bool, edges: str) -> Estimate:
    cells = _cells(x, bins, correction, edges)

    def log_width(total, column):
        inner = inner_edges(column, bins, edges)
        ends = jnp.concatenate([jnp.min(column)[None], inner, jnp.max(column)[None]])
        return total + jnp.mean(jnp.log(jnp.diff(ends)[jnp.searchsorted(inner, column, side="right")])), None

    volume, _ = lax.scan(log_width, jnp.zeros((), x.dtype), x.T)
    value = poisoned(cells.value + volume, x)
    return _record(value, cells.limit + volume, cells.saturated, "neither", x.shape[0])


def _record(value: Array, limit, saturated, kind: Kind, samples: int) -> Estimate:
    return Estimate(value, jnp.asarray(limit, value.dtype), jnp.asarray(saturated), None, kind, samples)


_ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "knn": _knn,
    "kde": _kde,
    "gaussian": _gaussian,
    "binned": _binned,
}


Estimator = Literal["ksg", "binned", "kde", "gaussian", "infonce", "club"]
_COUNTED = {"ksg": ksg_information, "binned": binned_information, "gaussian": gaussian_information}


@checked
def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    estimator: str = "ksg",
    *,
    noise: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    **options,
) -> Estimate:
    r"""I(X; Y) in nats from N independent pairs `x (N,)` or `(N, dx)`, `y (N,)` or `(N, dy)`; integers are class labels.

    | estimator | options | labels | kind | too low/high where |
    |---|---|---|---|---|
    | `"ksg"` | `k=3, variant=1, standardize=True` | one of the two | neither | low: I near ln N/k, many features |
    | `"binned"` | `bins=None, correction=True, edges="quantile"` | any | neither | high: few samples per cell |
    | `"kde"` | `bound="upper"` | one of the two | bound | needs the noiseless f(x) as y, and σ |
    | `"gaussian"` | | none | neither | exact for jointly Gaussian data alone |
    | `"infonce"` | `steps, batch_size, hidden, learning_rate` | any | lower | low: I above ln `batch_size` |
    | `"club"` | the same | one of the two | upper | high: sharp channels |

    See [`ksg_information`][pdejax.analysis.information._neighbours.ksg_information],
    [`binned_information`][pdejax.analysis.information._counting.binned_information],
    [`kde_information`][pdejax.analysis.information._counting.kde_information],
    [`gaussian_information`][pdejax.analysis.information._counting.gaussian_information],
    [`trained_information`][pdejax.analysis.information.trained._fit.trained_information] for equations, limits, saturation
    and cost.

    `noise` σ > 0 asks for I(X; Y + σξ), ξ ~ N(0, 1) on every feature: it is drawn with `key` and added, for `"kde"` it
    stands in the formula instead. It goes on the representation: y, or x where y holds labels. A noiseless smooth
    function of a continuous X has infinite information (claim C10); pairs with `noise=None` should hold their noise
    already.

    Gives an [`Estimate`][pdejax.analysis.information._samples.Estimate]. Under `jit` (estimator, options static) values are not
    looked at; the estimators say what degenerate data give.
    Raises `TypeError`/`ValueError` for an unknown estimator or option, bad samples, a missing key, a σ that is not
    positive, labels where none can be, or fewer pairs than the estimator needs.
    """
    check_options("mutual_information", estimator, options)
    if estimator == "kde":
        return kde_information(x, y, noise=noise, **options)  # pyright: ignore[reportArgumentType]
    sigma = None
    if noise is not None:
        x, y, sigma = _with_noise(x, y, noise, None if key is None else jax.random.fold_in(key, 1), estimator)
    if estimator in TRAINED:
        found = trained_information(x, y, estimator, key=key, **options)  # pyright: ignore[reportArgumentType]
    else:
        found = _COUNTED[estimator](x, y, **options)
    return eqx.tree_at(lambda e: e.noise, found, sigma, is_leaf=lambda leaf: leaf is None)


def check_options(owner: str, estimator: str, options: dict) -> None:
    """`ValueError` for an unknown estimator, `TypeError` for an option that it does not have."""
    choice(owner, "estimator", estimator, get_args(Estimator))
    function = {**_COUNTED, "kde": kde_information}.get(estimator, trained_information)
    taken = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    taken = [name for name in taken if name not in ("noise", "key")]
    wrong = [name for name in options if name not in taken]
    if wrong:
        raise TypeError(
            f'{owner}: "{estimator}" has no option {", ".join(wrong)}; it has {", ".join(taken) or "none"}.'
        )


def _with_noise(x, y, noise, key, estimator: str):
    owner = f'mutual_information with "{estimator}"'
    if is_labels(x) and is_labels(y):
        raise ValueError(f"{owner}: noise is for floats; x and y are both labels.")
    on_x = is_labels(y)
    clean = continuous(owner, "x" if on_x else "y", x if on_x else y)
    sigma = checked_noise(owner, noise, clean.dtype)
    noisy = with_noise(owner, clean, sigma, key)
    return (noisy, y, sigma) if on_x else (x, noisy, sigma)
