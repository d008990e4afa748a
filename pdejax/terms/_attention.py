"""Interaction: attention as a non-local integral operator."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._products import product
from pdejax._types import Depth, Field, Mask
from pdejax.solvers import Grid
from pdejax.solvers._written import one_line
from pdejax.terms._attention_bounds import attention_lipschitz, heads_in_float64, output_gain
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    Linear,
    check_features,
    check_grid,
    check_norms,
    concrete,
    constant,
    gaussian,
    mask_of,
    scalar,
)
from pdejax.terms._constants import Lipschitz, check_domain, in_float64, leaking
from pdejax.terms._kernels import IMPLEMENTATIONS, attend, attention_map, positive, window_size
from pdejax.terms._normalization import Norm, largest_output, norm_slope
from pdejax.terms._ring import ring_attend
from pdejax.terms._rotary import LONGEST, Rotary
from pdejax.terms._token_axis import TokenAxis

Kernel = Literal["softmax", "linear", "uniform", "l2"]


class Attention(AbstractTerm):
    r"""Interaction term A of the master equation, v2 (5) and (19), v1 (2), (9)–(11):

    $$A(u)(x_i) = \alpha\Big[\sum_{h=1}^H W_O^h \sum_j K^h_{ij}\, W_V^h u_j + b_O \;-\; \ell\, u_i\Big],\qquad
      K^h_{ij} = \frac{w_j e^{\langle q^h_i, k^h_j\rangle/\sqrt{d_k}}}{\sum_m w_m e^{\langle q^h_i, k^h_m\rangle/\sqrt{d_k}}}$$

    with $q^h = W_Q^h u + b_Q^h$, $k^h = W_K^h u + b_K^h$ and quadrature weights $w_j$: the softmax over keys is the integral over
    Ω, so weights that differ enter the logits as `+ log w_j`; equal weights cancel.

    Shapes: `u (n, d)`; `wq (d, H, dk)`, `wk, wv (d, G, dk)`, `wo (H, dk, d)`, biases `bq (H, dk)`, `bk, bv (G, dk)`,
    `bo (d,)` or None. Every array may be replaced, a bias by None, with `equinox.tree_at`.

    Arguments:

    - `dim`, `heads`: width d and number of heads H; H must divide d. `head_dim` overrides dk = d/H.
    - `kv_heads`: number G of heads of keys and values, which divides H (default H): head h reads group h·G // H (grouped-query
      attention, Ainslie et al., arXiv 2305.13245; G = 1 is multi-query attention).
    - `leak`: the "−u" of v2 (5). Off for residual networks; on, one explicit Euler step with h = 1 is the
      non-residual layer `u ← Attn(u)`.
    - `strength`: α of v1 (1); a residual scale is the same thing. A scale per feature (LayerScale) goes into W_O and b_O.
    - `kernel`: `"softmax"`; `"linear"` (K = w_j⟨q_i, k_j⟩/√dk, no softmax, Σw = 1); `"uniform"` (K = w_j);
      `"l2"` (softmax of −‖q_i − k_j‖²/√dk, Kim et al., arXiv 2006.04710, (5)).
    - `causal`: token i sees keys j ≤ i only. `window`: only keys with |i − j| < window; layers that are stacked may differ in it.
    - `grid` or `weights (n,)`: quadrature for tokens that are samples of a field on [0, length].
    - `rotary`: rotary positions, a `Rotary` or the base θ of plain ones, or None.
    - `alibi`: slopes `(H,)` m_h of a bias −m_h|i − j| of the logits (Press et al., arXiv 2108.12409), or None.
    - `logit_scale` s in the place of 1/√dk; `logit_cap` c: logits become c·tanh(z/c).
    - `bias`: True for all four biases, `"qkv"` for those of queries, keys and values.
    - `norm`, `norm_out`: normalization before (pre-LN) and after (peri-LN) the operator; the leak stays outside.
    - `norm_q`, `norm_k`: normalization of queries and keys before positions, over the dk features of each head (width dk) or over
      all heads at once (width H·dk, G·dk): Henry et al., arXiv 2010.04245.
    - `implementation`: how softmax is evaluated, see `pdejax.terms.attend`.

    Our `α·W_O W_V` is the papers' `α`, `W^O`, `W_V`; our dk is their d_k. Softmax is accumulated in ≥ float32.
    Raises `ValueError` for heads that do not divide the width, unknown kernels, weights that are not positive, or options of
    logits for a kernel without them.
    """

    wq: Float[Array, "d H dk"]
    wk: Float[Array, "d G dk"]
    wv: Float[Array, "d G dk"]
    wo: Float[Array, "H dk d"]
    bq: Float[Array, "H dk"] | None
    bk: Float[Array, "G dk"] | None
    bv: Float[Array, "G dk"] | None
    bo: Float[Array, " d"] | None
    strength: Array
    quadrature: Float[Array, " n"] | None
    alibi: Float[Array, " H"] | None
    window: Int[Array, ""] | None
    norm: Norm | None
    norm_out: Norm | None
    norm_q: Norm | None
    norm_k: Norm | None
    rotary: Rotary | None
    leak: bool = eqx.field(static=True)
    kernel: str = eqx.field(static=True)
    causal: bool = eqx.field(static=True)
    logit_scale: float | None = eqx.field(static=True)
    logit_cap: float | None = eqx.field(static=True)
    implementation: str = eqx.field(static=True)
    role: ClassVar[str] = "interaction"

    def __repr__(self) -> str:
        return one_line(self, ("wv", "wo", "bq", "bk", "bv", "bo"))

    @checked
    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        key: PRNGKeyArray,
        head_dim: int | None = None,
        kv_heads: int | None = None,
        leak: bool = False,
        strength: ArrayLike = 1.0,
        kernel: str = "softmax",
        causal: bool = False,
        window: int | Int[Array, ""] | None = None,
        grid: Grid | None = None,
        weights: Float[Array, " n"] | None = None,
        rotary: float | Rotary | None = None,
        alibi: Float[Array, " H"] | None = None,
        logit_scale: float | None = None,
        logit_cap: float | None = None,
        bias: bool | Literal["qkv"] = False,
        norm: Norm | None = None,
        norm_out: Norm | None = None,
        norm_q: Norm | None = None,
        norm_k: Norm | None = None,
        implementation: str = "auto",
    ):
        groups, dk = _sizes(dim, heads, kv_heads, head_dim)
        _check.choice("Attention", "kernel", kernel, get_args(Kernel))
        _check.choice("Attention", "implementation", implementation, IMPLEMENTATIONS)
        _check.choice("Attention", "bias", bias, (True, False, "qkv"))
        options = {"causal": causal or None, "window": window, "alibi": alibi, "logit_cap": logit_cap}
        options |= {"logit_scale": logit_scale, "norm_q": norm_q, "norm_k": norm_k, "rotary": rotary}
        _check_kernel(kernel, options | {"implementation": None if implementation == "auto" else implementation})
        _check_norm("norm_q", norm_q, heads, dk)
        _check_norm("norm_k", norm_k, groups, dk)
        if grid is not None and weights is not None:
            raise ValueError("Attention: give grid or weights, not both.")
        if grid is not None and grid.boundary == "dirichlet":
            weights = grid.weights
        inward, shared = (dim, heads, dk), (dim, groups, dk)
        wq, wk, wv, wo = gaussian(key, inward, shared, shared, (heads, dk, dim))
        self.wq, self.wk, self.wv = wq / dim**0.5, wk / dim**0.5, wv / dim**0.5
        self.wo = wo / (heads * dk) ** 0.5
        self.bq = jnp.zeros((heads, dk)) if bias else None
        self.bk = self.bv = jnp.zeros((groups, dk)) if bias else None
        self.bo = jnp.zeros(dim) if bias is True else None
        self.strength = scalar("Attention", "strength", strength)
        self.quadrature = _positive(weights)
        self.alibi = _slopes(alibi, heads)
        self.window = None if window is None else window_size("Attention", window)
        self.norm, self.norm_out, self.norm_q, self.norm_k = norm, norm_out, norm_q, norm_k
        self.rotary = _rotary(rotary, dk)
        self.leak, self.kernel, self.causal, self.implementation = leak, kernel, causal, implementation
        self.logit_scale = positive("Attention", "logit_scale", logit_scale)
        self.logit_cap = positive("Attention", "logit_cap", logit_cap)

    @jax.named_scope("pdejax.Attention")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t
        return self._on(u, mask_of(args), None)

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        if self.rotary is not None and tokens.length > LONGEST:
            raise ValueError(
                f"Attention: rotary positions on devices are known for {LONGEST:,} tokens, not for {tokens.length:,}; shorten "
                "the sequence or leave rotary out."
            )
        return lambda t, u, args: self._on(u, mask_of(args), tokens)

    def _on(self, u: Field, mask: Mask | None, tokens: TokenAxis | None) -> Field:
        """The term on all tokens, or on those of one device of `tokens`."""
        x = u if self.norm is None else self.norm(u)
        if self.kernel in ("softmax", "l2"):
            q, k, value = _project(x, (self.wq, self.wk, self.wv), (self.bq, self.bk, self.bv))
            given = self._logits(*self._placed(q, k, tokens), mask, tokens)
            if tokens is None:
                mixed = attend(**given, v=value, implementation=self.implementation)
            else:
                mixed = ring_attend(tokens, **given, v=value)
        else:
            (value,) = _project(x, (self.wv,), (self.bv,))
            w = self._normalized_weights(x.shape[0], x.dtype, mask, tokens)
            whole = (lambda part: part) if tokens is None else tokens.sum
            if self.kernel == "uniform":
                mean = self._for_heads(whole(jnp.einsum("j,jhk->hk", w, value)), 0)
                mixed = jnp.broadcast_to(mean[None], (x.shape[0], *mean.shape))
            else:
                q, k = self._queries_keys(x, tokens)
                state = whole(jnp.einsum("j,jhk,jhe->hke", w, k, value)) * self._scale()
                mixed = jnp.einsum("ihk,hke->ihe", q, self._for_heads(state, 0))
        out = product(mixed, self.wo.astype(u.dtype), over=2)
        if self.bo is not None:
            out = out + self.bo.astype(u.dtype)[None]
        if self.norm_out is not None:
            out = self.norm_out(out)
        strength = self.strength.astype(u.dtype)
        return strength * (out - u) if self.leak else strength * out

    def weights(self, u: Field, mask: Mask | None = None) -> Float[Array, "H n n"]:
        """Attention maps `K^h_ij` of shape `(H, n, n)`; for softmax kernels every row sums to 1 (to 0 where a causal
        query sees only padding)."""
        x = u if self.norm is None else self.norm(u)
        n = x.shape[0]
        w = self._normalized_weights(n, x.dtype, mask)
        if self.kernel == "uniform":
            return jnp.broadcast_to(w[None, None, :], (self.wq.shape[1], n, n))
        if self.kernel == "linear":
            q, k = self._queries_keys(x)
            return jnp.einsum("ihk,jhk->hij", q, self._for_heads(k, 1)) * w[None, None, :] * self._scale()
        return attention_map(**self._logits(*self._queries_keys(x), mask)).astype(x.dtype)

    def maps(self, u: Field, mask: Mask | None = None) -> Float[Array, "H n n"] | None:
        return self.weights(u, mask)

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.strength) if self.leak else jnp.zeros(())

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n, mask
        return Linear(rate=self.strength) if self.leak else None

    def check(self, n: int, d: int) -> None:
        check_features("Attention", self.wq.shape[-3], d)
        check_norms("Attention", d, self.norm, self.norm_out)
        if self.quadrature is not None:
            check_grid("Attention (its quadrature weights)", self.quadrature.shape[-1], n)

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        r"""Lipschitz constant on n tokens with ‖u_i‖₂ ≤ R, THEORY claim C12.

        Softmax kernel, $B_h = W_Q^hW_K^{h\top}/\sqrt{d_k}$, $M_h = W_V^hW_O^h$, α the strength:

        | norm | constant |
        |---|---|
        | token-max | $\alpha\sum_h\|M_h\|_2\,(1 + 2\|B_h\|_2R^2)$ |
        | Frobenius | $\alpha\sum_h\|M_h\|_2\,(\sqrt n\,(1 + \|B_h\|_2R^2) + \|B_h\|_2R^2)$ |

        or with $\|W_O\|_2(\sum_h\|W_V^h\|_2^2(\cdot)^2)^{1/2}$ in the place of the sum over heads, whichever is smaller.
        Quadrature weights, causality, a window, ALiBi and padding change the softmax but not the bound (padding changes that of
        the other kernels in the Frobenius norm). Biases, rotary positions and the kernels `"l2"`, `"linear"` and `"uniform"`
        enter through the derivatives of the logits; so does a cap, which weighs every key apart, so that b_K stays. Norms of
        queries and keys enter by their global constants ‖g‖/√ε, which are large, and by the balls that hold what they give.
        Heads of a group are heads with equal keys and values. The leak adds α. With an input norm R is the radius of the
        normalized tokens about the norm's bias, and the norm's own constant multiplies (`spread`: lower bound of a token's
        standard deviation over its features; 0 gives ‖diag(g)P‖₂/√ε, which is large).

        *Derivation*, one head, z_ij the logits, p_ij the softmax over j, ū_i = Σ_j p_ij u_j, M = W_V W_O:

        $$\delta f_i = \Big[\sum_j p_{ij}\,\delta u_j + \sum_j p_{ij}\,(\partial_{u_i} z_{ij}\cdot\delta u_i)(u_j - ū_i)
          + \sum_j p_{ij}\,(\partial_{u_j} z_{ij}\cdot\delta u_j)(u_j - ū_i)\Big] M .$$

        On the ball, Σ_j p_ij‖u_j − ū_i‖² ≤ R². Let a bound the spread of ∂z_ij/∂u_i over the keys (its standard deviation under p
        in any direction) and b bound ‖∂z_ij/∂u_j‖. By Cauchy–Schwarz the second sum is at most aR‖δu_i‖ and the third
        bR(Σ_j p_ij‖δu_j‖²)^{1/2}. In the token-max norm all three add to 1 + (a + b)R. In the Frobenius norm the first and third
        pick up (max_j Σ_i p_ij)^{1/2} ≤ √n: √n(1 + bR) + aR. For dot-product logits a = b = ‖B‖₂R.

        The Frobenius form is below that of Castin, Ablin, Peyré, arXiv 2312.14820, Theorem 3.3 (`castin_bound`) for every ‖B‖, R
        and n, by a factor of 1.5 to 3.5 for large n, because (x + y + z)² ≤ 3(x² + y² + z²). Dot-product attention on all of
        space is not Lipschitz: Kim, Papamakarios, Mnih, arXiv 2006.04710, Theorem 3.1.
        """
        n, radius, spread = check_domain("Attention.lipschitz", n, radius, norm, spread)
        self.check(n, self.wq.shape[0])
        strength = float(in_float64(self.strength))
        outer = norm_slope(self.norm, spread) * norm_slope(self.norm_out)
        constant = attention_lipschitz(self, n, radius, norm)
        averages = self.kernel in ("uniform", "linear") and norm == "frobenius"
        conditions = ("no padding: it changes the weights of the average",) if averages else ()
        rest, leak = leaking(strength, self.leak)
        return Lipschitz(abs(strength) * outer * constant + rest, leak, conditions=conditions)

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        r"""Growth $\lambda = \alpha\min(\sum_h\|M_h\|_2, \|W_O\|_2(\sum_h\|W_V^h\|_2^2)^{1/2})$, times √n in the mesh norm,
        and f the length of what the biases give; with a norm before or after λ = 0 and f the largest output. A leak adds −α to λ.

        Rows of a softmax are convex weights, so that growth needs neither W_Q nor W_K, nor a ball; only its growth in the mesh
        norm carries √n (claim C5). Raises `ValueError` for the linear kernel, which is cubic in u.
        """
        self.check(n, self.wq.shape[0])
        alpha = float(in_float64(self.strength))
        leak = -alpha if self.leak else 0.0
        if self.norm_out is not None:
            return leak, abs(alpha) * largest_output(self.norm_out)
        if self.kernel == "linear":
            raise ValueError("attention with kernel='linear' grows cubically: it has no linear growth bound.")
        heads = heads_in_float64(self)
        centre, reach = (np.zeros(self.wq.shape[0]), 1.0) if self.norm is None else self.norm.ball()
        constant = sum((head.bv + centre @ head.wv) @ head.wo for head in heads)
        constant = constant if self.bo is None else constant + in_float64(self.bo)
        gain = abs(alpha) * output_gain(heads, [(1.0, 1.0)] * len(heads))
        offset = abs(alpha) * float(np.linalg.norm(constant))
        if self.norm is not None:
            # Normalized tokens, and so their averages, stay in a ball.
            return leak, offset + gain * reach
        if norm == "mesh":
            w = np.full(n, 1 / n) if self.quadrature is None else in_float64(self.quadrature)
            # ‖1wᵀ‖₂ = √n‖w‖₂ for the uniform kernel; a softmax may be any row-stochastic matrix.
            gain *= math.sqrt(n) * (float(np.linalg.norm(w / w.sum())) if self.kernel == "uniform" else 1.0)
        return leak + gain, offset

    def _scale(self) -> float:
        return self.wq.shape[-1] ** -0.5 if self.logit_scale is None else self.logit_scale

    def _for_heads(self, x: Array, axis: int) -> Array:
        """What there is per group of heads, once per head of the group."""
        heads, groups = self.wq.shape[1], self.wk.shape[1]
        return x if heads == groups else jnp.repeat(x, heads // groups, axis=axis)

    def _queries_keys(self, x: Field, tokens: TokenAxis | None = None) -> tuple[Array, Array]:
        q, k = _project(x, (self.wq, self.wk), (self.bq, self.bk))
        return self._placed(q, k, tokens)

    def _placed(self, q: Array, k: Array, tokens: TokenAxis | None) -> tuple[Array, Array]:
        """Queries and keys normalized and turned to their positions."""
        if self.norm_q is not None:
            q = self.norm_q(q.reshape(-1, self.norm_q.scale.shape[-1])).reshape(q.shape)
        if self.norm_k is not None:
            k = self.norm_k(k.reshape(-1, self.norm_k.scale.shape[-1])).reshape(k.shape)
        if self.rotary is not None:
            at = None if tokens is None else tokens.positions()
            q, k = self.rotary(q, at), self.rotary(k, at)
        return q, k

    def _logits(self, q: Array, k: Array, mask: Mask | None, tokens: TokenAxis | None = None) -> dict[str, Any]:
        """What `attend` makes the logits of, up to a row constant."""
        bias = None
        if self.quadrature is not None:
            bias = jnp.log(self._weights_here(tokens)).astype(q.dtype)
        if mask is not None:
            padding = jnp.where(mask, 0.0, -jnp.inf).astype(q.dtype)
            bias = padding if bias is None else bias + padding
        if self.kernel == "l2":
            # −‖q − k‖² = 2 q·k − ‖k‖² − ‖q‖², and the last part cancels in every row.
            norms = self._for_heads(-jnp.sum(k**2, axis=-1).T * self._scale(), 0)
            q = 2 * q
            bias = norms if bias is None else norms + bias[None]
        return {
            "q": q,
            "k": k,
            "bias": bias,
            "alibi": self.alibi,
            "causal": self.causal,
            "window": self.window,
            "logit_scale": self.logit_scale,
            "logit_cap": self.logit_cap,
        }

    def _weights_here(self, tokens: TokenAxis | None) -> Array:
        assert self.quadrature is not None
        return self.quadrature if tokens is None else tokens.own(self.quadrature)

    def _normalized_weights(
        self, n: int, dtype, mask: Mask | None, tokens: TokenAxis | None = None
    ) -> Float[Array, " n"]:
        w = jnp.ones(n, dtype) if self.quadrature is None else self._weights_here(tokens).astype(dtype)
        if mask is not None:
            w = jnp.where(mask, w, 0)
        return w / (jnp.sum(w) if tokens is None else tokens.sum(jnp.sum(w)))


def _project(x: Field, ws: Sequence[Array], bs: Sequence[Array | None]) -> list[Array]:
    """`x w + b`, `(n, H, dk)` for each w `(d, H, dk)` and b `(H, dk)`, by one product: reverse mode copies x once."""
    widths = [math.prod(w.shape[1:]) for w in ws]
    joined = jnp.concatenate([w.reshape(w.shape[0], -1).astype(x.dtype) for w in ws], axis=1)
    parts = jnp.split(product(x, joined), list(itertools.accumulate(widths[:-1])), axis=1)
    parts = [part.reshape(-1, *w.shape[1:]) for part, w in zip(parts, ws, strict=True)]
    return [part if b is None else part + b.astype(x.dtype)[None] for part, b in zip(parts, bs, strict=True)]


def _sizes(dim: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Heads of keys and values, and dk."""
    given = {"dim": dim, "heads": heads, "head_dim": head_dim, "kv_heads": kv_heads}
    for name, value in given.items():
        _check.integer("Attention", name, 1 if value is None else value)
    if head_dim is None and dim % heads:
        raise ValueError(
            f"Attention: heads={heads} does not divide dim={dim}. Choose heads from {_divisors(dim)} or give head_dim."
        )
    groups = heads if kv_heads is None else kv_heads
    if heads % groups:
        raise ValueError(
            f"Attention: kv_heads={groups} does not divide heads={heads}. Choose kv_heads from {_divisors(heads)}."
        )
    return groups, dim // heads if head_dim is None else head_dim


