"""Estimates from nearest neighbours: Kraskov, Stögbauer and Grassberger."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float, Int

from pdejax._check import traced
from pdejax.analysis.information._samples import (
    Estimate,
    checked_neighbours,
    continuous,
    group,
    is_labels,
    labels,
    paired,
    poisoned,
    record,
    standard,
)

_OWNER = "mutual_information"
_UNROLL = 4


def ksg_information(
    x: ArrayLike, y: ArrayLike, *, k: int = 3, variant: int | str = 1, standardize: bool = True
) -> Estimate:
    r"""Nearest-neighbour estimate of I(X; Y), nats, in the maximum norm; `variant` says which.

    - 1: $\psi(k) + \psi(N) - \langle\psi(n_x + 1) + \psi(n_y + 1)\rangle$, n the number of samples strictly nearer in
      that variable than the k-th joint neighbour: Kraskov, Stögbauer and Grassberger (KSG), arXiv cond-mat/0305641,
      (8).
    - 2: $\psi(k) - 1/k + \psi(N) - \langle\psi(n_x) + \psi(n_y)\rangle$, n the number within the k neighbours' extent
      in that variable: (9) there. Less bias where I is large, more variance.
    - `"mixed"`: for repeated values and mixtures, $\langle\psi(k_i) - \psi(n_x) - \psi(n_y)\rangle + \ln N$ with the
      counts of 1, and where the k-th neighbour is at distance 0 with k_i, n the numbers of equal samples, itself
      included: Gao, Kannan, Oh and Viswanath, arXiv 1709.06212, Algorithm 1, but ψ(n) as in KSG where they print ln(n +
      1), which lies lower at small k.
    - Integer labels y (or x): $\psi(N) + \langle\psi(k_i) - \psi(N_{y_i}) - \psi(m_i)\rangle$, m the samples of any
      class nearer than the k-th of the own class: Ross, DOI 10.1371/journal.pone.0087357, (4). Classes of one sample
      are left out; smaller ones than k + 1 use all they have. `variant` is not used.

    `standardize` gives each feature variance 1: information does not depend on scale, the estimate does a little. The
    value may fall below 0 by its scatter; it is not clipped. `limit` is ψ(N) − ψ(k), about ln N/k (1/k less for 2), or
    ψ(N) − ⟨ψ(N_y)⟩ ≈ H(Y) for labels; `saturated` if the value comes within ln 2 of it (with labels never: H(Y) is the
    truth's limit too). Long before, and the more the higher the dimension, the value is too *low*: neighbourhoods are
    no longer small.

    O(N²(d + k)) time, O(N (d + k)) memory: no table of pairs. float32: distances are only
    compared, so that single counts may differ from float64 (1e-5 of the value at N = 300). Under `jit` values are not
    looked at: data with more than k equal pairs give a number without meaning, NaN gives NaN, labels without two of a
    kind NaN.

    Raises `TypeError`/`ValueError` for bad samples, N ≤ k, both discrete, or repeated values (not with `"mixed"`).
    """
    if variant not in (1, 2, "mixed"):
        raise ValueError(f'{_OWNER}: variant={variant!r} is unknown; choose 1, 2 or "mixed".')
    if is_labels(x) and is_labels(y):
        raise TypeError(
            f'{_OWNER}: x and y are both discrete data, which have no distances; take "binned", which counts them.'
        )
    if is_labels(x):
        x, y = y, x
    if is_labels(y):
        x, y = continuous(_OWNER, "the continuous variable", x, repeats=False), labels(_OWNER, "labels", y)
        checked_neighbours(_OWNER, k, paired(_OWNER, x, y))
        if not traced(y) and len(np.unique(np.asarray(y))) == len(y):
            raise ValueError(f"{_OWNER}: every label occurs once; labels are classes with several samples each.")
        return _with_labels(x, y, k, bool(standardize))
    mixed = variant == "mixed"
    x, y = continuous(_OWNER, "x", x, repeats=mixed), continuous(_OWNER, "y", y, repeats=mixed)
    checked_neighbours(_OWNER, k, paired(_OWNER, x, y))
    y = y.astype(x.dtype)
    return _information(x, y, k, variant, bool(standardize))


@eqx.filter_jit
def _information(x: Array, y: Array, k: int, variant: int | str, standardize: bool) -> Estimate:
    count, dtype = x.shape[0], x.dtype
    u, v = (standard(x), standard(y)) if standardize else (x, y)
    index = jnp.arange(count)

    def gaps(j, u_row, v_row):
        du, dv = _gap(u, u_row), _gap(v, v_row)
        return du, dv, jnp.where(index == j, jnp.inf, jnp.maximum(du, dv))

    rows = (index, u, v)
    radius = _nearest(lambda *row: gaps(*row)[2], rows, count, k, dtype)[-1]
    own = jnp.full(count, k, jnp.int32)
    if variant == 1:
        # The sample itself counts too, hence n + 1.
        nu, nv = _totals(lambda *row: [gap < radius for gap in gaps(*row)[:2]], rows, count)
    elif variant == 2:

        def widen(wide, row):
            du, dv, both = gaps(*row)
            return tuple(
                jnp.where(both <= radius, jnp.maximum(w, d), w) for w, d in zip(wide, (du, dv), strict=True)
            ), None

        zero = jnp.zeros(count, dtype)
        (wide_u, wide_v), _ = lax.scan(widen, (zero, zero), rows, unroll=_UNROLL)
        nu, nv = _totals(lambda i, a, b: [_gap(u, a) <= wide_u, _gap(v, b) <= wide_v], rows, count)
        nu, nv = nu - 1, nv - 1  # the sample itself lies within
    else:

        def near(*row):
            du, dv, both = gaps(*row)
            at = radius == 0  # counts with the sample itself, as for 1; among ties all that are equal
            return [jnp.where(at, du == 0, du < radius), jnp.where(at, dv == 0, dv < radius), both == 0]

        nu, nv, tied = _totals(near, rows, count)
        own = jnp.where(radius == 0, tied + 1, k)
    nu, nv, own = (jnp.maximum(n, 1).astype(dtype) for n in (nu, nv, own))
    size, least = jnp.asarray(count, dtype), digamma(jnp.asarray(k, dtype))
    # Gao et al. have ln N for ψ(N); variant 2 takes 1/k off. Both counts are at least k, which gives the limit.
    start = jnp.log(size) if variant == "mixed" else digamma(size) - (1 / k if variant == 2 else 0)
    value = start + jnp.mean(digamma(own)) - jnp.mean(digamma(nu)) - jnp.mean(digamma(nv))
    limit = start - least
    value = poisoned(value, x, y)
    return record(value, limit, value > limit - math.log(2), "neither", count, None)


@eqx.filter_jit
def _with_labels(x: Array, y: Int[Array, " N"], k: int, standardize: bool) -> Estimate:
    count, dtype = x.shape[0], x.dtype
    u, classes = standard(x) if standardize else x, group(y)
    sizes = jnp.zeros(count, jnp.int32).at[classes].add(1)[classes]
    used = sizes > 1
    index = jnp.arange(count)
    own = jnp.clip(sizes - 1, 1, k)

    def others(j, row, its_class):
        return jnp.where((classes == its_class) & (index != j), _gap(u, row), jnp.inf)

    ordered = jnp.stack(_nearest(others, (index, u, classes), count, k, dtype))
    radius = jnp.take_along_axis(ordered, own[None] - 1, axis=0)[0]
    (near,) = _totals(lambda row, counts: [(_gap(u, row) < radius) & counts], (u, used), count)
    kept = jnp.sum(used.astype(dtype))

    def mean(n: Array) -> Array:
        return jnp.sum(jnp.where(used, digamma(jnp.maximum(n, 1).astype(dtype)), 0)) / kept

    # With no class of two samples kept = 0 and this is 0/0.
    limit = digamma(jnp.maximum(kept, 1)) - mean(sizes)
    value = poisoned(limit + mean(own) - mean(near), x)
    return record(value, limit, False, "neither", count, None)


def knn_distances(x: Float[Array, "N d"], k: int) -> Float[Array, " N"]:
    """Distance of every sample to its k-th neighbour, maximum norm."""
    index = jnp.arange(x.shape[0])
    return _nearest(lambda j, row: jnp.where(index == j, jnp.inf, _gap(x, row)), (index, x), x.shape[0], k, x.dtype)[-1]


def _gap(x: Float[Array, "N d"], row: Float[Array, " d"]) -> Float[Array, " N"]:
    """Distances of all samples to one, maximum norm."""
    return jnp.max(jnp.abs(x.T - row[:, None]), axis=0)


def _nearest(distances: Callable, rows: tuple[Array, ...], count: int, k: int, dtype) -> tuple[Array, ...]:
    """The k smallest distances of every sample, ascending, over all rows: each is put in its place as it comes. N steps
    on vectors of N, with O(N k) memory and no table of pairs."""

    def insert(best, row):
        value, kept = distances(*row), []
        for least in best:
            kept.append(jnp.minimum(least, value))
            value = jnp.maximum(least, value)
        return tuple(kept), None

    return lax.scan(insert, tuple(jnp.full(count, jnp.inf, dtype) for _ in range(k)), rows, unroll=_UNROLL)[0]


def _totals(near: Callable, rows: tuple[Array, ...], count: int) -> tuple[Array, ...]:
    """How often each of the conditions `near(*row)` holds for every sample, over all rows."""
    width = len(jax.eval_shape(near, *jax.tree.map(lambda a: a[0], rows)))

    def add(total, row):
        return tuple(n + flag.astype(jnp.int32) for n, flag in zip(total, near(*row), strict=True)), None

    return lax.scan(add, (jnp.zeros(count, jnp.int32),) * width, rows, unroll=_UNROLL)[0]
