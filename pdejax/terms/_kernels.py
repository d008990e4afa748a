"""Attention kernels: one function, `attend`, in several implementations of the same sum.

All but cuDNN's are plain JAX operations (`lax.map` over blocks, `jax.checkpoint` on a block), so that `vmap`,
forward mode, reverse mode and their compositions all work.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from pdejax._arguments import checked
from pdejax._check import choice, finite, integer, number, traced
from pdejax._products import platform_now, product

Implementation = Literal["auto", "dense", "blocked", "fused"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("auto", "dense", "blocked", "fused")

# Bytes of scores of all heads up to which "auto" keeps the whole map, and bytes of scores in one block
# (one head, some queries). On a CPU a block has to stay in the cache, also times a `vmap` batch of 8, and yet
# be large enough for the matrix product to run at full rate; elsewhere it only has to fit in memory.
_DENSE_BYTES = {"cpu": 2**20, "other": 2**28}
_BLOCK_BYTES = {"cpu": 2**20, "other": 2**26}
_MIN_ROWS = 16
# Heads whose loops over blocks are independent pieces of one program, so that a CPU runs them side by side.
_HEADS_AT_ONCE = 4
# What reverse mode keeps of a block of scores, by name, for `jax.checkpoint` policies: O(n), not O(n²).
SAVED = ("attention shift", "attention numerator", "attention normaliser")
# Whether a step ended in numbers: one flag, which all of the step would have to be computed again for.
KNOWN = "step known"


def keep_saved(primitive: Any, /, *_: Any, **parameters: Any) -> bool:
    """The `jax.checkpoint` policy that keeps `SAVED` and `KNOWN`. JAX's own, `save_only_these_names`, fails for a primitive that
    has a parameter called `prim`, such as those of the tridiagonal solves."""
    return primitive.name == "name" and parameters["name"] in (*SAVED, KNOWN)


@checked
def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    bias: Array | None = None,
    alibi: Array | None = None,
    causal: bool = False,
    window: Any = None,
    logit_scale: float | None = None,
    logit_cap: float | None = None,
    implementation: str = "auto",
) -> Array:
    r"""Multi-head softmax attention, for query i and head h,

    $o_{ih} = \sum_j p_{ijh} v_{jh}, \quad p_{ijh} = e^{z_{ijh}} / \sum_l e^{z_{ilh}}, \quad
    z_{ijh} = s\,q_{ih}\cdot k_{jh} + b_{jh} - m_h|i - j|$, $s = 1/\sqrt{d_k}$.

    The bias carries whatever depends on the key alone: the logarithm of a quadrature weight, which makes the
    sums into the rule for $\int e^{q\cdot k} v\,dy / \int e^{q\cdot k}\,dy$; a padding mask (`-inf` removes
    the key); $-|k|^2/\sqrt{d_k}$, which with 2q in the place of q gives the kernel $e^{-|q-k|^2/\sqrt{d_k}}$.
    A query with no key left, all its biases being `-inf`, returns 0, with derivatives 0. A finite bias,
    however negative, removes nothing: where all are equal the result is that without a bias.

    The largest logit of a row is subtracted before the exponential: no finite logit overflows. Products and
    exponentials are accumulated in float32 or better; the result has the type of `v`.

    **Implementations.** `"dense"` forms the (H, n, m) map. `"blocked"` takes one head and one block of
    queries at a time and computes a block again in reverse mode: memory grows as n + m, and on a CPU the
    scores stay in the cache. `"fused"` is the cuDNN kernel of `jax.nn.dot_product_attention`, for a GPU, half
    precision, no ALiBi, window or cap, and dk = dv a multiple of 8 up to 128; it has reverse mode only. A bias takes
    bfloat16 and eight features more: dk up to 120. `"auto"` is settled while tracing, by platform, type and shape: fused where
    possible, dense for small maps, else blocked.

    Args:
        q: queries, `(n, H, dk)`.
        k: keys, `(m, G, dk)`; G divides H, and head h has the keys and values of group h·G // H (grouped and multi-query
            attention, Ainslie et al., arXiv:2305.13245).
        v: values, `(m, G, dv)`, of the type of `q` and `k`.
        bias: added to the logits, `(m,)` or `(H, m)`; no unit.
        alibi: slopes m_h `(H,)` of a bias linear in distance, per token (Press et al., arXiv:2108.12409); needs n = m.
        causal: query i sees only the keys j <= i; needs n = m.
        window: query i sees only the keys with |i - j| < window, an integer of at least 1 (Beltagy et al.,
            arXiv:2004.05150); needs n = m.
        logit_scale: s, by default 1/√dk.
        logit_cap: c > 0 replaces s q·k by c tanh(s q·k / c), before anything is added (Gemma 2, arXiv:2408.00118).
        implementation: `"auto"`, `"dense"`, `"blocked"` or `"fused"`.

    Returns:
        The weighted means of the values, `(n, H, dv)`.

    Raises:
        ValueError: wrong rank or size, `causal`, `window` or `alibi` with n != m, slopes that are not finite, a scale or a cap
            that is not positive, an implementation unknown or not possible.
        TypeError: arrays, also `bias` and `alibi`, that are not floating point, or `q`, `k`, `v` of different types.

    Source: v2 (5) and v1 (9)-(11), the weights of the integrals explicit. Dividing after the product with `v`
    and computing blocks again: Rabe and Staats, arXiv:2112.05682; Dao et al., arXiv:2205.14135.
    """
    _check(q, k, v, bias, alibi, implementation)
    window = _check_positions(q, k, alibi, causal, window)
    logit_scale, logit_cap = (
        positive("attend", name, value) for name, value in (("logit_scale", logit_scale), ("logit_cap", logit_cap))
    )
    n, heads, _ = q.shape
    accumulator = accumulator_of(q.dtype)
    platform = platform_now()
    kind = "cpu" if platform == "cpu" else "other"
    refusal = _refusal(platform, q, k, v, bias, {"alibi": alibi, "window": window, "logit_cap": logit_cap})
    if implementation == "auto":
        scores = heads * n * k.shape[0] * accumulator.itemsize
        implementation = "dense" if scores <= _DENSE_BYTES[kind] else "blocked"
        implementation = implementation if refusal else "fused"
    if implementation == "fused":
        if refusal:
            raise ValueError(f"attend: implementation='fused' needs {refusal}: choose 'auto', 'dense' or 'blocked'")
        return _fused(q, k, v, bias, causal, logit_scale)
    rule = Rule(causal, logit_cap)
    operands = operands_of(q, k, bias, alibi, logit_scale)
    values = _for_heads(v.swapaxes(0, 1), heads)
    if implementation == "dense":
        positions = jnp.arange(n) if rule.by_position(alibi, window) else None
        softmax = functools.partial(_softmax, rule=rule)
        out = jax.vmap(softmax, in_axes=(0, 0, None, None))(operands, values, positions, window)
    else:
        rows = max(_BLOCK_BYTES[kind] // (k.shape[0] * accumulator.itemsize), _MIN_ROWS)
        out = _blocked(operands, values, window, rule, rows)
    return out.swapaxes(0, 1).astype(v.dtype)


def attention_map(
    q: Array,
    k: Array,
    *,
    bias: Array | None,
    alibi: Array | None,
    causal: bool,
    window: Any,
    logit_scale: float | None,
    logit_cap: float | None,
) -> Array:
    """The weights `p (H, n, m)` of `attend`, at least float32; 0 in the row of a query that sees no key."""
    rule, operands = Rule(causal, logit_cap), operands_of(q, k, bias, alibi, logit_scale)
    positions = jnp.arange(q.shape[0]) if rule.by_position(alibi, window) else None
    logits = functools.partial(logits_of, rule=rule)
    z = jax.vmap(logits, in_axes=(0, None, None))(operands, positions, window)
    seen = jnp.any(z != -jnp.inf, axis=-1, keepdims=True)  # NaN is no key left out: it stays
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, z, 0), axis=-1), 0)


class Rule(NamedTuple):
    """What of the logits is settled while tracing."""

    causal: bool
    cap: float | None

    def by_position(self, alibi: Array | None, window: Any) -> bool:
        return self.causal or alibi is not None or window is not None


class Operands(NamedTuple):
    """What the logits of each head are made of: q (H, n, dk) scaled, k (H, dk, m), bias (H, m), slope (H,)."""

    q: Array
    k: Array
    bias: Array | None
    slope: Array | None


def operands_of(q: Array, k: Array, bias: Array | None, alibi: Array | None, logit_scale: float | None) -> Operands:
    accumulator, heads = accumulator_of(q.dtype), q.shape[1]
    if bias is not None:
        bias = jnp.broadcast_to(bias.astype(accumulator), (heads, k.shape[0]))
    scale = q.shape[-1] ** -0.5 if logit_scale is None else logit_scale
    # The scale goes into q, n dk products instead of n m. In half precision it is applied before rounding.
    queries = (q.astype(accumulator) * scale).astype(q.dtype).swapaxes(0, 1)
    slope = None if alibi is None else alibi.astype(accumulator)
    return Operands(queries, _for_heads(k.transpose(1, 2, 0), heads), bias, slope)


def _for_heads(x: Array, heads: int) -> Array:
    """Keys or values of groups (leading axis), once per head of the group."""
    return x if x.shape[0] == heads else jnp.repeat(x, heads // x.shape[0], axis=0)


def logits_of(x: Operands, positions: Array | None, window: Any, *, rule: Rule, keys: Array | None = None) -> Array:
    """One head: q (r, dk), k (dk, m), bias (m,), slope (), positions (r,) of the queries if they matter, and those of
    the `keys` (m,) where they are not 0 … m − 1."""
    accumulator = accumulator_of(x.q.dtype)
    z = product(x.q, x.k, kind=accumulator)
    if rule.cap is not None:
        z = rule.cap * jnp.tanh(z / rule.cap)
    if x.bias is not None:
        z = z + x.bias[None, :]
    if positions is None:
        return z
    keys = jnp.arange(x.k.shape[1])[None, :] if keys is None else keys[None, :]
    queries = positions[:, None]
    if rule.causal:
        z = jnp.where(keys <= queries, z, -jnp.inf)
    if x.slope is None and window is None:
        return z
    distance = jnp.abs(queries - keys)
    if x.slope is not None:
        z = z - x.slope * distance.astype(accumulator)
    return z if window is None else jnp.where(distance < window.astype(distance.dtype), z, -jnp.inf)


def _softmax(x: Operands, v: Array, positions: Array | None, window: Any, *, rule: Rule) -> Array:
    """One head: the logits of its operands, and v (m, dv)."""
    z = logits_of(x, positions, window, rule=rule)
    shift = jax.lax.stop_gradient(z.max(axis=1, keepdims=True))
    shift = checkpoint_name(jnp.where(shift > -jnp.inf, shift, 0.0), SAVED[0])
    e = jnp.exp(z - shift)
    # Normalising the (r, dv) product instead of the (r, m) map saves a pass over the map.
    numerator = product(e.astype(v.dtype), v, kind=accumulator_of(v.dtype))
    numerator = checkpoint_name(numerator, SAVED[1])
    normaliser = checkpoint_name(e.sum(axis=1, keepdims=True), SAVED[2])
    return numerator / jnp.where(normaliser > 0, normaliser, 1.0)


def _blocked(x: Operands, v: Array, window: Any, rule: Rule, rows: int) -> Array:
    """`_softmax` for each head (leading axis) and each block of about `rows` queries, one after the other."""
    heads, n, dk = x.q.shape
    blocks = -(-n // rows)
    rows = -(-n // blocks)
    q = jnp.pad(x.q, ((0, 0), (0, blocks * rows - n), (0, 0))).reshape(heads, blocks, rows, dk)
    positions = jnp.arange(blocks * rows).reshape(blocks, rows) if rule.by_position(x.slope, window) else None
    # With the shift, the product and the sum kept, reverse mode repeats one product and the exponential only.
    softmax = functools.partial(_softmax, rule=rule)
    block: Callable[..., Array] = jax.checkpoint(softmax, policy=keep_saved, prevent_cse=False)

    def head(operands):
        one, values = operands

        def rows_of(queries, where):
            return block(one._replace(q=queries), values, where, window)

        return jax.lax.map(lambda y: rows_of(*y), (one.q, positions))

    def group(operands):
        return jnp.stack([head(jax.tree.map(lambda y, h=h: y[h], operands)) for h in range(together)])

    together = max(h for h in range(1, _HEADS_AT_ONCE + 1) if heads % h == 0)
    groups = jax.tree.map(lambda y: y.reshape(heads // together, together, *y.shape[1:]), (x._replace(q=q), v))
    out = jax.lax.map(group, groups)
    return out.reshape(heads, blocks * rows, -1)[:, :n]


def accumulator_of(dtype) -> jnp.dtype:
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _refusal(platform: str, q: Array, k: Array, v: Array, bias: Array | None, extra: dict[str, Any]) -> str | None:
    """What cuDNN's attention needs and does not get; None if it can be used."""
    dk, most = q.shape[-1], 128 if bias is None else 128 - _BIAS_FEATURES
    if platform not in ("gpu", "cuda"):
        return f"an NVIDIA GPU, not the platform {platform!r}"
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"float16 or bfloat16, not {q.dtype}"
    given = [name for name, value in extra.items() if value is not None]
    if given:
        return f"{given[0]}=None"
    if dk != v.shape[-1] or dk % 8 or dk > most:
        return f"dk = dv, a multiple of 8 up to {most}, not dk = {dk} and dv = {v.shape[-1]}"
    if bias is not None and q.dtype != jnp.bfloat16:
        return f"bfloat16 for a bias, not {q.dtype}"
    if bias is not None and bias.ndim == 2 and q.shape[1] != k.shape[1]:
        return "one bias for all heads where heads share their keys"
    return None


