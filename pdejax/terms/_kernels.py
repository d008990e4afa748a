"""Attention kernels: one function, `attend`, in several implementations of the same sum.

All but cuDNN's are plain JAX operations (`lax.map` over blocks, `jax.checkpoint` on a block), so that `vmap`,
forward mode, reverse mode and their compositions all work.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from pdejax._arguments import checked

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


def keep_saved(primitive: Any, /, *_: Any, **parameters: Any) -> bool:
    """The `jax.checkpoint` policy that keeps `SAVED`. JAX's own, `save_only_these_names`, fails for a primitive that has a
    parameter called `prim`, such as those of the tridiagonal solves."""
    return primitive.name == "name" and parameters["name"] in SAVED


@checked
def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    bias: Array | None = None,
    causal: bool = False,
    implementation: str = "auto",
) -> Array:
    r"""Multi-head softmax attention, for query i and head h,

    $o_{ih} = \sum_j p_{ijh} v_{jh}, \quad p_{ijh} = e^{z_{ijh}} / \sum_l e^{z_{ilh}}, \quad
    z_{ijh} = q_{ih}\cdot k_{jh}/\sqrt{d_k} + b_{jh}$.

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
    precision, no bias and dk = dv a multiple of 8 up to 128; it has reverse mode only. `"auto"` is settled
    while tracing, by platform, type and shape: fused where possible, dense for small maps, else blocked.

    Args:
        q: queries, `(n, H, dk)`.
        k: keys, `(m, H, dk)`.
        v: values, `(m, H, dv)`, of the type of `q` and `k`.
        bias: added to the logits, `(m,)` or `(H, m)`; no unit.
        causal: query i sees only the keys j <= i; needs n = m.
        implementation: `"auto"`, `"dense"`, `"blocked"` or `"fused"`.

    Returns:
        The weighted means of the values, `(n, H, dv)`.

    Raises:
        ValueError: wrong rank or size, `causal` with n != m, an implementation unknown or not possible here.
        TypeError: arrays that are not floating point, or `q`, `k`, `v` of different types.

    Source: v2 (5) and v1 (9)-(11), the weights of the integrals explicit. Dividing after the product with `v`
    and computing blocks again: Rabe and Staats, arXiv:2112.05682; Dao et al., arXiv:2205.14135.
    """
    _check(q, k, v, bias, causal, implementation)
    n, heads, _ = q.shape
    accumulator = _accumulator(q.dtype)
    platform = _platform()
    kind = "cpu" if platform == "cpu" else "other"
    refusal = _refusal(platform, q, v, bias)
    if implementation == "auto":
        scores = heads * n * k.shape[0] * accumulator.itemsize
        implementation = "dense" if scores <= _DENSE_BYTES[kind] else "blocked"
        implementation = implementation if refusal else "fused"
    if implementation == "fused":
        if refusal:
            raise ValueError(f"implementation 'fused' needs {refusal}: choose 'auto', 'dense' or 'blocked'")
        # The library's own arithmetic mixes types and ranks, which a caller may have forbidden.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if bias is not None:
        bias = jnp.broadcast_to(bias.astype(accumulator), (heads, k.shape[0]))
    # The scale goes into q, n dk products instead of n m. In half precision it is applied before rounding.
    q = (q.astype(accumulator) * q.shape[-1] ** -0.5).astype(q.dtype).swapaxes(0, 1)
    keys = k.transpose(1, 2, 0)
    values = v.swapaxes(0, 1)
    if implementation == "dense":
        positions = jnp.arange(n) if causal else None
        out = jax.vmap(_softmax, in_axes=(0, 0, 0, None if bias is None else 0, None))(q, keys, values, bias, positions)
    else:
        rows = max(_BLOCK_BYTES[kind] // (k.shape[0] * accumulator.itemsize), _MIN_ROWS)
        out = _blocked(q, keys, values, bias, causal, rows)
    return out.swapaxes(0, 1).astype(v.dtype)


def _softmax(q: Array, k: Array, v: Array, bias: Array | None, positions: Array | None) -> Array:
    """One head: q (r, dk) scaled, k (dk, m), v (m, dv), bias (m,), positions (r,) if causal."""
    accumulator = _accumulator(q.dtype)
    z = jnp.matmul(q, k, preferred_element_type=accumulator)
    if bias is not None:
        z = z + bias[None, :]
    if positions is not None:
        z = jnp.where(jnp.arange(k.shape[1])[None, :] <= positions[:, None], z, -jnp.inf)
    shift = jax.lax.stop_gradient(z.max(axis=1, keepdims=True))
    shift = checkpoint_name(jnp.where(shift > -jnp.inf, shift, 0.0), SAVED[0])
    e = jnp.exp(z - shift)
    # Normalising the (r, dv) product instead of the (r, m) map saves a pass over the map.
    numerator = jnp.matmul(e.astype(v.dtype), v, preferred_element_type=accumulator)
    numerator = checkpoint_name(numerator, SAVED[1])
    normaliser = checkpoint_name(e.sum(axis=1, keepdims=True), SAVED[2])
    return numerator / jnp.where(normaliser > 0, normaliser, 1.0)


def _blocked(q: Array, k: Array, v: Array, bias: Array | None, causal: bool, rows: int) -> Array:
    """`_softmax` for each head (leading axis) and each block of about `rows` queries, one after the other."""
    heads, n, dk = q.shape
    blocks = -(-n // rows)
    rows = -(-n // blocks)
    q = jnp.pad(q, ((0, 0), (0, blocks * rows - n), (0, 0))).reshape(heads, blocks, rows, dk)
    positions = jnp.arange(blocks * rows).reshape(blocks, rows) if causal else None
    # With the shift, the product and the sum kept, reverse mode repeats one product and the exponential only.
    block: Callable[..., Array] = jax.checkpoint(_softmax, policy=keep_saved, prevent_cse=False)

    def head(operands):
        queries, keys, values, logits = operands
        return jax.lax.map(lambda x: block(x[0], keys, values, logits, x[1]), (queries, positions))

    def group(operands):
        return jnp.stack([head(jax.tree.map(lambda x, h=h: x[h], operands)) for h in range(together)])

    together = max(h for h in range(1, _HEADS_AT_ONCE + 1) if heads % h == 0)
    groups = jax.tree.map(lambda x: x.reshape(heads // together, together, *x.shape[1:]), (q, k, v, bias))
    out = jax.lax.map(group, groups)
    return out.reshape(heads, blocks * rows, -1)[:, :n]


def _platform() -> str:
    """The platform that a computation traced now is meant for: `jax.default_device` first, then the backend.

    Read when tracing rather than through `jax.lax.platform_dependent`, which traces every branch on every
    platform: cuDNN's cannot be traced where cuDNN is missing, and would deny the others forward mode.
    """
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _accumulator(dtype) -> jnp.dtype:
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _refusal(platform: str, q: Array, v: Array, bias: Array | None) -> str | None:
    """What cuDNN's attention needs and does not get; None if it can be used."""
    dk = q.shape[-1]
    if platform not in ("gpu", "cuda"):
        return f"an NVIDIA GPU, not the platform {platform!r}"
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"float16 or bfloat16, not {q.dtype}"
    if bias is not None:
        return "bias=None"
    if dk != v.shape[-1] or dk % 8 or dk > 128:
        return f"dk = dv, a multiple of 8 up to 128, not dk = {dk} and dv = {v.shape[-1]}"
    return None


def _check(q: Array, k: Array, v: Array, bias: Array | None, causal: bool, implementation: str) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}: it must be (tokens, heads, features), none of them 0")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} has type {x.dtype}: attention needs floating point, cast it first")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v have types {q.dtype}, {k.dtype}, {v.dtype}: cast them to one type")
    if k.shape[1:] != q.shape[1:]:
        raise ValueError(f"k has shape {k.shape}: heads and features must be those of q, {q.shape[1:]}")
    if v.shape[:2] != k.shape[:2]:
        raise ValueError(f"v has shape {v.shape}: tokens and heads must be those of k, {k.shape[:2]}")
    if bias is not None and bias.shape not in ((k.shape[0],), (k.shape[1], k.shape[0])):
        raise ValueError(
            f"bias has shape {bias.shape}: it must be {k.shape[:1]}, one number per key, or {k.shape[1::-1]}"
        )
    if causal and q.shape[0] != k.shape[0]:
        raise ValueError(
            f"causal needs as many queries as keys, got {q.shape[0]} and {k.shape[0]}: positions must agree"
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
