r"""How well attention maps agree, beside uniform attention and rows that know nothing of each other (claim C14)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import check_bootstrap, compare, compare_all
from pdejax._check import concretely, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax.analysis._states import shuffle_tokens, token_mask

SMALLEST_WEIGHT = 1e-30  # of an attention weight, in a logarithm
_BLOCK = 2**14  # entries of a map that a CPU treats at once
_FIGURES = ("cosine", "kl", "kl_reverse", "jensen_shannon", "total_variation")


class AttentionFidelity(AbstractRecord):
    r"""Agreement of attention rows p_i (reference) and q_i (tested) by layer and head: means over real rows and sequences,
    figures `(layers, heads)`.

    - `cosine`; `kl` KL(p‖q), `kl_reverse` KL(q‖p) and `jensen_shannon` (≤ ln 2) in nats; `total_variation` ½Σ|p − q| in
      [0, 1]. Nulls in q's place: `"uniform"` attention over allowed keys; `"tokens shuffled"`, q's rows in another order of the
      sequence's tokens. The cosine has two more, of closed form:
    - `"independent"`: its exact mean over all orders of a row's allowed keys (of m), $\frac{1}{m\|p\|\|q\|}$: rows as peaked as
      these that know nothing of each other. It is the product of both cosines with uniform attention.
    - `"gaussian"`: $e^{-s^2}$, what two independent softmax rows with normal logits of standard deviation s have for many keys, s
      of p's own row; uniform attention has $e^{-s^2/2}$, which is nearer to 1.
    - `logit_std`: s, root of the mean over rows of the variance of ln p over allowed keys.
    - `overall`: the five figures by name, averaged over layers and heads.
    """

    cosine: Figure
    kl: Figure
    kl_reverse: Figure
    jensen_shannon: Figure
    total_variation: Figure
    logit_std: Float[Array, "layers H"]
    overall: dict[str, Figure]


class AttentionEntropy(AbstractRecord):
    r"""Entropy of attention rows, means over real rows and sequences; figures `(layers, heads)`.

    `entropy` in nats beside `"uniform"` attention over the m allowed keys, ln m; `relative`: the ratio of both by row, in
    [0, 1], over the rows with more than one allowed key (1 where there are none).
    """

    entropy: Figure
    relative: Figure


class AttentionRollout(AbstractRecord):
    r"""`maps (layers, [batch], n, n)`: how much of input token j is in token i after each layer; rows of real tokens sum to 1,
    those of others are 0. `own`: the mean weight on a token's own input, `(layers,)`, beside what `"uniform"` attention
    leaves there."""

    maps: Float[Array, "layers *b n n"]
    own: Figure


@checked
def attention_fidelity(
    p: ArrayLike,
    q: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> AttentionFidelity:
    r"""Agreement of attention maps `q` (tested) with `p` (reference), `(layers, [batch], heads, n, n)`, rows of probabilities.

    - `mask (n,)` or `(batch, n)`: True at real tokens. Rows and keys of others are not looked at; maps must give keys that
      are not real no weight. `causal`: token i may see keys j ≤ i only, which tells the nulls what is allowed.
    - `key`: of the shuffle and the bootstrap over sequences (default `jax.random.key(0)`).

    A cosine near 1 says little where attention is flat: see the nulls of
    [`AttentionFidelity`][pdejax.analysis.attention._fidelity.AttentionFidelity] (claim C14). Rows of independent normal logits
    have the cosine e^{−s²}: 0.98 at s = 0.14. For `"tokens shuffled"` with `causal`, both rows are cut to the keys that both may
    see and renormalized.

    A weight of 0 where the other has some counts as 1e-30 in KL (at most 69 nats); other zeros count nothing. e^{−s²} leaves
    out keys of weight 0. In float32 figures are good to about 1e-6, KL to about 1e-6 absolute.
    O(layers·batch·heads·n²), one layer's head after another: a few maps `(batch, n, n)` are held beside p and q.

    Raises `TypeError`/`ValueError` for shapes that do not match, types that are not floating-point, rows of real tokens that
    are not probabilities over allowed keys (to 1e-2: half precision passes), or options out of range.
    Sources: v1 §3.2 (cosine, KL); v2 Table 2 and its section on attention; $e^{-s^2}$ is $(E\,e^{sz})^2/E\,e^{2sz}$ for normal z.
    """
    check_bootstrap("attention_fidelity", level, resamples)
    p, real, batched = attention_maps("attention_fidelity", "p", p, mask, causal)
    q, _, also = attention_maps("attention_fidelity", "q", q, mask, causal)
    if p.shape != q.shape or batched != also:
        raise ValueError(
            f"attention_fidelity: p and q have shapes {p.shape} and {q.shape} (layers, batch, heads, n, n); they must be the "
            "same. Layers that differ in number: take those both have."
        )
    dtype = jnp.promote_types(p.dtype, q.dtype)
    key = jax.random.key(0) if key is None else key
    return _fidelity(p.astype(dtype), q.astype(dtype), real, bool(causal), key, level, resamples)


@checked
def attention_entropy(
    p: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    causal: bool = False,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> AttentionEntropy:
    r"""Entropy $-\sum_jp_{ij}\ln p_{ij}$ of attention rows `p (layers, [batch], heads, n, n)`, by layer and head. Its null is
    uniform attention, ln of the number of allowed keys. Arguments, errors and cost as
    [`attention_fidelity`][pdejax.analysis.attention_fidelity]."""
    check_bootstrap("attention_entropy", level, resamples)
    p, real, _ = attention_maps("attention_entropy", "p", p, mask, causal)
    return _entropy(p, real, bool(causal), jax.random.key(0) if key is None else key, level, resamples)


@checked
def attention_rollout(
    p: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    residual: float = 0.5,
    causal: bool = False,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> AttentionRollout:
    r"""Attention rollout of `p (layers, [batch], heads, n, n)`:

    $$R_l = \hat A_lR_{l-1},\qquad \hat A_l = r\,I + (1-r)\,\tfrac1H\sum_hp^{lh},\qquad R_{-1} = I,$$

    `residual` r in [0, 1] the share of the residual connection. Null: uniform attention over allowed keys; without `causal` a
    token then keeps $r^l + (1 - r^l)/m$ of itself after l layers. Value and output matrices, normalization and feed-forward
    parts are not in it: it follows attention weights, not information.

    A scan over layers, O(layers·batch·n³), 1/H of p's memory for the result. Raises as
    [`attention_fidelity`][pdejax.analysis.attention_fidelity], and `ValueError` for a share outside [0, 1].
    Source: Abnar & Zuidema, arXiv 2005.00928, §3 (r = ½).
    """
    check_bootstrap("attention_rollout", level, resamples)
    if not traced(residual) and not 0 <= float(residual) <= 1:
        raise ValueError(f"attention_rollout: residual={residual} must lie in [0, 1]; ½ is usual.")
    p, real, batched = attention_maps("attention_rollout", "p", p, mask, causal)
    key = jax.random.key(0) if key is None else key
    maps, own = _rollout(p, real, jnp.asarray(residual, p.dtype), bool(causal), key, level, resamples)
    return AttentionRollout(maps if batched else maps[:, 0], own)


@checked
def attention_divergence(
    p: Float[Array, "layers b H n n"], q: Float[Array, "layers b H n n"], mask: Bool[Array, "b n"]
) -> Float[Array, "layers b H"]:
    """KL(p ‖ q) in nats per row, averaged over the rows of real tokens, for each layer, example and head: a differentiable
    primitive, without checks, nulls or intervals."""
    _check_alike("attention_divergence", p, q, mask)
    return _over_rows(row_divergence(p, q), mask[None, :, None, :])


@checked
def attention_cosine(
    p: Float[Array, "layers b H n n"], q: Float[Array, "layers b H n n"], mask: Bool[Array, "b n"]
) -> Float[Array, "layers b H"]:
    """Cosine of the rows p_i and q_i, averaged over the rows of real tokens, for each layer, example and head: a primitive
    like [`attention_divergence`][pdejax.analysis.attention.attention_divergence]."""
    _check_alike("attention_cosine", p, q, mask)
    return _over_rows(row_cosine(p, q), mask[None, :, None, :])


def _check_alike(owner: str, p: Array, q: Array, mask: Array) -> None:
    if p.shape != q.shape or p.shape[-1] != p.shape[-2] or mask.shape != (p.shape[1], p.shape[-1]):
        raise ValueError(
            f"{owner}: p, q and mask have shapes {p.shape}, {q.shape}, {mask.shape}; they must be (layers, b, H, n, n) twice, "
            "and (b, n)."
        )


def row_divergence(p: Float[Array, "*rows n"], q: Float[Array, "*rows n"]) -> Float[Array, "*rows"]:
    """KL(p ‖ q) of rows, in nats; where p is 0 nothing is added, where q is 0 it counts as 1e-30."""
    ratio = jnp.log(jnp.maximum(p, SMALLEST_WEIGHT)) - jnp.log(jnp.maximum(q, SMALLEST_WEIGHT))
    return jnp.sum(jnp.where(p > 0, p * ratio, 0), axis=-1)


def row_cosine(p: Float[Array, "*rows n"], q: Float[Array, "*rows n"]) -> Float[Array, "*rows"]:
    """Cosine of rows; 0 where a row is 0."""
    norms = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(q, axis=-1)
    return jnp.sum(p * q, axis=-1) / jnp.where(norms > 0, norms, 1)


def attention_maps(
    owner: str, name: str, value: ArrayLike, mask: ArrayLike | None, causal: bool
) -> tuple[Float[Array, "layers b H n n"], Bool[Array, "b n"], bool]:
    """Maps `(layers, [batch], heads, n, n)`, checked, with a batch axis, in at least float32; the mask `(b, n)`; and whether
    a batch was given."""
    p: Any = jnp.asarray(value)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(f"{owner}: {name} has type {p.dtype}; attention maps are real floating-point numbers.")
    if p.ndim not in (4, 5) or p.shape[-1] != p.shape[-2] or 0 in p.shape:
        raise ValueError(
            f"{owner}: {name} has shape {p.shape}; it must be (layers, heads, n, n) or (layers, batch, heads, n, n), none of "
            "them 0. Maps with the batch in front are moved by jnp.moveaxis(p, 0, 1)."
        )
    batched = p.ndim == 5
    p = p if batched else p[:, None]
    p = p if p.dtype == jnp.float64 else p.astype(jnp.float32)
    real = token_mask(owner, mask, p.shape[1], p.shape[-1])
    if not traced(p, real):
        _check_rows(owner, name, p, real, causal)
    return p, real, batched


@concretely
def _check_rows(owner: str, name: str, p: Array, real: Array, causal: bool) -> None:
    known = np.asarray(real)
    seen = np.tril(np.ones(p.shape[-2:], bool)) if causal else np.ones(p.shape[-2:], bool)
    keys = known[:, None, None, :] & seen[None, None]
    every = np.all(keys)
    for l in range(p.shape[0]):  # layer by layer, so that the copies stay small
        rows = np.asarray(p[l])
        rows = rows if every else np.where(keys, rows, 0)
        total = np.sum(rows, axis=-1)
        wrong = ~((np.min(rows, axis=-1) >= 0) & (np.abs(total - 1) <= 1e-2))
        wrong &= known[:, None, :]
        if np.any(wrong):
            s, h, i = (int(x) for x in np.argwhere(wrong)[0])
            raise ValueError(
                f"{owner}: {name} is no probability over the allowed keys in layer {l}, sequence {s}, head {h}, row {i} (its "
                f"sum there is {total[s, h, i]}); it must be the softmax over real{' keys j ≤ i' if causal else ' keys'}."
            )


def _over_rows(rows: Float[Array, "... n"], real: Bool[Array, "... n"]) -> Float[Array, "..."]:
    """Mean over real rows."""
    return jnp.sum(jnp.where(real, rows, 0), axis=-1) / jnp.sum(real.astype(rows.dtype), axis=-1)


def _allowed(real: Bool[Array, "b n"], causal: bool) -> Bool[Array, "b n n"]:
    n = real.shape[1]
    keys = jnp.broadcast_to(real[:, None, :], (real.shape[0], n, n))
    return keys & jnp.tril(jnp.ones((n, n), bool))[None] if causal else keys


def _normalized(p: Float[Array, "b n n"], keys: Bool[Array, "b n n"]) -> Float[Array, "b n n"]:
    p = jnp.where(keys, p, 0)
    total = jnp.sum(p, axis=-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)


def _figures(p: Float[Array, "b n n"], q: Float[Array, "b n n"], real: Bool[Array, "b n"]) -> Float[Array, "b 5"]:
    b, n = real.shape
    # A CPU is eight times as fast by blocks that its cache holds: logarithms are taken once, not once for each sum.
    block = min(b * n, max(1, _BLOCK // n)) if jax.default_backend() == "cpu" else b * n
    blocks = [jnp.pad(x.reshape(b * n, n), ((0, -b * n % block), (0, 0))).reshape(-1, block, n) for x in (p, q)]
    each = jax.lax.map(lambda rows: _row_figures(*rows), tuple(blocks))
    each = each.reshape(-1, len(_FIGURES))[: b * n].reshape(b, n, -1)
    return jnp.moveaxis(_over_rows(jnp.moveaxis(each, -1, 0), jnp.broadcast_to(real, (len(_FIGURES), b, n))), 0, -1)


def _row_figures(p: Float[Array, "rows n"], q: Float[Array, "rows n"]) -> Float[Array, "rows 5"]:
    """As `row_cosine` and `row_divergence`, with logarithms shared."""
    log_p, log_q, log_middle = (jnp.log(jnp.maximum(x, SMALLEST_WEIGHT)) for x in (p, q, 0.5 * (p + q)))
    sums = (
        row_cosine(p, q),
        jnp.sum(p * (log_p - log_q), axis=-1),
        jnp.sum(q * (log_q - log_p), axis=-1),
        0.5 * jnp.sum(p * (log_p - log_middle) + q * (log_q - log_middle), axis=-1),
        0.5 * jnp.sum(jnp.abs(p - q), axis=-1),
    )
    return jnp.stack(sums, axis=-1)


def _by_head(one, *maps):
    """`one` of every layer's head in turn, maps `(layers, b, H, n, n)`: results `(layers, H, ...)`."""
    layers, _, heads = maps[0].shape[:3]
    found = jax.lax.map(lambda k: one(*(x[k // heads, :, k % heads] for x in maps)), jnp.arange(layers * heads))
    return jax.tree.map(lambda x: x.reshape(layers, heads, *x.shape[1:]), found)


@eqx.filter_jit
def _fidelity(p, q, real, causal, key, level, resamples) -> AttentionFidelity:
    shuffle_key, draw_key = jax.random.split(key)
    allowed = _allowed(real, causal)
    many = jnp.maximum(jnp.sum(allowed, axis=-1), 1).astype(p.dtype)
    b, n = real.shape
    order = jnp.broadcast_to(jnp.arange(n)[None, None, :, None], (1, b, n, 1))
    order = shuffle_tokens(order, real, shuffle_key)[0, :, :, 0]
    common = allowed & jnp.take_along_axis(allowed, order[:, :, None], axis=1)

    def one(p, q):
        p, q = jnp.where(allowed, p, 0), jnp.where(allowed, q, 0)
        uniform = allowed.astype(p.dtype) / many[:, :, None]
        other = jnp.take_along_axis(q, order[:, :, None], axis=1)
        cut = (_normalized(p, common), _normalized(other, common)) if causal else (p, other)
        figures = jnp.stack([_figures(p, q, real), _figures(p, uniform, real), _figures(*cut, real)], axis=1)
        norms = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(q, axis=-1)
        apart = jnp.sum(p, axis=-1) * jnp.sum(q, axis=-1) / (many * jnp.where(norms > 0, norms, 1))
        variance = _log_variance(p)
        nulls = jnp.stack([_over_rows(x, real) for x in (apart, jnp.exp(-variance))], axis=1)
        return figures, nulls, _over_rows(variance, real)

    figures, nulls, variance = _by_head(one, p, q)
    figures, nulls = jnp.moveaxis(figures, 2, 0), jnp.moveaxis(nulls, 2, 0)  # (b, layers, H, ...)

    std = jnp.sqrt(jnp.mean(variance, axis=-1))
    every = jnp.mean(figures, axis=(1, 2)), jnp.mean(nulls, axis=(1, 2))
    found = compare_all(
        {
            f"{name}, {where}": pair
            for where, parts in (("each", (figures, nulls)), ("overall", every))
            for name, pair in _beside(*parts).items()
        },
        key=draw_key,
        level=level,
        resamples=resamples,
    )
    each, overall = ({name: found[f"{name}, {where}"] for name in _FIGURES} for where in ("each", "overall"))
    return AttentionFidelity(**each, logit_std=std, overall=overall)


def _beside(figures: Float[Array, "b ... systems 5"], cosines: Float[Array, "b ... 2"]):
    """Every figure by name, with its nulls by name."""
    found = {}
    for m, name in enumerate(_FIGURES):
        nulls = {"uniform": figures[..., 1, m], "tokens shuffled": figures[..., 2, m]}
        if name == "cosine":
            nulls |= {"independent": cosines[..., 0], "gaussian": cosines[..., 1]}
        found[name] = (figures[..., 0, m], nulls)
    return found


def _log_variance(p: Float[Array, "b n n"]) -> Float[Array, "b n"]:
    """Variance of ln p over the keys of each row that have weight."""
    here = p > 0
    count = jnp.maximum(jnp.sum(here, axis=-1), 1).astype(p.dtype)
    logs = jnp.log(jnp.where(here, p, 1))
    mean = jnp.sum(logs, axis=-1) / count
    return jnp.sum(jnp.where(here, (logs - mean[..., None]) ** 2, 0), axis=-1) / count


@eqx.filter_jit
def _entropy(p, real, causal, key, level, resamples) -> AttentionEntropy:
    allowed = _allowed(real, causal)
    limit = jnp.log(jnp.maximum(jnp.sum(allowed, axis=-1), 1).astype(p.dtype))  # (b, n)
    open_rows = real & (limit > 0)
    none = jnp.logical_not(jnp.any(open_rows, axis=1))

    def one(p):
        p = jnp.where(allowed, p, 0)
        rows = jnp.maximum(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1), 0)
        share = jnp.sum(jnp.where(open_rows, rows / jnp.where(open_rows, limit, 1), 0), axis=1)
        share = jnp.where(none, 1, share / jnp.maximum(jnp.sum(open_rows, axis=1), 1).astype(p.dtype))
        return _over_rows(rows, real), share

    rows, share = (jnp.moveaxis(x, 2, 0) for x in _by_head(one, p))
    null = jnp.broadcast_to(_over_rows(limit, real)[:, None, None], rows.shape)
    found = compare_all(
        {"entropy": (rows, {"uniform": null}), "relative": (share, {})}, key=key, level=level, resamples=resamples
    )
    return AttentionEntropy(**found)


@eqx.filter_jit
@jax.default_matmul_precision("highest")
def _rollout(p, real, residual, causal, key, level, resamples) -> tuple[Array, Figure]:
    allowed = _allowed(real, causal) & real[:, :, None]
    eye = jnp.where(real[:, :, None], jnp.eye(p.shape[-1], dtype=p.dtype)[None], 0)
    uniform = _normalized(jnp.ones_like(eye), allowed)

    def diagonal(x):
        return _over_rows(jnp.diagonal(x, axis1=-2, axis2=-1), real)

    def layer(carry, maps):
        rolled, null = carry
        mixed = _normalized(jnp.mean(jnp.where(allowed[:, None], maps, 0), axis=1), allowed)
        rolled, null = ((residual * eye + (1 - residual) * a) @ r for a, r in ((mixed, rolled), (uniform, null)))
        return (rolled, null), (rolled, diagonal(rolled), diagonal(null))

    _, (rolled, own, null) = jax.lax.scan(layer, (eye, eye), p)
    return rolled, compare(own.T, {"uniform": null.T}, key=key, level=level, resamples=resamples)
