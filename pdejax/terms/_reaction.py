"""Reaction: the feed-forward network as a local, pointwise term."""

import math
from collections.abc import Callable
from typing import ClassVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._products import product
from pdejax._types import Activation, Depth, Field, Mask
from pdejax.solvers import Grid
from pdejax.solvers._written import one_line
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    Linear,
    check_features,
    check_grid,
    check_norms,
    gaussian,
    scalar,
)
from pdejax.terms._constants import Lipschitz, activation_slopes, check_domain, in_float64, leaking, operator_norm
from pdejax.terms._normalization import Norm, largest_output, norm_slope
from pdejax.terms._token_axis import TokenAxis


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """x·Φ(x) by erf: 3× cheaper on a CPU than the erfc form of jax.nn.gelu, and equal to rounding of |x|."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
    # One array is kept for reverse mode, the slope, where the plain formula keeps three.
    (x,), (dx,) = primals, tangents
    share = 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
    return x * share, (share + x * jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5) * dx


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


class FeedForward(AbstractTerm):
    r"""Reaction term R of the master equation, v2 (6) and v1 (12)–(13):

    $$R(u)(x) = \alpha\,[\,\sigma(u W_1 + b_1) W_2 + b_2 - \ell\, u\,] + g(x, t).$$

    Shapes: `u (n, d)`, `w1, wg (d, hidden)`, `b1, bg (hidden,)`, `w2 (hidden, d)`, `b2 (d,)`; `g(x, t) (n, d)`. Every array
    may be replaced, a bias by None, with `equinox.tree_at`. A scale per feature (LayerScale) goes into W_2 and b_2.

    - `activation`: `"relu"` (v1 (13)), `"gelu"` (exact), `"gelu_tanh"`, `"silu"`, `"tanh"`, `"identity"`. ReLU is
      Lipschitz but not smooth: it caps the order of every integrator at 2.
    - `gate`: a gated network (Shazeer, arXiv 2002.05202, (6)), $[\sigma(u W_g + b_g)\odot(u W_1 + b_1)]W_2 + b_2$: SwiGLU with
      `"silu"`, GeGLU with `"gelu"` or `"gelu_tanh"`. `bias`: whether there are b_1, b_g and b_2.
    - `leak`: the "−u" of v2 (6). `strength` α scales network and leak together.
    - `source`: external input `g(x, t)` of v1 (12), a function of positions `x (n,)` and depth. Positions are the
      grid's points, or cell centres `(i + ½)/n` without a grid.
    - `norm`, `norm_out`: normalization before (pre-LN) and after (peri-LN) the network.

    Raises `ValueError` for an unknown activation or sizes below 1.
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, " hidden"] | None
    w2: Float[Array, "hidden d"]
    b2: Float[Array, " d"] | None
    wg: Float[Array, "d hidden"] | None
    bg: Float[Array, " hidden"] | None
    strength: Array
    norm: Norm | None
    norm_out: Norm | None
    grid: Grid | None
    activation: str = eqx.field(static=True)
    leak: bool = eqx.field(static=True)
    source: Callable[[Array, Array], Array] | None
    role: ClassVar[str] = "reaction"
    label: ClassVar[str] = "feed-forward"

    def __repr__(self) -> str:
        return one_line(self, ("w2", "b1", "b2", "bg"))

    @checked
    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        key: PRNGKeyArray,
        activation: str = "gelu",
        gate: bool = False,
        bias: bool = True,
        leak: bool = False,
        strength: ArrayLike = 1.0,
        source: Callable[[Array, Array], Array] | None = None,
        grid: Grid | None = None,
        norm: Norm | None = None,
        norm_out: Norm | None = None,
    ):
        _check.integer("FeedForward", "dim", dim)
        _check.integer("FeedForward", "hidden", hidden)
        _check.choice("FeedForward", "activation", activation, get_args(Activation))
        w1, w2, *wg = gaussian(key, (dim, hidden), (hidden, dim), *([(dim, hidden)] if gate else []))
        self.w1, self.b1 = w1 / dim**0.5, jnp.zeros(hidden) if bias else None
        self.w2, self.b2 = w2 / hidden**0.5, jnp.zeros(dim) if bias else None
        self.wg = wg[0] / dim**0.5 if gate else None
        self.bg = jnp.zeros(hidden) if gate and bias else None
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

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        if self.source is not None:
            raise ValueError(
                "FeedForward: a source g(x, t) is given for all tokens at once; leave it out on several devices."
            )
        return self

    def network(self, x: Field) -> Field:
        """`σ(x W1 + b1) W2 + b2`, or `[σ(x Wg + bg) ⊙ (x W1 + b1)] W2 + b2`, shape `(n, d)`: the FFN alone, without
        normalization, leak or source."""
        z = _affine(x, self.w1, self.b1)
        active = ACTIVATIONS[self.activation]
        hidden = active(z) if self.wg is None else active(_affine(x, self.wg, self.bg)) * z
        return _affine(hidden, self.w2, self.b2)

    def jacobian_trace(self, u: Field) -> Float[Array, " n"]:
        r"""$\mathrm{Tr}(\partial\,\mathrm{FFN}/\partial u)$ at every token, shape `(n,)`, the factor of v2 (8).

        Exact in O(n·d·hidden) for the bare network, $\sum_h \sigma'(z_h)\,(W_2 W_1)_{hh}$, for a gated one
        $\sum_h \sigma'(g_h) z_h\,(W_2 W_g)_{hh} + \sigma(g_h)\,(W_2 W_1)_{hh}$; with a norm inside, the
        trace of the composed Jacobian by d forward-mode products per token.
        """
        if self.norm is not None or self.norm_out is not None:
            return jax.vmap(lambda row: jnp.trace(jax.jacfwd(self._one_token)(row)))(u)
        z, active = _affine(u, self.w1, self.b1), ACTIVATIONS[self.activation]
        own = jnp.einsum("dh,hd->h", self.w1, self.w2).astype(u.dtype)
        if self.wg is None:
            return jax.jvp(active, (z,), (jnp.ones_like(z),))[1] @ own
        gate = _affine(u, self.wg, self.bg)
        value, slope = jax.jvp(active, (gate,), (jnp.ones_like(gate),))
        return (slope * z) @ jnp.einsum("dh,hd->h", self.wg, self.w2).astype(u.dtype) + value @ own

    def coefficient(self, u: Field, mask: Mask | None = None) -> Float[Array, " n"]:
        """The factor of v2 (8) that decides the sign of the diffusivity, `jacobian_trace`, at every token."""
        del mask
        return self.jacobian_trace(u)

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.strength) if self.leak else jnp.zeros(())

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n, mask
        return Linear(rate=self.strength) if self.leak else None

    def check(self, n: int, d: int) -> None:
        check_features("FeedForward", self.w1.shape[-2], d)
        check_norms("FeedForward", d, self.norm, self.norm_out)
        if self.grid is not None:
            check_grid("FeedForward", self.grid.n, n)

    @property
    def smoothness(self) -> float:
        """0 for ReLU, whose derivative jumps; ∞ for the other activations."""
        return 0.0 if self.activation == "relu" else math.inf

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        r"""Lipschitz constant, the same in both norms; without a gate on all fields.

        With slopes of the activation in $[c - r, c + r]$ the network's Jacobian is $W_1(cI + rT)W_2$ with T diagonal, ‖T‖₂
        ≤ 1, so

        $$\|\partial\,\mathrm{FFN}\|_2 \le |c|\,\|W_1W_2\|_2 + r\,\|W_1\|_2\|W_2\|_2 \le
          \sup|\sigma'|\,\|W_1\|_2\|W_2\|_2 .$$

        The first form is used. **A gated network** grows like |u|² and has a constant on balls alone. On ‖u_i‖ ≤ R, column h of
        W_1 gives $|z_h| \le Z_h = \|W_{1,h}\|R + |b_{1,h}|$, and $|\sigma(x)| \le |x|$ gives $|\sigma(g_h)| \le G_h =
        \|W_{g,h}\|R + |b_{g,h}|$ (at most 1 for tanh). Its Jacobian is $W_gT_1ZW_2\sup|\sigma'| + W_1T_2GW_2$ with T diagonal,
        ‖T‖₂ ≤ 1, so

        $$\|\partial\,\mathrm{FFN}\|_2 \le \sup|\sigma'|\min(\|W_g\|\|ZW_2\|, \|W_gZ\|\|W_2\|)
          + \min(\|W_1\|\|GW_2\|, \|W_1G\|\|W_2\|).$$

        It is multiplied by the constants of the norms before and after, and by α; the leak adds α. With a norm before it, R is
        the radius of the normalized tokens about the norm's bias, and the constant holds where every token deviates by at
        least `spread`.
        """
        _, radius, spread = check_domain("FeedForward.lipschitz", n, radius, norm, spread)
        strength = float(in_float64(self.strength))
        centre, reach = self._ball(radius)
        slope = self._slope(centre, reach) * norm_slope(self.norm, spread) * norm_slope(self.norm_out)
        rest, leak = leaking(strength, self.leak)
        return Lipschitz(abs(strength) * slope + rest, leak=leak)

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        r"""Growth in both norms, one-sided: $\lambda = \alpha(\lambda_{max}(\mathrm{sym}\,cW_1W_2) + r\|W_1\|_2\|W_2\|_2)$
        with slopes of the activation in [c − r, c + r], and f = ‖R(0)‖; with a norm before or after λ = 0 and f the largest
        output. A leak adds −α to λ.

        Raises `ValueError` where a source of unknown size is added, and for a gated network without a norm, whose growth is
        quadratic.
        """
        del n, norm
        if self.source is not None:
            raise ValueError(
                "the reaction has a source of unknown size: bound the equation without it and add sup‖g‖ to offset."
            )
        alpha = float(in_float64(self.strength))
        leak = -alpha if self.leak else 0.0
        if self.norm_out is not None:
            return leak, abs(alpha) * largest_output(self.norm_out)
        if self.norm is None and self.wg is not None:
            raise ValueError(
                "a gated feed-forward without a norm before it grows quadratically: it has no linear growth bound."
            )
        centre, reach = self._ball(math.inf)
        w1, w2 = in_float64(self.w1), in_float64(self.w2)
        at_centre = abs(alpha) * float(np.linalg.norm(self._hidden(centre) @ w2 + _bias(self.b2)))
        if self.norm is not None:
            return leak, at_centre + abs(alpha) * self._slope(centre, reach) * reach
        low, high = activation_slopes(self.activation)
        matrix = alpha * (low + high) / 2 * (w1 @ w2)
        one_sided = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
        return leak + one_sided + abs(alpha) * (high - low) / 2 * operator_norm(w1) * operator_norm(w2), at_centre

    def _ball(self, radius: float) -> tuple[np.ndarray, float]:
        """Centre and radius of a ball that holds what the network sees of tokens of norm up to `radius`."""
        return (np.zeros(self.w1.shape[0]), radius) if self.norm is None else self.norm.ball(radius)

    def _hidden(self, x: np.ndarray) -> np.ndarray:
        """The hidden values of one token, in float64."""
        z = x @ in_float64(self.w1) + _bias(self.b1)
        g = z if self.wg is None else x @ in_float64(self.wg) + _bias(self.bg)
        active = in_float64(ACTIVATIONS[self.activation](jnp.asarray(g)))
        return active if self.wg is None else active * z

    def _slope(self, centre: np.ndarray, reach: float) -> float:
        """Lipschitz constant of `network` on a ball."""
        low, high = activation_slopes(self.activation)
        w1, w2 = in_float64(self.w1), in_float64(self.w2)
        if self.wg is None:
            bound = (high - low) / 2 * operator_norm(w1) * operator_norm(w2)
            return abs(high + low) / 2 * operator_norm(w1 @ w2) + bound
        wg = in_float64(self.wg)
        largest = _largest(w1, self.b1, centre, reach)
        active = _largest(wg, self.bg, centre, reach)
        active = np.minimum(active, 1.0) if self.activation == "tanh" else active
        steepest = max(abs(low), abs(high))
        return steepest * _between(wg, largest, w2) + _between(w1, active, w2)

    def _one_token(self, row: Float[Array, " d"]) -> Float[Array, " d"]:
        x = row[None]
        out = self.network(x if self.norm is None else self.norm(x))
        return (out if self.norm_out is None else self.norm_out(out))[0]

    def _positions(self, u: Field) -> Float[Array, " n"]:
        n = u.shape[0]
        points = (np.arange(n) + 0.5) / n if self.grid is None else self.grid.points
        return jnp.asarray(points, u.dtype)


def _affine(x: Array, w: Array, b: Array | None) -> Array:
    out = product(x, w.astype(x.dtype))
    return out if b is None else out + b.astype(x.dtype)[None]


def _largest(w: np.ndarray, b: Array | None, centre: np.ndarray, reach: float) -> np.ndarray:
    """The largest absolute value of each output of an affine map on a ball."""
    return np.abs(centre @ w + _bias(b)) + np.linalg.norm(w, axis=0) * reach


def _bias(b: Array | None) -> np.ndarray | float:
    return 0.0 if b is None else in_float64(b)


def _between(left: np.ndarray, sizes: np.ndarray, right: np.ndarray) -> float:
    """A bound of ‖left T right‖₂ over diagonal T with |T_h| ≤ sizes_h."""
    return min(
        operator_norm(left * sizes) * operator_norm(right), operator_norm(left) * operator_norm(sizes[:, None] * right)
    )