def _divisors(size: int) -> list[int]:
    return [one for one in range(1, size + 1) if size % one == 0]


def _check_kernel(kernel: str, options: dict[str, Any]) -> None:
    """Raise for an option that a kernel has no place for."""
    allowed = {
        "softmax": tuple(options),
        "l2": ("causal", "window", "alibi", "logit_scale", "norm_q", "norm_k", "rotary", "implementation"),
        "linear": ("logit_scale", "norm_q", "norm_k", "rotary"),
        "uniform": (),
    }
    for name, value in options.items():
        if value is not None and name not in allowed[kernel]:
            kinds = " or ".join(repr(one) for one, names in allowed.items() if name in names)
            raise ValueError(f"Attention: {name} needs a kernel {kinds}, not kernel={kernel!r}.")


def _check_norm(name: str, norm: Norm | None, heads: int, dk: int) -> None:
    if norm is not None and norm.scale.shape[-1] not in (dk, heads * dk):
        raise ValueError(
            f"Attention: {name} has width {norm.scale.shape[-1]}; it must be {dk}, to normalize each head, or {heads * dk}, "
            "to normalize all heads at once."
        )


def _rotary(rotary: float | Rotary | None, dk: int) -> Rotary | None:
    if rotary is None:
        return None
    if not isinstance(rotary, Rotary):
        if dk % 2:
            raise ValueError(f"Attention: rotary positions turn pairs of features, so dk={dk} must be even.")
        rotary = Rotary(dk, _check.number("Attention", "rotary", rotary, above=0, advice="it is the base θ"))
    if rotary.dim > dk:
        raise ValueError(f"Attention: rotary turns {rotary.dim} features, but a head has dk={dk}.")
    return rotary


def _slopes(alibi: Array | None, heads: int) -> Array | None:
    if alibi is None:
        return None
    if jnp.shape(alibi) != (heads,):
        raise ValueError(f"Attention: alibi has shape {jnp.shape(alibi)}; it must be ({heads},), one slope per head.")
    _check.finite("Attention", "alibi", alibi, "a slope is one finite number per head")
    return constant(alibi)


def _positive(weights):
    if weights is None:
        return None
    if concrete(weights) and not np.all((np.asarray(weights) > 0) & np.isfinite(np.asarray(weights))):
        raise ValueError("Attention: weights must all be positive and finite, since the softmax needs log w_j.")
    if jnp.ndim(weights) != 1:
        raise ValueError(f"Attention: weights has shape {jnp.shape(weights)}; it must be (n,), one weight per token.")
    return constant(weights)
