r"""Lipschitz certificate of attention on a ball, THEORY claim C12.

Derivation, one head, z_ij the logits, p_ij the softmax over j, ū_i = Σ_j p_ij u_j, M = W_V W_O:

$$\delta f_i = \Big[\sum_j p_{ij}\,\delta u_j + \sum_j p_{ij}\,(\partial_{u_i} z_{ij}\cdot\delta u_i)(u_j - ū_i)
  + \sum_j p_{ij}\,(\partial_{u_j} z_{ij}\cdot\delta u_j)(u_j - ū_i)\Big] M .$$

On the ball, Σ_j p_ij‖u_j − ū_i‖² ≤ R². Let a bound the spread of ∂z_ij/∂u_i over the keys (its standard deviation
under p in any direction) and b bound ‖∂z_ij/∂u_j‖. By Cauchy–Schwarz the second sum is at most aR‖δu_i‖ and the third
bR(Σ_j p_ij‖δu_j‖²)^{1/2}. In the token-max norm all three add to 1 + (a + b)R. In the Frobenius norm the first and third
pick up (max_j Σ_i p_ij)^{1/2} ≤ √n: √n(1 + bR) + aR. For dot-product logits a = b = ‖B‖₂R, B = W_Q W_Kᵀ/√dk.
"""

import math

import numpy as np

from pdejax.analysis.stability._lipschitz_certificate import (
    Certificate,
    certificate,
    check_domain,
    check_norm,
    operator_norm,
    weights,
)
from pdejax.analysis.stability._lipschitz_pointwise import norm_slope, normalized_ball
from pdejax.terms import Attention


def attention_lipschitz(
    attention: Attention, n: int, radius: float, *, norm: str = "token_max", spread: float = 0.0
) -> Certificate:
    r"""Lipschitz certificate of an [`Attention`][pdejax.Attention] term on n tokens with ‖u_i‖₂ ≤ R.

    Softmax kernel, $B_h = W_Q^hW_K^{h\top}/\sqrt{d_k}$, $M_h = W_V^hW_O^h$, α the strength:

    | norm | constant |
    |---|---|
    | token-max | $\alpha\sum_h\|M_h\|_2\,(1 + 2\|B_h\|_2R^2)$ |
    | Frobenius | $\alpha\sum_h\|M_h\|_2\,(\sqrt n\,(1 + \|B_h\|_2R^2) + \|B_h\|_2R^2)$ |

    or with $\|W_O\|_2(\sum_h\|W_V^h\|_2^2(\cdot)^2)^{1/2}$ in the place of the sum over heads, whichever is smaller.
    Quadrature weights, causality and padding change the softmax but not the bound. Biases, rotary positions and the
    kernels `"l2"`, `"linear"` and `"uniform"` enter through the derivatives of the logits; the leak adds α. With an
    input norm R is the radius of the normalized tokens about the norm's bias, and the norm's own constant multiplies
    (`spread`: lower bound of a token's standard deviation over its features; 0 gives 1/√ε, which is large).

    The Frobenius form is below that of Castin, Ablin, Peyré, arXiv 2312.14820, Theorem 3.3
    ([`castin_bound`][pdejax.analysis.castin_bound]) for every ‖B‖, R and n, by a factor of 1.5 to 3.5 for large n,
    because (x + y + z)² ≤ 3(x² + y² + z²). Dot-product attention on all of space is
    not Lipschitz: Kim, Papamakarios, Mnih, arXiv 2006.04710, Theorem 3.1.

    Raises `TypeError` for another term, `ValueError` for n < 1, a radius that is not positive and finite, an unknown
    norm, or quadrature weights for another n.
    """
    check_norm(norm)
    check_domain(n, radius, spread)
    if not isinstance(attention, Attention):
        raise TypeError(f"attention is a {type(attention).__name__}; pass a pdejax.Attention.")
    attention.check(n, attention.wq.shape[0])
    alpha = abs(float(weights(attention.strength)))
    outer = norm_slope(attention.norm, spread) * norm_slope(attention.norm_out, 0.0)
    heads = [_head(attention, h, n, float(radius), norm) for h in range(attention.wq.shape[1])]
    wo = weights(attention.wo)
    apart = sum(apart for apart, _ in heads)
    together = operator_norm(wo.reshape(-1, wo.shape[-1])) * math.hypot(*(value for _, value in heads))
    parts = {"attention": alpha * outer * min(apart, together)}
    if attention.leak:
        parts["leak"] = alpha
    averages = attention.kernel in ("uniform", "linear") and norm == "frobenius"
    conditions = ("no padding: it changes the weights of the average",) if averages else ()
    return certificate(parts, norm, radius=float(radius), n=int(n), spread=float(spread), conditions=conditions)


