"""Weights as a function of depth: how near the matrices of neighbouring layers are, and what limit that leaves open."""

from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.linalg import eigh

from pdejax._arguments import checked
from pdejax._bootstrap import interval
from pdejax._check import integer, on_numbers, traced
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._figure import AbstractRecord, Figure
from pdejax.models._pairing import functional
from pdejax.terms._base import learned

_OWNER = "weights_in_depth"
ORDERS = 2000  # random orders of layers in the test
# Which axis of a weight of the project's terms is the state's: its first for what reads it, its last for what writes it.
READS, WRITES = ("wq", "wk", "wv", "w1", "wg"), ("wo", "w2")
_CORRELATIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_TRIALS = 100
LEVEL = 0.05
_AT_ONCE = 2_000_000  # numbers in double precision
EQUAL = 1e-6  # a distance of layers below is rounding: they are one layer


class WeightsInDepth(AbstractRecord):
    r"""How the weight matrices of L layers lie to one another, for each of the m kinds of matrix in `names`.

    - `distance (m, L, L)`: $\|W_a - W_b\|_F/\sqrt{\|W_a\|_F^2 + \|W_b\|_F^2}$: 0 for equal, 1 for independent matrices. It sees
      the order of hidden units and heads, which is a matter of chance.
    - `correlation (m, L, L)`: of the Gram matrices $S = WW^\top$ on the d features of the state, without their trace; 1 for
      equal, 0 for independent ones. It does not see the order of hidden units.
    - `overlap (m, L, L)`: $\|U_a^\top U_b\|_F^2/r$ of the r leading singular vectors on the side of the state;
      `independent = r/d` for random ones.
    - `adjacent`: correlation of neighbours, mean over kinds, with its interval over kinds and the null `"layers shuffled"`;
      `p_value`: share of random orders of the layers in which neighbours are as near.
    - `holder`: exponent H of $1 - \text{correlation} \propto |a - b|^{2H}$ over the first half of distances, with its interval
      over kinds: 1 for weights that are smooth in depth, ½ for a random walk, 0 for layers in which distance makes no
      difference: independent ones, and ones that share a part. NaN for equal layers, which leave nothing to fit.
    - `detectable`: the least correlation of neighbours, of those tried, that the test finds with a power of 0.8, if
      correlation falls off as $\rho^{|a-b|}$ above the scatter seen between far layers; NaN if it finds none.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    distance: Float[np.ndarray, "m L L"]
    correlation: Float[np.ndarray, "m L L"]
    overlap: Float[np.ndarray, "m L L"]
    independent: float
    adjacent: Figure
    p_value: float
    holder: Figure
    detectable: float


@checked
@on_numbers
def weights_in_depth(
    system: Any, *, rank: int | None = None, dim: int | None = None, key: PRNGKeyArray | None = None
) -> WeightsInDepth:
    r"""Ask whether a network's weights are a function of depth.

    For L → ∞ layers of scale 1/L tend to an ODE if their weights are smooth in depth, and layers of scale 1/√L to an SDE if they
    are independent (Marion et al., arXiv 2206.06929; claim C5). The weights of one network of L layers say which of the two
    they look like: see [`WeightsInDepth`][pdejax.analysis.spectra._depth.WeightsInDepth].

    - `system`: a `Network`, a `Transformer`, a `Simulator` or a `Discretization` whose field has weights per layer.
    - `rank` r of the overlap, default d/8, at least 1. `dim` d: width of the state, by default the size that most matrices have
      as the state's axis, if one does. `key` (default `jax.random.key(0)`) draws the orders.

    The state's axis is the first of weights named wq, wk, wv, w1, wg and the last of wo, w2. Of others, which modules of your
    own have, it is the first that has d entries, of the first and the last. Matrices without it do not count. Intervals over
    kinds are Student's (jackknife) below 20 of them. Layers that are in a random order keep all figures but `adjacent` and
    `holder`.
    **Not jit-compatible**. Cost per kind: L eigenvalue problems of size d, and L² products of d² numbers.

    Raises `TypeError` for a system without weights per layer or without matrices, `ValueError` for fewer than three layers.
    """
    key = jax.random.key(0) if key is None else key
    leaves = _matrices(system)
    if not leaves:
        raise TypeError(
            f"{_OWNER}: {type(system).__name__} has no weight matrices per layer; give a Network or a Transformer."
        )
    count = next(iter(leaves.values())).shape[0]
    if count < 3:
        raise ValueError(f"{_OWNER}: the system has {count} layers; give at least 3, or there is no order to speak of.")
    if not _finite(leaves):
        raise ValueError(f"{_OWNER}: weights have values that are not finite; nothing can be said of them.")
    d = _width(leaves) if dim is None else integer(_OWNER, "dim", dim)
    rank = max(d // 8, 1) if rank is None else integer(_OWNER, "rank", rank, 1, d)
    found = {name: _compare(w, rank) for name, leaf in leaves.items() if (w := _on_state(name, leaf, d)) is not None}
    if not found:
        raise ValueError(f"{_OWNER}: dim={d} is the first or last axis of no weight matrix.")
    distance, correlation, overlap = (np.stack([each[i] for each in found.values()]) for i in range(3))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    mean = correlation.mean(axis=0)
    own, null, p_value = order_test(mean, rng)
    each = np.mean(correlation[:, np.arange(count - 1), np.arange(1, count)], axis=1)
    values = interval(lambda w: (_mean(w, each), _holder(w, correlation)), len(found), key=key)
    holder = values[1] if np.max(distance) > EQUAL else Figure(np.nan, np.nan, np.nan)
    adjacent = Figure(
        own, values[0].low, values[0].high, {"layers shuffled": Figure(null.mean(), *np.quantile(null, (0.025, 0.975)))}
    )
    return WeightsInDepth(
        tuple(found),
        distance,
        correlation,
        overlap,
        rank / d,
        adjacent,
        p_value,
        holder,
        _detectable(mean, rng),
    )


def without_weights(system: Any) -> str:
    """Why weights of a system cannot be compared over depth, in words; empty where they can."""
    leaves = _matrices(system)
    if not leaves:
        return "there are no weight matrices per layer"
    count = next(iter(leaves.values())).shape[0]
    if count < 3:
        return f"{count} layers have no order to speak of"
    return "" if _finite(leaves) else "weights have values that are not finite"


def _finite(leaves: dict[str, Any]) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves.values())


def order_test(c: np.ndarray, rng: np.random.Generator, orders: int = ORDERS) -> tuple[float, np.ndarray, float]:
    """Mean correlation of neighbours, that under random orders of the layers, and the share of these that are as near."""
    count = len(c)
    null = _neighbours(c, np.stack([rng.permutation(count) for _ in range(orders)]))
    own = float(_neighbours(c, np.arange(count)[None])[0])
    return own, null, float((1 + np.sum(null >= own - 1e-12)) / (1 + orders))


def _mean(weights: Array, x: np.ndarray) -> Array:
    return weights @ jnp.asarray(x, weights.dtype) / weights.shape[0]


def _holder(weights: Array, correlation: np.ndarray) -> Array:
    """Half the slope of log(1 − correlation) over the logarithm of the distance in layers."""
    count = correlation.shape[-1]
    lags = np.arange(1, max(count // 2, 2) + 1)
    gaps = np.stack([np.mean(1 - np.diagonal(correlation, k, 1, 2), axis=1) for k in lags], axis=1)
    y = jnp.log(jnp.maximum(_mean(weights, gaps), 1e-30))
    x = np.log(lags) - np.mean(np.log(lags))
    return 0.5 * jnp.asarray(x, y.dtype) @ y / float(x @ x)


def _neighbours(c: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Mean correlation of neighbours when layers stand in these orders."""
    return np.mean(c[orders[:, :-1], orders[:, 1:]], axis=1)


