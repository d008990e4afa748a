"""Entropy and information of counts: quantile bins, and discrete data as they are."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from pdejax._check import choice, integer
from pdejax.analysis.information._estimate import Estimate, record
from pdejax.analysis.information._samples import group, joint, paired, poisoned, sample

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
    owner = "binned_information"
    x, y = sample(owner, "x", x), sample(owner, "y", y)
    count = paired(owner, x, y)
    dims = sum(a.shape[1] for a in (x, y) if a.ndim == 2)
    return _information(x, y, checked_bins(owner, bins, edges, count, dims), bool(correction), edges)


@eqx.filter_jit
def _information(x: Array, y: Array, bins: int, correction: bool, edges: str) -> Estimate:
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
