"""Norms of fields that mean the same on every mesh."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._arguments import checked
from pdejax._types import Mask


@checked
def mesh_norm(u: Float[Array, "... n d"], mask: Mask | None = None) -> Float[Array, "..."]:
    r"""Root-mean-square over tokens, $\|u\|_\Omega = (\tfrac1n \sum_i \|u_i\|^2)^{1/2}$, the discrete L² norm on Ω = [0, 1].

    Independent of n for samples of one function, unlike the Frobenius norm (which is √n times larger). With a mask the mean
    is over real tokens. Acts on the last two axes.
    """
    squares = jnp.sum(u**2, axis=-1)
    if mask is None:
        return jnp.sqrt(jnp.mean(squares, axis=-1))
    return jnp.sqrt(jnp.sum(jnp.where(mask, squares, 0), axis=-1) / jnp.sum(mask, dtype=u.dtype))


@checked
def token_max_norm(u: Float[Array, "... n d"], mask: Mask | None = None) -> Float[Array, "..."]:
    r"""Largest token norm, $|||u||| = \max_i \|u_i\|_2$, over real tokens. Acts on the last two axes."""
    sizes = jnp.sqrt(jnp.sum(u**2, axis=-1))
    return jnp.max(sizes if mask is None else jnp.where(mask, sizes, 0), axis=-1)
