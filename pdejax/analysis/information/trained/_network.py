"""The small network inside critics and learned Gaussians."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax.terms._base import gaussian


class Network(eqx.Module):
    r"""$W x + b + V_2\,\sigma(V_1\sigma(V_0x + a_0) + a_1)$ on rows `x (b, in) -> (b, out)`, σ = GELU.

    The affine part makes linear relations exact; `hidden` = 0 leaves it alone. With `quiet` V₂ = 0 at the start.
    """

    w: Float[Array, "out inputs"]
    b: Float[Array, " out"]
    v0: Float[Array, "hidden inputs"] | None
    a0: Float[Array, " hidden"] | None
    v1: Float[Array, "hidden hidden"] | None
    a1: Float[Array, " hidden"] | None
    v2: Float[Array, "out hidden"] | None

    def __init__(self, inputs: int, outputs: int, hidden: int, *, key: PRNGKeyArray, quiet: bool = False):
        scales = [max(n, 1) ** -0.5 for n in (inputs, inputs, hidden, hidden)]
        shapes = [(outputs, inputs), (hidden, inputs), (hidden, hidden), (outputs, hidden)]
        w, v0, v1, v2 = (s * a for s, a in zip(scales, gaussian(key, *shapes), strict=True))
        self.w, self.b = jnp.zeros_like(w) if quiet else w, jnp.zeros(outputs)
        self.v0 = self.a0 = self.v1 = self.a1 = self.v2 = None
        if hidden:
            self.v0, self.a0, self.v1, self.a1 = v0, jnp.zeros(hidden), v1, jnp.zeros(hidden)
            self.v2 = jnp.zeros_like(v2) if quiet else v2

    def __call__(self, x: Float[Array, "b inputs"]) -> Float[Array, "b out"]:
        out = _affine(x, self.w, self.b)
        if self.v0 is None:
            return out
        h = jax.nn.gelu(_affine(x, self.v0, self.a0), approximate=True)
        h = jax.nn.gelu(_affine(h, self.v1, self.a1), approximate=True)
        return out + _affine(h, self.v2, None)


def _affine(x: Array, w: Array | None, b: Array | None) -> Array:
    assert w is not None
    y = x @ w.T.astype(x.dtype)
    return y if b is None else y + b.astype(x.dtype)[None]
