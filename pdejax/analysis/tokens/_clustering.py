r"""Clustering of tokens over depth: pairwise cosines, clusters, effective rank, distance to consensus.

The limits are Dong et al., arXiv 2103.03404 (attention alone loses rank) and Geshkovski et al., arXiv 2312.10794
(tokens on the sphere cluster, in the end into one point).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import check_bootstrap, compare_all
from pdejax._check import integer, number, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states, paired_states
from pdejax.terms._base import at_least_float32

_FIGURES = ("cosine", "clusters", "effective_rank", "residual", "diameter", "distance")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class TokenClustering(AbstractRecord):
    r"""How close tokens are to one another, per layer. Means over sequences of each sequence's figure, beside one null:
    `"random directions"`, or `"untrained"` where given.

    - `edges (bins + 1,)`, `histogram (layers, bins)` (without interval): share of token pairs whose cosine lies in each bin.
    - `quantiles (layers, 5)`: 5, 25, 50, 75 and 95 % of the pairwise cosines, interpolated in the histogram: good to one bin.
    - `cosine (layers,)`: mean pairwise cosine. `gap (layers,)`: 1 − that, to full relative accuracy also near 0.
    - `clusters`: connected components of the graph in which tokens of cosine above `threshold` are joined.
    - `effective_rank`: $\exp(-\sum_ip_i\ln p_i)$, $p_i = \sigma_i/\sum_j\sigma_j$, σ the singular values of the token
      matrix (n, d): 1 when all tokens are parallel (Roy & Vetterli 2007). 0 for a field of zeros.
    - `residual`: $\|u - \mathbf 1\mu^\top\|_F/\|u\|_F$, what is left without the mean token; 0 at consensus.
    - `diameter`: largest distance of two tokens, `distance`: mean distance of pairs, in units of u.
    """

    edges: Float[Array, "..."]
    histogram: Figure
    quantiles: Float[Array, "..."]
    gap: Float[Array, "..."]
    cosine: Figure
    clusters: Figure
    effective_rank: Figure
    residual: Figure
    diameter: Figure
    distance: Figure
    threshold: Float[Array, "..."]


@checked
def token_clustering(
    states: Trajectory | ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    threshold: ArrayLike = 0.99,
    untrained: Trajectory | ArrayLike | None = None,
    bins: int = 80,
    level: float = 0.95,
    resamples: int = 500,
) -> TokenClustering:
    r"""Clustering and rank collapse of hidden states `(layers, [b,] n, d)`, per layer; see
    [`TokenClustering`][pdejax.analysis.tokens._clustering.TokenClustering] for the figures.

    - `threshold`: cosine above which two tokens are joined. Clusters are those of single linkage: a chain of close tokens is
      one cluster, however far its ends are apart. 0.99 is an angle of 8°; report it with the number.
    - `untrained`: states of an untrained system of the same layers, sequences and tokens as the null. Without, tokens of the
      same norms in independent random directions: mean cosine 0, no clusters, the effective rank of a Gaussian matrix.
    - `bins` of the histogram over [−1, 1]. `key` (default `jax.random.key(0)`), `level`, `resamples`: for the null and the
      bootstrap over sequences.

    A token that is 0 has cosine 0 with every other and is a cluster of its own. A sequence of one real token has cosine 1,
    one cluster, residual and distances 0.

    `gap` is $\frac{n}{n-1}\frac1n\sum_i\|\hat u_i - \bar{\hat u}\|^2$ over unit vectors, which does not cancel: it follows a
    collapse to 1e-15 in float32 (1e-32 in float64) if the states themselves do. Distances are taken from the mean token.

    Cost per layer and sequence O(n²d) and an SVD of (n, d), one sequence at a time: three n × n matrices of memory. Clusters by
    repeated minimum over neighbours with pointer jumping, O(n² log n) in practice. Raises `ValueError`/`TypeError` for
    states, masks, bins, or a threshold outside (−1, 1).
    """
    key = jax.random.key(0) if key is None else key
    owner = "token_clustering"
    s = hidden_states(owner, "states", states, mask)
    check_bootstrap(owner, level, resamples)
    integer(owner, "bins", bins, 2)
    if not traced(threshold):
        number(owner, "threshold", threshold, above=-1, below=1, advice="it is a cosine, such as 0.99")
    dtype = at_least_float32(s.u.dtype)
    limit = jnp.asarray(threshold).astype(dtype)
    drawn, draw = jax.random.split(key)
    if untrained is None:
        other = random_directions(s.u, s.mask, drawn)
    else:
        other = paired_states(owner, ("states", "untrained"), states, untrained, mask)[1].u.astype(s.u.dtype)
    here, histogram = _clustering(s.u, s.mask, limit, bins)
    there, null_histogram = _clustering(other, s.mask, limit, bins)
    null = "random directions" if untrained is None else "untrained"
    figures = {name: (here[..., i + 1], {null: there[..., i + 1]}) for i, name in enumerate(_FIGURES)}
    compared = _compare_all(figures, key=draw, level=level, resamples=resamples)
    edges = jnp.linspace(-1, 1, bins + 1, dtype=dtype)
    shares = [jnp.mean(h, axis=0) for h in (histogram, null_histogram)]
    return TokenClustering(
        edges=edges,
        histogram=Figure(shares[0], nulls={null: shares[1]}, level=level),
        quantiles=_quantiles(shares[0], edges),
        gap=jnp.mean(here[..., 0], axis=0),
        threshold=limit,
        **compared,
    )


def random_directions(
    u: Float[Array, "layers b n d"], mask: Bool[Array, "b n"], key: PRNGKeyArray
) -> Float[Array, "layers b n d"]:
    """Every real token replaced by one of the same norm in an independent, uniformly random direction."""
    return _random_directions(u, mask, key)


def effective_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    r"""$\exp(-\sum_ip_i\ln p_i)$ with $p_i = s_i/\sum_js_j$ for values s ≥ 0 (negative ones, rounding, count as 0): between 1
    and the number of values that are not 0; 0 if all are. Source: Roy & Vetterli, EUSIPCO 2007."""
    s = jnp.maximum(values, 0)
    total = jnp.sum(s)
    p = s / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def count_components(joined: Bool[Array, "n n"], mask: Bool[Array, " n"]) -> Int[Array, ""]:
    """Number of connected components among the vertices in `mask` of the graph with this symmetric adjacency.

    Every vertex takes the least label among its neighbours' and its own, then that label's label, until nothing changes: a
    label is always a vertex of the same component, so the end is one label per component."""
    n = mask.shape[0]
    joined = (joined & mask[:, None] & mask[None, :]) | jnp.eye(n, dtype=bool)
    own = jnp.arange(n)

    def spread(state):
        labels, _ = state
        least = jnp.min(jnp.where(joined, labels[None, :], n), axis=1)
        least = least[least]
        return least, jnp.any(least != labels)

    labels, _ = jax.lax.while_loop(lambda state: state[1], spread, (own, jnp.asarray(True)))
    return jnp.sum((labels == own) & mask)


_compare_all = eqx.filter_jit(compare_all)


@jax.jit
def _random_directions(u: Array, mask: Array, key: PRNGKeyArray) -> Array:
    dtype = at_least_float32(u.dtype)

    def layer(item):
        x, key = item
        x = jnp.where(mask[:, :, None], x.astype(dtype), 0)
        z = jax.random.normal(key, x.shape, dtype)
        size = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
        return (size * _unit(z)).astype(u.dtype)

    return jax.lax.map(layer, (u, jax.random.split(key, u.shape[0])))


@eqx.filter_jit
def _clustering(u: Array, mask: Array, threshold: Array, bins: int) -> tuple[Array, Array]:
    """Figures (b, layers, 7) and histograms (b, layers, bins)."""

    def layer(x):
        return jax.lax.map(lambda item: _sequence(item[0], item[1], threshold, bins), (x, mask))

    figures, histogram = jax.lax.map(layer, u)
    return jnp.moveaxis(figures, 0, 1), jnp.moveaxis(histogram, 0, 1)


def _sequence(x: Array, mask: Array, threshold: Array, bins: int) -> tuple[Array, Array]:
    x = jnp.where(mask[:, None], x.astype(at_least_float32(x.dtype)), 0)
    n = jnp.sum(mask).astype(x.dtype)
    pairs = jnp.maximum(n * (n - 1), 1)
    single = n < 2
    between = mask[:, None] & mask[None, :] & jnp.logical_not(jnp.eye(x.shape[0], dtype=bool))

    unit = _unit(x)
    gap, cosines = _gap(unit, mask, n), jnp.clip(unit @ unit.T, -1, 1)
    clusters = count_components(cosines > threshold, mask).astype(x.dtype)
    place = jnp.clip(jnp.floor((cosines + 1) * (bins / 2)), 0, bins - 1).astype(int)
    counts = jnp.zeros(bins, x.dtype).at[place].add(between.astype(x.dtype))
    histogram = jnp.where(single, jnp.zeros(bins, x.dtype).at[-1].set(1), counts / pairs)

    mean = jnp.sum(x, axis=0) / n
    moved = jnp.where(mask[:, None], x - mean[None], 0)
    own = jnp.sum(moved**2, axis=1)
    squared = jnp.maximum(own[:, None] + own[None, :] - 2 * moved @ moved.T, 0)
    distances = jnp.where(between, jnp.sqrt(squared), 0)
    size = jnp.sqrt(jnp.sum(x**2))
    residual = jnp.sqrt(jnp.sum(own)) / jnp.where(size > 0, size, 1)
    # Singular values themselves: through the Gram matrix small ones would drown in the root of rounding.
    rank = effective_rank(jnp.linalg.svd(x, compute_uv=False))
    figures = [gap, 1 - gap, clusters, rank, residual, jnp.max(distances), jnp.sum(distances) / pairs]
    return jnp.stack(figures), histogram


def _gap(unit: Array, mask: Array, n: Array) -> Array:
    """Mean of 1 − cosine over pairs of tokens. A token that is 0 has cosine 0 with all others."""
    present = jnp.sum(unit**2, axis=1) > 0
    count = jnp.sum(present).astype(unit.dtype)
    mean = jnp.sum(unit, axis=0) / jnp.maximum(count, 1)
    spread = jnp.sum(jnp.where(present[:, None], (unit - mean[None]) ** 2, 0))
    # Sum over ordered pairs of present tokens, then 1 for every pair with a token that is 0.
    absent = n * (n - 1) - count * (count - 1)
    return (count * spread + absent) / jnp.maximum(n * (n - 1), 1)


def _unit(x: Array) -> Array:
    """Unit vectors; zero stays zero. Scaled by the largest entry first, so that squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    size = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
    return x / jnp.where(size > 0, size, 1)


def _quantiles(histogram: Array, edges: Array) -> Array:
    """Quantiles of every row, linear inside a bin."""
    at = jnp.asarray(QUANTILES, edges.dtype)
    below = jnp.concatenate([jnp.zeros_like(histogram[..., :1]), jnp.cumsum(histogram, axis=-1)], axis=-1)

    def row(c):
        place = jnp.clip(jnp.searchsorted(c, at, side="left"), 1, c.shape[0] - 1)
        step = c[place] - c[place - 1]
        part = jnp.clip((at - c[place - 1]) / jnp.where(step > 0, step, 1), 0, 1)
        return edges[place - 1] + part * (edges[place] - edges[place - 1])

    return jax.vmap(row)(below)