def castin_bound(value: float, key_query: float, radius: float, n: int) -> float:
    r"""$\sqrt3\,\|V\|_2\,(\|A\|_2^2R^4(4n+1) + n)^{1/2}$, the Frobenius constant of single-head softmax attention with
    value matrix V and logits ⟨u_i, A u_j⟩ (A = W_QᵀW_K/√d_k) on n tokens of norm ≤ R: Castin, Ablin, Peyré, arXiv
    2312.14820, Theorem 3.3. Arguments are ‖V‖₂, ‖A‖₂, R and n."""
    return math.sqrt(3) * value * math.sqrt(key_query**2 * radius**4 * (4 * n + 1) + n)


def _head(attention: Attention, h: int, n: int, radius: float, norm: str) -> tuple[float, float]:
    """Lipschitz constants of one head on normalized tokens, with and without its block of W_O."""
    wq, wk, wv = (weights(w)[:, h] for w in (attention.wq, attention.wk, attention.wv))
    wo = weights(attention.wo)[h]
    bq, bk, bv = (
        np.zeros(wq.shape[1]) if b is None else weights(b)[h] for b in (attention.bq, attention.bk, attention.bv)
    )
    if attention.norm is not None:
        # The ball about the norm's bias becomes one about 0, with that bias inside those of the projections.
        centre, radius = normalized_ball(attention.norm, radius)
        bq, bk, bv = bq + centre @ wq, bk + centre @ wk, bv + centre @ wv
    mixed = math.sqrt(n) if norm == "frobenius" else 1.0
    gains = operator_norm(wv @ wo), operator_norm(wv)
    if attention.kernel in ("softmax", "l2"):
        a, b = _slopes(attention, wq, wk, bq, bk, radius)
        constant = mixed * (1 + b * radius) + a * radius
        return gains[0] * constant, gains[1] * constant
    w = np.full(n, 1 / n) if attention.quadrature is None else weights(attention.quadrature)
    average = mixed * float(np.linalg.norm(w / w.sum())) if norm == "frobenius" else 1.0
    if attention.kernel == "uniform":
        return gains[0] * average, gains[1] * average
    # Without a softmax nothing centres the values: query side, key side and value side add up.
    nq, nk = operator_norm(wq), operator_norm(wk)
    query, key = nq * radius + float(np.linalg.norm(bq)), nk * radius + float(np.linalg.norm(bk))
    scale = wq.shape[1] ** -0.5
    offsets = float(np.linalg.norm(bv @ wo)), float(np.linalg.norm(bv))
    apart, together = (
        scale * (nq * key * (gain * radius + offset) + average * query * (nk * (gain * radius + offset) + key * gain))
        for gain, offset in zip(gains, offsets, strict=True)
    )
    return apart, together


def _slopes(attention: Attention, wq, wk, bq, bk, radius: float) -> tuple[float, float]:
    """(a, b) of this module's derivation for the logits of a softmax kernel."""
    scale = wq.shape[1] ** -0.5
    rotary = attention.rotary is not None
    nq, nk, lq, lk = operator_norm(wq), operator_norm(wk), float(np.linalg.norm(bq)), float(np.linalg.norm(bk))
    # A rotation between query and key keeps norms, not products of matrices; and it turns every key's bias by another
    # angle, so that biases no longer drop out of the softmax.
    cross = nq * nk if rotary else operator_norm(wq @ wk.T)
    a = scale * (cross * radius + (nq * lk if rotary else 0.0))
    b = scale * (cross * radius + (lq * nk if rotary else float(np.linalg.norm(bq @ wk.T))))
    if attention.kernel != "l2":
        return a, b
    offset = lq + lk if rotary else float(np.linalg.norm(bq - bk))
    return 2 * a, 2 * scale * (cross * radius + nk**2 * radius + offset * nk)
