"""Exchange between the coupled layers of v1 (4)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._types import Field
from pdejax.solvers._written import one_line


class Exchange(eqx.Module):
    r"""Inter-layer communication $C_{l,l+1}(u) = W u + b$ of v1 (18)–(19): `w (d, d)` acts on features, `b (d,)`.

    In v1 (17) layer l loses $C_{l,l+1}(u_l)$ and layer l+1 gains it, so the sum over layers is conserved by exchange.
    """

    w: Float[Array, "d d"]
    b: Float[Array, " d"]

    __repr__ = one_line

    @checked
    def __init__(self, dim: int, *, key: PRNGKeyArray, scale: float = 1.0):
        _check.integer("Exchange", "dim", dim)
        self.w = scale * jax.random.normal(key, (dim, dim)) / dim**0.5
        self.b = jnp.zeros(dim)

    @jax.named_scope("pdejax.Exchange")
    def __call__(self, u: Field) -> Field:
        return u @ self.w.T.astype(u.dtype) + self.b.astype(u.dtype)[None]
