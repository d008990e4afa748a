r"""Statistics of representations, layer by layer: effective dimension, sparsity, magnitude, diversity (v2 App. A.2)."""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import beside, bootstrap, check_bootstrap
from pdejax._check import choice, number, traced
from pdejax._figure import AbstractRecord, Figure, none_of
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states
from pdejax.analysis.tokens._clustering import effective_rank
from pdejax.terms._base import at_least_float32

Null = Literal["gaussian", "shuffled"]
_FIGURES = (
    "participation",
    "participation_ratio",
    "effective_rank",
    "sparsity",
    "magnitude",
    "rms",
    "diversity",
    "diversity_cosine",
)


class Representation(AbstractRecord):
    r"""Statistics per layer, each `(layers,)` beside the null asked for, `"gaussian"` or `"shuffled"`. Samples are all real
    tokens of all sequences, with covariance C over features, eigenvalues λ.

    - `participation`: $(\sum\lambda)^2/\sum\lambda^2$, between 1 and d; `participation_ratio`: divided by d.
    - `effective_rank`: $\exp(-\sum p\ln p)$, $p = \lambda/\sum\lambda$ (Roy & Vetterli 2007, of the covariance matrix).
    - `sparsity`: share of entries with |u| < `threshold`, from 0 to 1. `magnitude`: mean |u|. `rms`: √(mean u²).
    - `diversity`: variance over sequences (unbiased) of the pooled representation, the mean over real tokens, averaged over
      features; in squared units of u. `diversity_cosine`: 1 − the mean cosine between pooled representations of two
      sequences (those that are 0 left out). Both NaN for a single sequence, which has none.
    """

    participation: Figure
    participation_ratio: Figure
    effective_rank: Figure
    sparsity: Figure
    magnitude: Figure
    rms: Figure
    diversity: Figure
    diversity_cosine: Figure
    threshold: Float[Array, ""]


@checked
def representation(
    states: Trajectory | ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    threshold: ArrayLike = 0.01,
    null: Null = "gaussian",
    level: float = 0.95,
    resamples: int = 200,
) -> Representation:
    r"""Statistics of the representations in hidden states `(layers, [b,] n, d)`; see
    [`Representation`][pdejax.analysis.tokens._representation.Representation] for each.

    - `threshold` θ of the sparsity, absolute, in units of u. v2 (Figure 10: 0.99 % → 0.59 %) does not give its own. A
      Gaussian of the magnitude it states, mean |u| = 0.631, has 1.01 % of its entries below 0.01 in modulus, hence the default
      (at the output, 0.856, it would have 0.74 %). For Gaussian u sparsity is $\mathrm{erf}(\theta/\sqrt{\pi}\,m)$, m the
      magnitude: it says nothing that the magnitude does not. A relative threshold is `threshold` divided by the RMS before.
    - `null`: `"gaussian"`, independent features and tokens with the mean and variance of each feature, one draw per layer;
      `"shuffled"`, every feature's values in an order of its own over all real tokens: marginals kept, all dependence lost.
      The null has as many samples, so a bias of the same kind: isotropic samples of N tokens have a participation ratio of
      about d/(1 + d/N).
    - v2's diversity (0.000115 → 0.000114 → 0.000134) is not defined there either. The variance of pooled means is σ²/n for
      independent tokens: 6e-4 at n = 1000 for a Gaussian of v2's magnitude; 1 − cosine is the other reading.

    Intervals: bootstrap over sequences (`key`, default `jax.random.key(0)`, `level`,
    `resamples`), which counts tokens of one sequence as dependent:
    percentiles, moved so that their median is the value (a resample repeats sequences, which lowers dimensions and
    diversity); NaN ends for a single sequence. Constant states: participation and effective rank 0. For the dimension of
    pooled representations give those as sequences of one token.

    Cost O(layers·(b·n + `resamples`·b) d²) and two eigenvalue problems of d × d per layer, one layer at a time (the effective
    rank is resampled to first order in the covariance: its ends are good to about a fifth of the interval's width, with 24
    sequences); memory b·d² per layer beside two copies of a layer. Two passes: float32 is good to about 1e-5 relative.
    Raises `ValueError`/`TypeError` for states, masks, a null that is unknown or a threshold that is not positive.
    """
    key = jax.random.key(0) if key is None else key
    owner = "representation"
    s = hidden_states(owner, "states", states, mask)
    check_bootstrap(owner, level, resamples)
    choice(owner, "null", null, get_args(Null))
    if not traced(threshold):
        number(owner, "threshold", threshold, above=0, advice="it is in the units of the states")
    limit = jnp.asarray(threshold).astype(at_least_float32(s.u.dtype))
    found = _representation(s.u, s.mask, limit, key, null, level, resamples)
    figures = {name: found[:, i] for i, name in enumerate(_FIGURES)}
    if s.u.shape[1] == 1:  # one sequence has no spread over sequences: NaN, made outside of the compiled program
        figures |= {name: jax.tree.map(none_of, figures[name]) for name in ("diversity", "diversity_cosine")}
    return Representation(**figures, threshold=limit)


