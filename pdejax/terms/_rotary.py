"""Rotary position embedding of queries and keys."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax.terms._base import at_least_float32


def rotate(x: Float[Array, "n H dk"], theta: float) -> Float[Array, "n H dk"]:
    """Rotary embedding (Su et al., arXiv 2104.09864, (34)), half-split convention: features `j` and `j + dk/2` of
    token `m` turn by the angle `m·theta^(−2j/dk)`, so that `⟨q_m, k_l⟩` depends on positions through `m − l` only.
    """
    n, _, dk = x.shape
    dtype = at_least_float32(x.dtype)
    # In float64 whatever the field: a float32 angle near m = 1000 is already off by 6e-5.
    angle = np.arange(n)[:, None] * theta ** (-np.arange(0, dk, 2) / dk)[None, :]
    cos, sin = (jnp.asarray(part[:, None, :], dtype) for part in (np.cos(angle), np.sin(angle)))
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
