"""Reaction: the feed-forward network as a local, pointwise term."""

from collections.abc import Callable
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._types import Activation, Depth, Field
from pdejax.solvers import Grid
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    check_features,
    check_grid,
    check_norms,
    gaussian,
    scalar,
)
from pdejax.terms._normalization import Norm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    # x·Φ(x) by erf: 3× cheaper on a CPU than the erfc form of jax.nn.gelu, and equal to rounding of |x|.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


class FeedForward(AbstractTerm):
    r"""Reaction term R of the master equation, v2 (6) and v1 (12)–(13):

    $$R(u)(x) = \alpha\,[\,\sigma(u W_1 + b_1) W_2 + b_2 - \ell\, u\,] + g(x, t).$$

    Shapes: `u (n, d)`, `w1 (d, hidden)`, `b1 (hidden,)`, `w2 (hidden, d)`, `b2 (d,)`; `g(x, t) (n, d)`.

    - `activation`: `"relu"` (v1 (13)), `"gelu"` (exact), `"gelu_tanh"`, `"silu"`, `"tanh"`, `"identity"`. ReLU is
      Lipschitz but not smooth: it caps the order of every integrator at 2.
    - `leak`: the "−u" of v2 (6). `strength` α scales network and leak together.
    - `source`: external input `g(x, t)` of v1 (12), a function of positions `x (n,)` and depth. Positions are the
      grid's points, or cell centres `(i + ½)/n` without a grid.
    - `norm`, `norm_out`: normalization before (pre-LN) and after (peri-LN) the network.

    Raises `ValueError` for an unknown activation or sizes below 1.
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, " hidden"]
    w2: Float[Array, "hidden d"]
    b2: Float[Array, " d"]
    strength: Array
    norm: Norm | None
    norm_out: Norm | None
    grid: Grid | None
    activation: str = eqx.field(static=True)
    leak: bool = eqx.field(static=True)
    source: Callable[[Array, Array], Array] | None

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        key: PRNGKeyArray,
        activation: str = "gelu",
        leak: bool = False,
        strength: ArrayLike = 1.0,
        source: Callable[[Array, Array], Array] | None = None,
        grid: Grid | None = None,
        norm: Norm | None = None,
        norm_out: Norm | None = None,
    ):
        if dim < 1 or hidden < 1:
            raise ValueError(f"FeedForward: dim={dim} and hidden={hidden} must be at least 1.")
        if activation not in get_args(Activation):
            raise ValueError(
                f"FeedForward: activation={activation!r} is unknown; choose one of {get_args(Activation)}."
            )
        w1, w2 = gaussian(key, (dim, hidden), (hidden, dim))
        self.w1, self.b1 = w1 / dim**0.5, jnp.zeros(hidden)
        self.w2, self.b2 = w2 / hidden**0.5, jnp.zeros(dim)
        self.strength = scalar("FeedForward", "strength", strength)
        self.norm, self.norm_out, self.grid = norm, norm_out, grid
        self.activation, self.leak, self.source = activation, leak, source

    @jax.named_scope("pdejax.FeedForward")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del args
        out = self.network(u if self.norm is None else self.norm(u))
        if self.norm_out is not None:
            out = self.norm_out(out)
        strength = self.strength.astype(u.dtype)
        du = strength * (out - u) if self.leak else strength * out
        if self.source is not None:
            source = jnp.asarray(self.source(self._positions(u), jnp.asarray(t, u.dtype)), u.dtype)
            if source.shape != u.shape:
                raise ValueError(
                    f"FeedForward: source returned shape {source.shape} for a field of shape {u.shape}; "
                    "it must return one value per token and feature."
                )
            du = du + source
        return du

    def network(self, x: Field) -> Field:
        """`σ(x W1 + b1) W2 + b2`, shape `(n, d)`: the FFN alone, without normalization, leak or source."""
        z = x @ self.w1.astype(x.dtype) + self.b1.astype(x.dtype)[None]
        return ACTIVATIONS[self.activation](z) @ self.w2.astype(x.dtype) + self.b2.astype(x.dtype)[None]

    def jacobian_trace(self, u: Field) -> Float[Array, " n"]:
        r"""$\mathrm{Tr}(\partial\,\mathrm{FFN}/\partial u)$ at every token, shape `(n,)`, the factor of v2 (8).

        Exact in O(n·d·hidden) for the bare network, $\sum_h \sigma'(z_h)\,(W_2 W_1)_{hh}$; with a norm inside, the
        trace of the composed Jacobian by d forward-mode products per token.
        """
        if self.norm is not None or self.norm_out is not None:
            return jax.vmap(lambda row: jnp.trace(jax.jacfwd(self._one_token)(row)))(u)
        z = u @ self.w1.astype(u.dtype) + self.b1.astype(u.dtype)[None]
        slope = jax.jvp(ACTIVATIONS[self.activation], (z,), (jnp.ones_like(z),))[1]
        return slope @ jnp.einsum("dh,hd->h", self.w1, self.w2).astype(u.dtype)

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.strength) if self.leak else jnp.zeros(())

    def check(self, n: int, d: int) -> None:
        check_features("FeedForward", self.w1.shape[-2], d)
        check_norms("FeedForward", d, self.norm, self.norm_out)
        if self.grid is not None:
            check_grid("FeedForward", self.grid.n, n)

    def _one_token(self, row: Float[Array, " d"]) -> Float[Array, " d"]:
        x = row[None]
        out = self.network(x if self.norm is None else self.norm(x))
        return (out if self.norm_out is None else self.norm_out(out))[0]

    def _positions(self, u: Field) -> Float[Array, " n"]:
        n = u.shape[0]
        points = (np.arange(n) + 0.5) / n if self.grid is None else self.grid.points
        return jnp.asarray(points, u.dtype)