@eqx.filter_jit
def _representation(
    u: Array, mask: Array, threshold: Array, key: Array, null: str, level: float, resamples: int
) -> Figure:
    b = u.shape[1]

    def layer(item):
        x, key = item
        x = jnp.where(mask[:, :, None], x.astype(at_least_float32(x.dtype)), 0)
        drawing, draw = jax.random.split(key)
        here = _moments(x, mask, threshold)
        there = _moments(_null(x, mask, drawing, null), mask, threshold)
        bases = _entropy(here), _entropy(there)

        def statistic(weights):
            value, other = _figures(here, bases[0], weights), _figures(there, bases[1], weights)
            return value, other, value - other

        # Sequences that are drawn twice lower every dimension: the plain interval can lie below the value as a whole.
        options = {"key": draw, "level": level, "resamples": resamples, "dtype": x.dtype, "median": True}
        value, other, gap = bootstrap(statistic, b, **options)
        # Figures themselves cannot be negative, differences can.
        value, other = (
            f if f.ends is None else Figure(f.value, jnp.maximum(f.low, 0), jnp.maximum(f.high, 0), level=level)
            for f in (value, other)
        )
        return beside(value, {null: other}, {null: gap})

    return jax.lax.map(layer, (u, jax.random.split(key, u.shape[0])))


class _Moments(eqx.Module):
    """Sums per sequence, of tokens less `centre` for `first` and `second`; pooled means less it too."""

    count: Array
    first: Array
    second: Array
    squares: Array
    moduli: Array
    small: Array
    centre: Array
    pooled: Array


def _moments(x: Array, mask: Array, threshold: Array) -> _Moments:
    real = mask[:, :, None]
    count = jnp.sum(mask, axis=1).astype(x.dtype)
    centre = jnp.sum(x, axis=(0, 1)) / jnp.sum(count)
    moved = jnp.where(real, x - centre[None, None], 0)
    first = jnp.sum(moved, axis=1)
    return _Moments(
        count,
        first,
        jnp.einsum("bnd,bne->bde", moved, moved),
        jnp.sum(x**2, axis=(1, 2)),
        jnp.sum(jnp.abs(x), axis=(1, 2)),
        jnp.sum((jnp.abs(x) < threshold) & real, axis=(1, 2)).astype(x.dtype),
        centre,
        first / count[:, None],
    )


class _Entropy(eqx.Module):
    """Logarithm of the effective rank of the covariance `scaled` to trace 1, and its gradient −log of that matrix."""

    value: Array
    gradient: Array
    scaled: Array