# Features by which a bias lengthens queries, keys and values: three parts of it and five of 0, for cuDNN wants multiples of 8.
_BIAS_FEATURES = 8


def _fused(q: Array, k: Array, v: Array, bias: Array | None, causal: bool, logit_scale: float | None) -> Array:
    """cuDNN's attention. It takes biases of a whole map only, n × m numbers: that of a key goes into the key instead."""
    scale, width = q.shape[-1] ** -0.5 if logit_scale is None else logit_scale, v.shape[-1]
    seen = None
    if bias is not None:
        q, k, v, seen = _bias_in_keys(q, k, v, bias, causal, scale)
    # The library's own arithmetic mixes types and ranks, which a caller may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation="cudnn")
    return out if seen is None else jnp.where(seen, out[..., :width], jnp.zeros((), out.dtype))


def _bias_in_keys(q: Array, k: Array, v: Array, bias: Array, causal: bool, scale: float):
    """Queries and keys whose products hold the bias, values of their width, and which queries see a key at all.

    b/s is the sum of three numbers of bfloat16 to the precision of float32. Keys left out get a bias that is lower by 1000 than
    twice the lowest of those that stay, counted from the largest.
    """
    (m, groups, _), (n, heads, _) = k.shape, q.shape
    level = jnp.broadcast_to(bias.astype(jnp.float32), (groups, m)).T
    stays = level != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(level, axis=0, keepdims=True))
    level = jnp.where(stays, level - jnp.where(top > -jnp.inf, top, 0), 0)
    level = jnp.where(stays, level, 2 * jax.lax.stop_gradient(jnp.min(level)) - 1000) / scale
    parts, rest = [], level
    for _ in range(3):
        parts.append(rest.astype(k.dtype))
        rest = rest - parts[-1].astype(jnp.float32)

    def longer(x: Array, *columns: Array) -> Array:
        zeros = jnp.zeros((*x.shape[:2], _BIAS_FEATURES - len(columns)), x.dtype)
        return jnp.concatenate([x, *(c[..., None] for c in columns), zeros], axis=-1)

    counted = jnp.cumsum(stays, axis=0) > 0 if causal else jnp.any(stays, axis=0, keepdims=True)
    seen = jnp.repeat(counted, heads // groups, axis=1)[..., None]
    ones = jnp.ones((n, heads), q.dtype)
    return longer(q, ones, ones, ones), longer(k, *parts), longer(v), seen


def _check(q: Array, k: Array, v: Array, bias: Array | None, alibi: Array | None, implementation: str) -> None:
    for name, x in (("q", q), ("k", k), ("v", v), ("bias", bias), ("alibi", alibi)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"attend: {name} has type {x.dtype}; it must be floating point, cast it first.")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(f"attend: {name} has shape {x.shape}; it must be (tokens, heads, features), none 0.")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attend: q, k and v have types {q.dtype}, {k.dtype}, {v.dtype}; cast them to one type.")
    if k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attend: k has shape {k.shape}; its features must be those of q, {q.shape[2]}, and its heads divide {q.shape[1]}."
        )
    if v.shape[:2] != k.shape[:2]:
        raise ValueError(f"attend: v has shape {v.shape}; its tokens and heads must be those of k, {k.shape[:2]}.")
    per_head = (q.shape[1], k.shape[0])
    if bias is not None and bias.shape not in (per_head[1:], per_head):
        raise ValueError(
            f"attend: bias has shape {bias.shape}; it must be {per_head[1:]}, one number per key, or {per_head}."
        )
    choice("attend", "implementation", implementation, IMPLEMENTATIONS)


