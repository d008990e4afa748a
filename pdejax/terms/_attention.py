"""Interaction: attention as a non-local integral operator."""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._types import Depth, Field, Mask
from pdejax.solvers import Grid
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    at_least_float32,
    check_features,
    check_grid,
    check_norms,
    concrete,
    constant,
    gaussian,
    mask_of,
    scalar,
)
from pdejax.terms._kernels import IMPLEMENTATIONS, attend
from pdejax.terms._normalization import Norm
from pdejax.terms._rotary import rotate

Kernel = Literal["softmax", "linear", "uniform", "l2"]


class Attention(AbstractTerm):
    r"""Interaction term A of the master equation, v2 (5) and (19), v1 (2), (9)–(11):

    $$A(u)(x_i) = \alpha\Big[\sum_{h=1}^H W_O^h \sum_j K^h_{ij}\, W_V^h u_j + b_O \;-\; \ell\, u_i\Big],\qquad
      K^h_{ij} = \frac{w_j e^{\langle q^h_i, k^h_j\rangle/\sqrt{d_k}}}{\sum_m w_m e^{\langle q^h_i, k^h_m\rangle/\sqrt{d_k}}}$$

    with $q^h = W_Q^h u$, $k^h = W_K^h u$ and quadrature weights $w_j$: the softmax over keys is the integral over
    Ω, so weights that differ enter the logits as `+ log w_j`; equal weights cancel.

    Shapes: `u (n, d)`; `wq, wk, wv (d, H, dk)`, `wo (H, dk, d)`, biases `bq, bk, bv (H, dk)`, `bo (d,)` or None.

    Arguments:

    - `dim`, `heads`: width d and number of heads H; H must divide d. `head_dim` overrides dk = d/H.
    - `leak`: the "−u" of v2 (5). Off for residual networks; on, one explicit Euler step with h = 1 is the
      non-residual layer `u ← Attn(u)`.
    - `strength`: α of v1 (1); a residual scale is the same thing.
    - `kernel`: `"softmax"`; `"linear"` (K = w_j⟨q_i, k_j⟩/√dk, no softmax, Σw = 1); `"uniform"` (K = w_j);
      `"l2"` (softmax of −‖q_i − k_j‖²/√dk, Kim et al., arXiv 2006.04710, (5)).
    - `causal`: token i sees keys j ≤ i only.
    - `grid` or `weights (n,)`: quadrature for tokens that are samples of a field on [0, length].
    - `rotary`: base θ of rotary positions, or None.
    - `norm`, `norm_out`: normalization before (pre-LN) and after (peri-LN) the operator; the leak stays outside.
    - `implementation`: how softmax is evaluated, see `pdejax.terms.attend`.

    Our `α·W_O W_V` is the papers' `α`, `W^O`, `W_V`; our dk is their d_k. Softmax is accumulated in ≥ float32.
    Raises `ValueError` for heads that do not divide the width, unknown kernels, or weights that are not positive.
    """

    wq: Float[Array, "d H dk"]
    wk: Float[Array, "d H dk"]
    wv: Float[Array, "d H dk"]
    wo: Float[Array, "H dk d"]
    bq: Float[Array, "H dk"] | None
    bk: Float[Array, "H dk"] | None
    bv: Float[Array, "H dk"] | None
    bo: Float[Array, " d"] | None
    strength: Array
    quadrature: Float[Array, " n"] | None
    norm: Norm | None
    norm_out: Norm | None
    leak: bool = eqx.field(static=True)
    kernel: str = eqx.field(static=True)
    causal: bool = eqx.field(static=True)
    rotary: float | None = eqx.field(static=True)
    implementation: str = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        key: PRNGKeyArray,
        head_dim: int | None = None,
        leak: bool = False,
        strength: ArrayLike = 1.0,
        kernel: str = "softmax",
        causal: bool = False,
        grid: Grid | None = None,
        weights: Float[Array, " n"] | None = None,
        rotary: float | None = None,
        bias: bool = False,
        norm: Norm | None = None,
        norm_out: Norm | None = None,
        implementation: str = "auto",
    ):
        if dim < 1 or heads < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(f"Attention: dim={dim}, heads={heads} and head_dim={head_dim} must be at least 1.")
        if head_dim is None and dim % heads:
            divisors = [h for h in range(1, dim + 1) if dim % h == 0]
            raise ValueError(
                f"Attention: heads={heads} does not divide dim={dim}. Choose heads from {divisors} or give head_dim."
            )
        if kernel not in get_args(Kernel):
            raise ValueError(f"Attention: kernel={kernel!r} is unknown; choose one of {get_args(Kernel)}.")
        if causal and kernel in ("linear", "uniform"):
            raise ValueError(f"Attention: causal=True needs a softmax kernel, not kernel={kernel!r}.")
        dk = dim // heads if head_dim is None else head_dim
        if rotary is not None and dk % 2:
            raise ValueError(f"Attention: rotary positions turn pairs of features, so dk={dk} must be even.")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"Attention: implementation={implementation!r} is unknown; choose one of {IMPLEMENTATIONS}."
            )
        if grid is not None and weights is not None:
            raise ValueError("Attention: give grid or weights, not both.")
        if grid is not None and grid.boundary == "dirichlet":
            weights = grid.weights
        inward, outward = (dim, heads, dk), (heads, dk, dim)
        wq, wk, wv, wo = gaussian(key, inward, inward, inward, outward)
        self.wq, self.wk, self.wv = wq / dim**0.5, wk / dim**0.5, wv / dim**0.5
        self.wo = wo / (heads * dk) ** 0.5
        self.bq = self.bk = self.bv = jnp.zeros((heads, dk)) if bias else None
        self.bo = jnp.zeros(dim) if bias else None
        self.strength = scalar("Attention", "strength", strength)
        self.quadrature = _positive(weights)
        self.norm, self.norm_out = norm, norm_out
        self.leak, self.kernel, self.causal, self.rotary = leak, kernel, causal, rotary
        self.implementation = implementation

    @jax.named_scope("pdejax.Attention")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t
        mask = mask_of(args)
        x = u if self.norm is None else self.norm(u)
        value = _project(x, self.wv, self.bv)
        if self.kernel in ("softmax", "l2"):
            q, k, bias = self._logits(x, mask)
            mixed = attend(q, k, value, bias=bias, causal=self.causal, implementation=self.implementation)
        else:
            w = self._normalized_weights(x.shape[0], x.dtype, mask)
            if self.kernel == "uniform":
                mean = jnp.einsum("j,jhk->hk", w, value)
                mixed = jnp.broadcast_to(mean[None], value.shape)
            else:
                q, k = self._queries_keys(x)
                state = jnp.einsum("j,jhk,jhe->hke", w, k, value) / q.shape[-1] ** 0.5
                mixed = jnp.einsum("ihk,hke->ihe", q, state)
        out = jnp.einsum("ihk,hkd->id", mixed, self.wo.astype(u.dtype))
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
            return jnp.einsum("ihk,jhk->hij", q, k) * w[None, None, :] / q.shape[-1] ** 0.5
        q, k, bias = self._logits(x, mask)
        logits = jnp.einsum("ihk,jhk->hij", q, k) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + (bias[None, None, :] if bias.ndim == 1 else bias[:, None, :])
        if self.causal:
            visible = jnp.tril(jnp.ones((n, n), bool))
            logits = jnp.where(visible[None], logits, -jnp.inf)
        logits = logits.astype(at_least_float32(x.dtype))
        # A causal query whose every key is padding attends to nothing, as in `attend`.
        seen = jnp.any(jnp.isfinite(logits), axis=-1, keepdims=True)
        return jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, 0), axis=-1), 0).astype(x.dtype)

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.strength) if self.leak else jnp.zeros(())

    def check(self, n: int, d: int) -> None:
        check_features("Attention", self.wq.shape[-3], d)
        check_norms("Attention", d, self.norm, self.norm_out)
        if self.quadrature is not None:
            check_grid("Attention (its quadrature weights)", self.quadrature.shape[-1], n)

    def _queries_keys(self, x: Field) -> tuple[Array, Array]:
        q, k = _project(x, self.wq, self.bq), _project(x, self.wk, self.bk)
        if self.rotary is not None:
            q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        return q, k

    def _logits(self, x: Field, mask: Mask | None) -> tuple[Array, Array, Array | None]:
        """Queries, keys and additive key bias such that the logits are `q·k/√dk + bias` up to a row constant."""
        q, k = self._queries_keys(x)
        bias = None
        if self.quadrature is not None:
            bias = jnp.log(self.quadrature).astype(x.dtype)
        if mask is not None:
            padding = jnp.where(mask, 0.0, -jnp.inf).astype(x.dtype)
            bias = padding if bias is None else bias + padding
        if self.kernel == "l2":
            # −‖q − k‖² = 2 q·k − ‖k‖² − ‖q‖², and the last part cancels in every row.
            norms = -jnp.sum(k**2, axis=-1).T / k.shape[-1] ** 0.5
            q = 2 * q
            bias = norms if bias is None else norms + bias[None]
        return q, k, bias

    def _normalized_weights(self, n: int, dtype, mask: Mask | None) -> Float[Array, " n"]:
        w = jnp.ones(n, dtype) if self.quadrature is None else self.quadrature.astype(dtype)
        if mask is not None:
            w = jnp.where(mask, w, 0)
        return w / jnp.sum(w)


def _project(x: Field, w: Float[Array, "d H dk"], b: Float[Array, "H dk"] | None) -> Float[Array, "n H dk"]:
    out = jnp.einsum("nd,dhk->nhk", x, w.astype(x.dtype))
    return out if b is None else out + b.astype(x.dtype)[None]


def _positive(weights):
    if weights is None:
        return None
    if concrete(weights) and not np.all(np.asarray(weights) > 0):
        raise ValueError("Attention: quadrature weights must all be positive, since the softmax needs log w_j.")
    if jnp.ndim(weights) != 1:
        raise ValueError(f"Attention: weights has shape {jnp.shape(weights)}; it must be (n,), one weight per token.")
    return constant(weights)