def _covariance(m: _Moments, weights: Array) -> tuple[Array, Array, Array]:
    """Covariance over features divided by its trace, whether there is any variance, and the mean square of a token."""
    number = jnp.sum(weights * m.count)
    mean = jnp.tensordot(weights, m.first, axes=1) / number
    covariance = jnp.tensordot(weights, m.second, axes=1) / number - mean[:, None] * mean[None, :]
    # Variances that are rounding of the mean square are none.
    squared = jnp.sum(weights * m.squares) / number
    total = jnp.trace(covariance)
    varies = total > 16 * jnp.finfo(mean.dtype).eps ** 2 * squared
    return covariance / jnp.where(varies, total, 1), varies, squared


def _entropy(m: _Moments) -> _Entropy:
    scaled, varies, _ = _covariance(m, jnp.ones_like(m.count))
    values, vectors = jnp.linalg.eigh(jnp.where(varies, scaled, jnp.eye(scaled.shape[0], dtype=scaled.dtype)))
    least = scaled.shape[0] * jnp.finfo(scaled.dtype).eps
    gradient = -(vectors * jnp.log(jnp.maximum(values, least))[None]) @ vectors.T
    return _Entropy(jnp.log(effective_rank(values)), gradient, scaled)


def _figures(m: _Moments, base: _Entropy, weights: Array) -> Array:
    """The eight figures when sequence i counts `weights[i]` times."""
    d = m.first.shape[1]
    scaled, varies, squared = _covariance(m, weights)
    participation = jnp.where(varies, 1 / jnp.where(varies, jnp.sum(scaled**2), 1), 0)
    # To first order about the data themselves, where it is exact: an eigenvalue problem per resample would cost far more.
    rank = jnp.where(varies, jnp.exp(base.value + jnp.sum(base.gradient * (scaled - base.scaled))), 0)
    entries = jnp.sum(weights * m.count) * d

    sequences = jnp.sum(weights)
    middle = jnp.tensordot(weights, m.pooled, axes=1) / sequences
    spread = jnp.sum(weights * jnp.sum((m.pooled - middle[None]) ** 2, axis=1))
    several = sequences > 1
    diversity = spread / (d * jnp.where(several, sequences - 1, 1))

    # 1 − cos of two unit vectors is half their squared distance, which does not cancel. A drawn sequence and its own copy
    # are no pair, and have no distance; pooled means that are 0 have no direction.
    pooled = m.pooled + m.centre[None]
    size = jnp.sqrt(jnp.sum(pooled**2, axis=1, keepdims=True))
    unit = pooled / jnp.where(size > 0, size, 1)
    w = jnp.where(size[:, 0] > 0, weights, 0)
    counted = jnp.sum(w)
    towards = jnp.tensordot(w, unit, axes=1) / jnp.where(counted > 0, counted, 1)
    pairs = counted**2 - jnp.sum(w**2)
    apart = counted * jnp.sum(w * jnp.sum((unit - towards[None]) ** 2, axis=1)) / jnp.where(pairs > 0, pairs, 1)
    return jnp.stack(
        [
            participation,
            participation / d,
            rank,
            jnp.sum(weights * m.small) / entries,
            jnp.sum(weights * m.moduli) / entries,
            jnp.sqrt(squared / d),
            diversity,
            apart,
        ]
    )


def _null(x: Array, mask: Array, key: Array, null: str) -> Array:
    real = mask[:, :, None]
    if null == "gaussian":
        number = jnp.sum(mask).astype(x.dtype)
        mean = jnp.sum(x, axis=(0, 1)) / number
        deviation = jnp.sqrt(jnp.sum(jnp.where(real, (x - mean[None, None]) ** 2, 0), axis=(0, 1)) / number)
        drawn = mean[None, None] + deviation[None, None] * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(real, drawn, 0)
    flat, places = x.reshape(-1, x.shape[-1]), mask.ravel()
    # Real values in a random order of their own for each feature, then the padding; real places take them in turn.
    noise = jnp.where(places[:, None], jax.random.uniform(key, flat.shape, x.dtype), 2)
    mixed = jnp.take_along_axis(flat, jnp.argsort(noise, axis=0), axis=0)
    where = jnp.argsort(jnp.where(places, 0, 1), stable=True)
    return jnp.zeros_like(flat).at[where].set(mixed).reshape(x.shape)
