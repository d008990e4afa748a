"""Per-token normalization over features, as used inside blocks and as a retraction after a step."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._types import Field
from pdejax.terms._base import at_least_float32


class LayerNorm(eqx.Module):
    r"""Layer normalization of every token over its features (Ba et al., arXiv 1607.06450, (4)):

    $$\mathrm{LN}(u)_i = g \odot \frac{u_i - m_i}{\sqrt{v_i + \epsilon}} + b,\qquad
      m_i = \tfrac1d \sum_k u_{ik},\quad v_i = \tfrac1d \sum_k (u_{ik} - m_i)^2 .$$

    `scale` g and `bias` b have shape `(dim,)`. Not v2 (9), which averages over *tokens*: see `SpatialNorm`.
    Statistics are accumulated in at least float32.
    """

    scale: Float[Array, " d"]
    bias: Float[Array, " d"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = jnp.ones(dim)
        self.bias = jnp.zeros(dim)
        self.eps = eps

    @jax.named_scope("pdejax.LayerNorm")
    def __call__(self, u: Field) -> Field:
        x = u.astype(at_least_float32(u.dtype))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale.astype(y.dtype)[None] + self.bias.astype(y.dtype)[None]).astype(u.dtype)


class RMSNorm(eqx.Module):
    r"""Root-mean-square normalization (Zhang & Sennrich, arXiv 1910.07467, (4)):
    $\mathrm{RMS}(u)_i = g \odot u_i / \sqrt{\tfrac1d\|u_i\|^2 + \epsilon}$, with `scale` g of shape `(dim,)`.

    With `scale = 1/√d` and ε → 0 it projects every token on the unit sphere.
    """

    scale: Float[Array, " d"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = jnp.ones(dim)
        self.eps = eps

    @jax.named_scope("pdejax.RMSNorm")
    def __call__(self, u: Field) -> Field:
        x = u.astype(at_least_float32(u.dtype))
        y = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale.astype(y.dtype)[None]).astype(u.dtype)


class SphereProjection(eqx.Module):
    """Projects every token on the sphere of a given radius, `u_i ← radius · u_i / ‖u_i‖` (Geshkovski et al.,
    arXiv 2312.10794, (2.2)): the retraction for tokens on the sphere. A zero token stays zero."""

    radius: float = 1.0

    def __call__(self, u: Field) -> Field:
        squared = jnp.sum(u**2, axis=-1, keepdims=True)
        safe = jnp.where(squared > 0, squared, 1)
        return jnp.asarray(self.radius, u.dtype) * u * jax.lax.rsqrt(safe)


Norm = LayerNorm | RMSNorm
