"""Likeness of pairs of layers with bootstrap intervals: what `trajectory_fidelity` and the correlations by layer share.

Every figure is a function of sums over sequences, so that a resample is a reweighting of those sums, exact but for what the
docstrings of the public functions name.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pdejax._bootstrap import beside
from pdejax._figure import Figure
from pdejax.analysis._states import shuffle_features, shuffle_tokens
from pdejax.analysis.similarity._measures import (
    average_ranks,
    mean_squared_error,
    ratio_or_zero,
    relative_error,
    rescaled,
    sequence_cosine,
    token_cosine,
)

MEASURES = (
    "mse",
    "relative_error",
    "cosine",
    "sequence_cosine",
    "pearson",
    "spearman",
    "cka",
    "cka_debiased",
    "procrustes",
)
# What is left when the two systems have different numbers of features.
SHAPE_MEASURES = ("cka", "cka_debiased", "procrustes")
_MEANS = MEASURES[:4]
TOKENS, FEATURES, UNTRAINED = "tokens shuffled", "features shuffled", "untrained"
_CHUNK = 8  # resamples evaluated at once


class Layer(NamedTuple):
    """One layer of one system, 0 at padding: as it is; centred by feature; centred as a whole; ranks over all entries."""

    raw: Float[Array, "b n d"]
    centred: Float[Array, "b n d"]
    entries: Float[Array, "b n d"]
    ranks: Float[Array, "b n d"]


@eqx.filter_jit
@jax.default_matmul_precision("highest")
def compare_layers(
    systems: Sequence[tuple[Array, Array]],
    pairs: tuple[tuple[int, int], ...],
    mask: Bool[Array, "b n"],
    key: PRNGKeyArray,
    measures: tuple[str, ...],
    feature_null: bool,
    level: float,
    resamples: int,
) -> tuple[dict[str, Figure], dict[str, Figure], Bool[Array, " pairs"]]:
    """Figures of the pairs of layers `(a[i], b[j])`, their mean over the pairs, and where one side does not vary.

    `systems`: (a, b) under test, then (a, b) of the untrained null if there is one, each `(layers, b, n, d)`. One pair after
    another, so that what is held beside the states is a few copies of one layer and the cross-covariances of its sequences.
    """
    shuffle_key, draw_key = jax.random.split(key)
    b = mask.shape[0]
    draws = jax.random.randint(draw_key, (resamples, b), 0, b)
    dtype = systems[0][0].dtype
    counts = jax.vmap(lambda drawn: jnp.zeros(b, dtype).at[drawn].add(1))(draws)
    weights = jnp.concatenate([jnp.ones((1, b), dtype), counts])
    names = ("test", TOKENS, *((FEATURES,) if feature_null else ()), *((UNTRAINED,) if systems[1:] else ()))

    n, d = systems[0][0].shape[2:]
    still = jnp.broadcast_to(jnp.arange(n)[None, None, :, None], (1, b, n, 1))
    moved = shuffle_tokens(still, mask, shuffle_key)
    mixed = shuffle_features(jnp.arange(d)[None, None, None], shuffle_key)[0, 0, 0]
    # Every null is the tested or the untrained system with tokens and features in some order.
    orders = jnp.stack([(moved if name == TOKENS else still)[0, :, :, 0] for name in names])
    permutations = jnp.stack([mixed if name == FEATURES else jnp.arange(d) for name in names])

    def pair(index):
        i, j = index
        x, y = _prepared([(a[i], b[j]) for a, b in systems], mask, measures)
        found = _resampled(x, y, names, orders, permutations, mask, weights, measures)
        return found, jnp.all(x.centred[0] == 0) | jnp.all(y.centred[0] == 0)

    at = jnp.asarray(pairs)
    found, degenerate = jax.lax.map(pair, (at[:, 0], at[:, 1]))  # (pairs, 1 + resamples, nulls, measures)
    found = jnp.concatenate([found, jnp.mean(found, axis=0, keepdims=True)])
    gaps = found[:, :, :1] - found[:, :, 1:]
    ends = jnp.asarray([(1 - level) / 2, (1 + level) / 2], dtype)

    def intervals(x):
        if b == 1:
            return x[:, 0], None, None
        low, high = jnp.quantile(x[:, 1:], ends, axis=1)
        return x[:, 0], low, high

    values, differences = intervals(found), intervals(gaps)

    def record(where, m, name):
        def take(arrays, null):
            value, low, high = (None if x is None else x[where, null, m] for x in arrays)
            return Figure(value, low, high, level=level)

        # What does not see the order of features has no such null.
        nulls = [null for null in names[1:] if not (null == FEATURES and name in SHAPE_MEASURES)]
        at = {null: names.index(null) for null in nulls}
        return beside(
            take(values, 0),
            {null: take(values, k) for null, k in at.items()},
            {null: take(differences, k - 1) for null, k in at.items()},
        )

    each = {name: record(slice(None, -1), m, name) for m, name in enumerate(measures)}
    return each, {name: record(-1, m, name) for m, name in enumerate(measures)}, degenerate


def _prepared(pairs, mask, measures) -> tuple[Layer, Layer]:
    """Both sides of every system, stacked in front; compiled once where their shapes are the same."""
    sides = [jnp.stack(side) for side in zip(*pairs, strict=True)]

    def prepare(u):
        return _prepare(u, mask, measures)

    if sides[0].shape == sides[1].shape:
        found = jax.lax.map(prepare, jnp.concatenate(sides))
        return tuple(jax.tree.map(lambda z, k=k: z[k : k + len(pairs)], found) for k in (0, len(pairs)))
    return tuple(jax.lax.map(prepare, side) for side in sides)


def _prepare(u: Float[Array, "b n d"], mask: Bool[Array, "b n"], measures: tuple[str, ...]) -> Layer:
    real = mask[:, :, None]
    count = jnp.sum(mask).astype(u.dtype)
    raw = jnp.where(real, u, 0)
    size = jnp.max(jnp.abs(raw))
    # The first real token is taken off before the mean, so that what is constant comes out as exactly 0.
    first = u[0, jnp.argmax(mask[0])]

    def centred(shift, axes, entries):
        x = jnp.where(real, raw - shift[None, None, :], 0)
        mean = jnp.sum(x, axis=axes, keepdims=True) / entries
        return rescaled(jnp.where(real, x - mean, 0), size)

    by_feature = centred(first, (0, 1), count)
    whole = centred(jnp.broadcast_to(first[:1], first.shape), (0, 1, 2), count * u.shape[-1])
    if "spearman" not in measures:
        return Layer(raw, by_feature, whole, jnp.zeros_like(raw))
    total = count * u.shape[-1]
    ranks = (average_ranks(whole, jnp.broadcast_to(real, u.shape)) - 0.5 * (total + 1)) / total
    return Layer(raw, by_feature, whole, jnp.where(real, ranks, 0))


def _resampled(x, y, names, orders, permutations, mask, weights, measures) -> Float[Array, "draws nulls measures"]:
    """Figures of every null for every row of weights; `x`, `y` hold the tested and the untrained system in front."""
    count = jnp.sum(mask, axis=1).astype(weights.dtype)
    source = jnp.asarray([int(name == UNTRAINED) for name in names])

    def system(null):
        order, permutation, s = null
        a = jax.tree.map(lambda z: jnp.take_along_axis(z[s], order[:, :, None], axis=1)[:, :, permutation], x)
        b = jax.tree.map(lambda z: z[s], y)
        return _sequence_sums(a, b, mask, measures), _moments(a.centred, b.centred)

    sums, cross = jax.lax.map(system, (orders, permutations, source))
    # Shuffling tokens leaves the moments of a system by itself as they are; shuffling features leaves all of them.
    shaped = jnp.asarray([k for k, name in enumerate(names) if name != FEATURES])
    owner = source[shaped]
    cross = jax.tree.map(lambda z: z[shaped], cross)
    own = [jax.lax.map(lambda z: _moments(z, z), side.centred) for side in (x, y)]
    alignment = jax.vmap(lambda m: _alignment(m, count))(cross) if "procrustes" in measures else None
    # All at once where both sides have as many features, which compiles in a third of the time.
    moments, ends = [*own, cross], (len(x.raw), 2 * len(x.raw))
    if x.raw.shape == y.raw.shape:
        moments = [jax.tree.map(lambda *parts: jnp.concatenate(parts), *moments)]

    def once(w):
        out = {m: sums[m] @ w / jnp.sum(w) for m in _MEANS if m in measures}
        for m in ("pearson", "spearman"):
            if m in measures:
                out[m] = jax.vmap(lambda s: _correlation(w @ s, jnp.dot(w, count)))(sums[m])
        hsic = [jax.vmap(lambda m: _hsic(m, w, count))(m) for m in moments]
        plains, unbiaseds = (jnp.concatenate(parts) for parts in zip(*hsic, strict=True))
        plain_a, plain_b, plain = jnp.split(plains, ends)
        unbiased_a, unbiased_b, unbiased = jnp.split(unbiaseds, ends)
        shapes = {
            "cka": jnp.clip(ratio_or_zero(plain, plain_a[owner], plain_b[owner])[0], 0, 1),
            "cka_debiased": ratio_or_zero(unbiased, unbiased_a[owner], unbiased_b[owner])[0],
        }
        if alignment is not None:
            shapes["procrustes"] = jax.vmap(lambda m, q: _distance(m, q, w, count))(cross, alignment)
        filled = jnp.zeros((len(names), len(shapes)), w.dtype)
        filled = filled.at[shaped].set(jnp.stack(list(shapes.values()), axis=-1))
        out |= dict(zip(shapes, filled.T, strict=True))
        return jnp.stack([out[m] for m in measures], axis=-1)

    # Chunks of one size: a remainder would compile everything again.
    rows = weights.shape[0]
    padded = jnp.pad(weights, ((0, -rows % _CHUNK), (0, 0)), constant_values=1)
    found = jax.lax.map(jax.vmap(once), padded.reshape(-1, _CHUNK, weights.shape[1]))
    return found.reshape(-1, *found.shape[2:])[:rows]


def _sequence_sums(x: Layer, y: Layer, mask, measures) -> dict[str, Array]:
    """Means by sequence `(b,)`, and the sums `(b, 5)` a correlation needs: x, y, x², y², xy, per feature."""
    out = {}
    if "mse" in measures:
        out["mse"] = mean_squared_error(x.raw, y.raw, mask)
    if "relative_error" in measures:
        out["relative_error"] = relative_error(x.raw, y.raw, mask)
    if "cosine" in measures:
        each = jnp.sum(jnp.where(mask, token_cosine(x.raw, y.raw), 0), axis=1)
        out["cosine"] = each / jnp.sum(mask, axis=1).astype(each.dtype)
    if "sequence_cosine" in measures:
        out["sequence_cosine"] = sequence_cosine(x.raw, y.raw, mask)
    for name, a, b in (("pearson", x.entries, y.entries), ("spearman", x.ranks, y.ranks)):
        if name in measures:
            parts = (a, b, a * a, b * b, a * b)
            out[name] = jnp.stack([jnp.sum(z, axis=(1, 2)) / z.shape[-1] for z in parts], axis=-1)
    return out


def _correlation(sums: Float[Array, " 5"], count: Float[Array, ""]) -> Float[Array, ""]:
    x, y, xx, yy, xy = sums
    floor = 32 * jnp.finfo(sums.dtype).eps
    # Where the sequences drawn are all alike, what is left is rounding.
    vx, vy = (jnp.where(q - s**2 / count > floor * q, q - s**2 / count, 0) for s, q in ((x, xx), (y, yy)))
    return jnp.clip(ratio_or_zero(xy - x * y / count, vx, vy)[0], -1, 1)


def _moments(a: Float[Array, "b n d1"], b: Float[Array, "b n d2"]) -> dict[str, Array]:
    """Sums over the tokens of each sequence, with k = ‖a_i‖² and l = ‖b_i‖²: enough for HSIC under any weights."""
    k, l = jnp.sum(a**2, axis=-1), jnp.sum(b**2, axis=-1)
    return {
        "a": jnp.sum(a, axis=1),
        "b": jnp.sum(b, axis=1),
        "k": jnp.sum(k, axis=1),
        "l": jnp.sum(l, axis=1),
        "ab": jnp.einsum("bni,bnj->bij", a, b),
        "kl": jnp.sum(k * l, axis=1),
        "kb": jnp.einsum("bn,bnj->bj", k, b),
        "la": jnp.einsum("bn,bni->bi", l, a),
    }


def _hsic(m, w, count) -> tuple[Array, Array]:
    r"""‖C‖² and n(n−3)·HSIC_u of weighted samples, C = Σ w_i (a_i − μ)(b_i − ν)ᵀ.

    Two copies of a sample are one sample seen twice, no pair of samples: their w² − w products leave ‖C‖², which they would
    lift in every resample, and what the unbiased estimate takes away is weighted by w², n being Kish's (Σw)²/Σw². For w = 1
    these are the estimators of `linear_cka`.
    """
    total = jnp.dot(w, count)
    once, twice = zip(*jax.vmap(lambda v: _diagonal(m, v, w, count))(jnp.stack([w, w**2])), strict=True)
    c = jnp.tensordot(w, m["ab"], axes=1) - jnp.outer(w @ m["a"], w @ m["b"]) / total
    whole = jnp.sum(c**2)
    k, l, kl, squares = twice
    n = total**2 / squares
    enough = n > 3
    n = jnp.where(enough, n, 4)
    unbiased = whole - n / (n - 2) * kl + k * l / squares * n / ((n - 1) * (n - 2))
    plain = whole - (kl - once[2])
    # Where the samples drawn are all alike, what is left is rounding.
    floor = 32 * jnp.finfo(w.dtype).eps
    unbiased = jnp.where(enough & (jnp.abs(unbiased) > floor * kl), unbiased, 0)
    return jnp.where(plain > floor * once[2], plain, 0), unbiased


def _diagonal(m, v, w, count) -> tuple[Array, Array, Array, Array]:
    """Σ v k, Σ v l, Σ v k l and Σ v for k = ‖a_i − μ‖², l = ‖b_i − ν‖², means weighted by w."""
    total, mass = jnp.dot(w, count), jnp.dot(v, count)
    mu, nu = w @ m["a"] / total, w @ m["b"] / total
    s = {name: jnp.tensordot(v, x, axes=1) for name, x in m.items()}
    mm, nn, am, bn = jnp.dot(mu, mu), jnp.dot(nu, nu), jnp.dot(s["a"], mu), jnp.dot(s["b"], nu)
    k, l = s["k"] - 2 * am + mass * mm, s["l"] - 2 * bn + mass * nn
    kl = s["kl"] - 2 * jnp.dot(s["kb"], nu) - 2 * jnp.dot(s["la"], mu) + 4 * mu @ s["ab"] @ nu
    return k, l, kl + (s["k"] - 2 * am) * nn + (s["l"] - 2 * bn) * mm + mass * mm * nn, mass


def _alignment(m, count) -> dict[str, Array]:
    """The best rotation for the whole sample, and ⟨Q, A_sᵀB_s⟩ of every sequence: resamples keep the rotation."""
    a, b = jnp.sum(m["a"], axis=0), jnp.sum(m["b"], axis=0)
    u, _, vt = jnp.linalg.svd(jnp.sum(m["ab"], axis=0) - jnp.outer(a, b) / jnp.sum(count), full_matrices=False)
    q = u @ vt
    return {"rotation": q, "aligned": jnp.einsum("bij,ij->b", m["ab"], q)}


def _distance(m, best, w, count) -> Array:
    total = jnp.dot(w, count)
    mu, nu = w @ m["a"] / total, w @ m["b"] / total
    top = jnp.dot(w, best["aligned"]) - total * mu @ best["rotation"] @ nu
    spreads = (jnp.dot(w, m["k"]) - total * jnp.dot(mu, mu), jnp.dot(w, m["l"]) - total * jnp.dot(nu, nu))
    return jnp.sqrt(2 - 2 * jnp.clip(ratio_or_zero(top, *spreads)[0], -1, 1))