def _check_positions(q: Array, k: Array, alibi: Array | None, causal: bool, window: Any) -> Any:
    """The window as an array; raise for options that do not fit."""
    for name, given in (("causal", causal), ("window", window is not None), ("alibi", alibi is not None)):
        if given and q.shape[0] != k.shape[0]:
            raise ValueError(
                f"attend: {name} needs as many queries as keys, not {q.shape[0]} and {k.shape[0]}; positions must agree."
            )
    if alibi is not None and alibi.shape != q.shape[1:2]:
        raise ValueError(f"attend: alibi has shape {alibi.shape}; it must be {q.shape[1:2]}, one slope per head.")
    finite("attend", "alibi", alibi, "a slope is one finite number per head")
    return None if window is None else window_size("attend", window)


def positive(owner: str, name: str, value: Any) -> float | None:
    """A scale or a cap of logits as a number of Python, whose type bends to that of the field; None stays."""
    return None if value is None else number(owner, name, value, above=0)


def window_size(owner: str, window: Any) -> Array:
    """A window as an integer array, which layers of different windows share; raise unless it is an integer of at least 1."""
    advice = "a query sees the keys less than so many tokens away"
    if traced(window):
        if window.ndim or not jnp.issubdtype(window.dtype, jnp.integer):
            raise TypeError(f"{owner}: window is traced as {window.dtype}{window.shape}; it must be one integer.")
        return window
    return jnp.asarray(integer(owner, "window", window, 1, 2**31 - 1, advice=advice), jnp.int32)
