"""Interaction: attention as a non-local integral operator."""

import math
from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._types import Depth, Field, Mask
from pdejax.solvers import Grid
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    Linear,
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
from pdejax.terms._constants import Lipschitz, in_float64, leaking, operator_norm
from pdejax.terms._kernels import IMPLEMENTATIONS, attend
from pdejax.terms._normalization import Norm, largest_output, norm_slope
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
    role: ClassVar[str] = "interaction"

    @checked
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
        for name, value in (("dim", dim), ("heads", heads), ("head_dim", 1 if head_dim is None else head_dim)):
            _check.integer("Attention", name, value)
        if head_dim is None and dim % heads:
            divisors = [h for h in range(1, dim + 1) if dim % h == 0]
            raise ValueError(
                f"Attention: heads={heads} does not divide dim={dim}. Choose heads from {divisors} or give head_dim."
            )
        _check.choice("Attention", "kernel", kernel, get_args(Kernel))
        if causal and kernel in ("linear", "uniform"):
            raise ValueError(f"Attention: causal=True needs a softmax kernel, not kernel={kernel!r}.")
        dk = dim // heads if head_dim is None else head_dim
        if rotary is not None and dk % 2:
            raise ValueError(f"Attention: rotary positions turn pairs of features, so dk={dk} must be even.")
        _check.choice("Attention", "implementation", implementation, IMPLEMENTATIONS)
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
        Quadrature weights, causality and padding change the softmax but not the bound (padding changes that of the other kernels
        in the Frobenius norm). Biases, rotary positions and the kernels `"l2"`, `"linear"` and `"uniform"` enter through the
        derivatives of the logits; the leak adds α. With an input norm R is the radius of the normalized tokens about the norm's
        bias, and the norm's own constant multiplies (`spread`: lower bound of a token's standard deviation over its features; 0
        gives ‖diag(g)P‖₂/√ε, which is large).

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
        self.check(n, self.wq.shape[0])
        strength = float(in_float64(self.strength))
        alpha = abs(strength)
        outer = norm_slope(self.norm, spread) * norm_slope(self.norm_out)
        heads = [self._head_lipschitz(h, n, float(radius), norm) for h in range(self.wq.shape[1])]
        wo = in_float64(self.wo)
        apart = sum(apart for apart, _ in heads)
        together = operator_norm(wo.reshape(-1, wo.shape[-1])) * math.hypot(*(value for _, value in heads))
        averages = self.kernel in ("uniform", "linear") and norm == "frobenius"
        conditions = ("no padding: it changes the weights of the average",) if averages else ()
        rest, leak = leaking(strength, self.leak)
        return Lipschitz(alpha * outer * min(apart, together) + rest, leak, conditions=conditions)

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
        wv, wo = in_float64(self.wv), in_float64(self.wo)
        heads = range(wv.shape[1])
        bv = np.zeros(wv.shape[1:]) if self.bv is None else in_float64(self.bv)
        centre, reach = (np.zeros(len(wv)), 1.0) if self.norm is None else self.norm.ball()
        constant = np.einsum("hk,hkd->d", bv + np.tensordot(centre, wv, 1), wo)
        constant = constant if self.bo is None else constant + in_float64(self.bo)
        apart = sum(operator_norm(wv[:, h] @ wo[h]) for h in heads)
        together = operator_norm(wo.reshape(-1, wo.shape[-1])) * math.hypot(*(operator_norm(wv[:, h]) for h in heads))
        gain, offset = abs(alpha) * min(apart, together), abs(alpha) * float(np.linalg.norm(constant))
        if self.norm is not None:
            # Normalized tokens, and so their averages, stay in a ball.
            return leak, offset + gain * reach
        if norm == "mesh":
            w = np.full(n, 1 / n) if self.quadrature is None else in_float64(self.quadrature)
            # ‖1wᵀ‖₂ = √n‖w‖₂ for the uniform kernel; a softmax may be any row-stochastic matrix.
            gain *= math.sqrt(n) * (float(np.linalg.norm(w / w.sum())) if self.kernel == "uniform" else 1.0)
        return leak + gain, offset

    def _head_lipschitz(self, h: int, n: int, radius: float, norm: str) -> tuple[float, float]:
        """Lipschitz constants of one head on normalized tokens, with and without its block of W_O."""
        wq, wk, wv = (in_float64(w)[:, h] for w in (self.wq, self.wk, self.wv))
        wo = in_float64(self.wo)[h]
        bq, bk, bv = (np.zeros(wq.shape[1]) if b is None else in_float64(b)[h] for b in (self.bq, self.bk, self.bv))
        if self.norm is not None:
            # The ball about the norm's bias becomes one about 0, with that bias inside those of the projections.
            centre, radius = self.norm.ball(radius)
            bq, bk, bv = bq + centre @ wq, bk + centre @ wk, bv + centre @ wv
        mixed = math.sqrt(n) if norm == "frobenius" else 1.0
        gains = operator_norm(wv @ wo), operator_norm(wv)
        if self.kernel in ("softmax", "l2"):
            a, b = self._logit_slopes(wq, wk, bq, bk, radius)
            constant = mixed * (1 + b * radius) + a * radius
            return gains[0] * constant, gains[1] * constant
        w = np.full(n, 1 / n) if self.quadrature is None else in_float64(self.quadrature)
        average = mixed * float(np.linalg.norm(w / w.sum())) if norm == "frobenius" else 1.0
        if self.kernel == "uniform":
            return gains[0] * average, gains[1] * average
        # Without a softmax nothing centres the values: query side, key side and value side add up.
        nq, nk = operator_norm(wq), operator_norm(wk)
        query, key = nq * radius + float(np.linalg.norm(bq)), nk * radius + float(np.linalg.norm(bk))
        scale = wq.shape[1] ** -0.5
        offsets = float(np.linalg.norm(bv @ wo)), float(np.linalg.norm(bv))
        apart, together = (
            scale
            * (nq * key * (gain * radius + offset) + average * query * (nk * (gain * radius + offset) + key * gain))
            for gain, offset in zip(gains, offsets, strict=True)
        )
        return apart, together

    def _logit_slopes(self, wq, wk, bq, bk, radius: float) -> tuple[float, float]:
        """(a, b) of the derivation in `lipschitz` for the logits of a softmax kernel."""
        scale = wq.shape[1] ** -0.5
        rotary = self.rotary is not None
        nq, nk, lq, lk = operator_norm(wq), operator_norm(wk), float(np.linalg.norm(bq)), float(np.linalg.norm(bk))
        # A rotation between query and key keeps norms, not products of matrices; and it turns every key's bias by another
        # angle, so that biases no longer drop out of the softmax.
        cross = nq * nk if rotary else operator_norm(wq @ wk.T)
        a = scale * (cross * radius + (nq * lk if rotary else 0.0))
        b = scale * (cross * radius + (lq * nk if rotary else float(np.linalg.norm(bq @ wk.T))))
        if self.kernel != "l2":
            return a, b
        offset = lq + lk if rotary else float(np.linalg.norm(bq - bk))
        return 2 * a, 2 * scale * (cross * radius + nk**2 * radius + offset * nk)

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
