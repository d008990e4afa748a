"""Rotary position embedding of queries and keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(x: Float[Array, "n H dk"], theta: float) -> Float[Array, "n H dk"]:
    """Rotary embedding (Su et al., arXiv 2104.09864, (34)), half-split convention: features `j` and `j + dk/2` of
    token `m` turn by the angle `m·theta^(−2j/dk)`, so that `⟨q_m, k_l⟩` depends on positions through `m − l` only.
    """
    n, _, dk = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, dk, 2, dtype=dtype) / dk)
    angle = jnp.arange(n, dtype=dtype)[:, None] * frequency[None, :]
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