def _detectable(c: np.ndarray, rng: np.random.Generator) -> float:
    count = len(c)
    lag = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    scatter = float(np.std(c[lag >= max(count // 2, 1)]))
    for rho in _CORRELATIONS:
        hits = 0
        for _ in range(_TRIALS):
            noise = np.triu(rng.standard_normal(c.shape), 1)
            hits += order_test(rho**lag + scatter * (noise + noise.T), rng, 199)[2] <= LEVEL
        if hits >= 0.8 * _TRIALS:
            return rho
    return float("nan")


def _matrices(system: Any) -> dict[str, Any]:
    """Leaves with an axis of layers and at least two more, by the path to them."""
    model = functional(system)
    d = getattr(model, "discretization", model)
    if callable(d) and not isinstance(d, Discretization):
        d = d()
    field = getattr(d, "field", d)
    if not isinstance(field, DepthVarying):
        return {}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(field.stacked, learned(field.stacked))):
        if traced(leaf):
            raise TypeError(f"{_OWNER}: works on numbers, not inside jit, vmap or grad; call it outside of them.")
        if leaf.ndim >= 3:
            found[_name(path, field.stacked)] = leaf
    return found


def _name(path: Any, stacked: Any) -> str:
    """`interaction.wq`: the term by its name, where there are terms, and its weight."""
    names = stacked.names()
    words = []
    for entry in path:
        if hasattr(entry, "name"):
            words.append(str(entry.name))
        elif hasattr(entry, "idx"):
            words.append(names[entry.idx] if words == ["terms"] else str(entry.idx))
        else:
            words.append(str(getattr(entry, "key", entry)))
    return ".".join(word for word in words if word not in ("terms", "function", "layer"))


def _width(leaves: dict[str, Any]) -> int:
    sizes = Counter(leaf.shape[axis] for name, leaf in leaves.items() for axis in _axes(name, leaf))
    most = [size for size, seen in sizes.items() if seen == max(sizes.values())]
    if len(most) > 1:
        raise ValueError(f"{_OWNER}: the state may have any of {sorted(most)} features, by its matrices; give dim=….")
    return most[0]


def _axes(name: str, leaf: Any) -> tuple[int, ...]:
    """Which axes may be the state's, no size twice: by the name, for sizes of heads and hidden units may be the state's too."""
    last = name.rsplit(".", 1)[-1]
    axes = (1,) if last in READS else (-1,) if last in WRITES else (1, -1)
    return axes[:1] if len({leaf.shape[axis] for axis in axes}) == 1 else axes


def _on_state(name: str, leaf: Any, d: int) -> np.ndarray | None:
    """Matrices `(L, d, …)` with the features of the state first, or None where there is no such axis; a view."""
    w = np.asarray(leaf)
    axis = next((axis for axis in _axes(name, leaf) if w.shape[axis] == d), None)
    return None if axis is None else np.moveaxis(w, axis, 1)


def _compare(w: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance, correlation of Gram matrices, and overlap of leading singular vectors, `(L, L)` each, in double precision."""
    count, d = w.shape[:2]
    # Some features of all layers at once: of large networks a copy in double precision would be most of the memory.
    products = np.zeros((count, count))
    for rows in np.array_split(np.arange(d), max(1, w.size // _AT_ONCE)):
        flat = w[:, rows].astype(np.float64).reshape(count, -1)
        products += flat @ flat.T
    squares = np.diag(products)
    total = squares[:, None] + squares[None]
    distance = np.sqrt(np.maximum(total - 2 * products, 0) / np.where(total > 0, total, 1))
    gram, vectors = np.empty((count, d, d)), np.empty((d, count, rank))
    for l in range(count):
        one = w[l].astype(np.float64).reshape(d, -1)
        gram[l] = one @ one.T
        vectors[:, l] = eigh(gram[l], subset_by_index=(d - rank, d - 1))[1]
        gram[l] -= np.trace(gram[l]) / d * np.eye(d)
    gram = gram.reshape(count, -1)
    lengths = np.linalg.norm(gram, axis=1)
    correlation = gram @ gram.T / np.where(lengths > 0, lengths, 1)[:, None] / np.where(lengths > 0, lengths, 1)
    # All products of the leading vectors at once: U_aᵀ U_b is a block of r × r of one matrix.
    vectors = vectors.reshape(d, -1)
    overlap = np.sum(((vectors.T @ vectors) ** 2).reshape(count, rank, count, rank), axis=(1, 3)) / rank
    return distance, correlation, overlap
