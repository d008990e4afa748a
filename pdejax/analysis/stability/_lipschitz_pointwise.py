"""Lipschitz certificates of what acts on every token alone: activations, the feed-forward network, normalization."""

import functools
import math

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from pdejax.analysis.stability._lipschitz_certificate import (
    Certificate,
    certificate,
    check_norm,
    check_spread,
    operator_norm,
    weights,
)
from pdejax.terms import FeedForward, LayerNorm, RMSNorm
from pdejax.terms._normalization import Norm
from pdejax.terms._reaction import ACTIVATIONS


@functools.cache
def activation_slopes(activation: str) -> tuple[float, float]:
    r"""Smallest and largest slope $(\inf\sigma', \sup\sigma')$ of an activation by name.

    GELU $x\Phi(x)$: $\sigma'' = \varphi(x)(2-x^2)$, so the extremes are at $\pm\sqrt2$, and their sum is 1:
    (−0.12890, 1.12890). SiLU: extremes where $x\tanh(x/2) = 2$: (−0.09984, 1.09984). The tanh form of GELU by a
    bounded search; ReLU and tanh (0, 1); identity (1, 1). Raises `ValueError` for an unknown name.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {tuple(ACTIVATIONS)}.")
    if activation == "identity":
        return 1.0, 1.0
    if activation in ("relu", "tanh"):
        return 0.0, 1.0
    # σ(x) = x·S(x) with S(x) + S(−x) = 1 has σ'(x) + σ'(−x) = 1: one extreme gives the other.
    if activation == "gelu":
        x = math.sqrt(2)
        largest = 0.5 * (1 + math.erf(1)) + x * math.exp(-1) / math.sqrt(2 * math.pi)
    elif activation == "silu":
        x = float(brentq(lambda x: x * math.tanh(x / 2) - 2, 1, 4, xtol=1e-15))  # pyright: ignore[reportArgumentType]
        s = float(expit(x))
        largest = s + x * s * (1 - s)
    else:
        found = minimize_scalar(
            lambda x: -_gelu_tanh_slope(x), bounds=(0.5, 3), method="bounded", options={"xatol": 1e-9}
        )
        largest = _gelu_tanh_slope(float(found.x))  # pyright: ignore[reportAttributeAccessIssue]
    return 1 - largest, largest


def feedforward_lipschitz(reaction: FeedForward, *, norm: str = "token_max", spread: float = 0.0) -> Certificate:
    r"""Lipschitz certificate of a [`FeedForward`][pdejax.FeedForward] term on all fields, the same in both norms.

    With slopes in $[c - r, c + r]$ (see [`activation_slopes`][pdejax.analysis.activation_slopes]) the network's
    Jacobian is $W_1(cI + rT)W_2$ with T diagonal, ‖T‖₂ ≤ 1, so

    $$\|\partial\,\mathrm{FFN}\|_2 \le |c|\,\|W_1W_2\|_2 + r\,\|W_1\|_2\|W_2\|_2 \le
      \sup|\sigma'|\,\|W_1\|_2\|W_2\|_2 .$$

    The first form is used. It is multiplied by the constants of the norms before and after, and by α; the leak adds α.
    `spread`: lower bound of a token's standard deviation over its features, for the norm before (0: none).

    Raises `TypeError` for another term, `ValueError` for an unknown norm or a negative spread.
    """
    check_norm(norm)
    check_spread(spread)
    if not isinstance(reaction, FeedForward):
        raise TypeError(f"reaction is a {type(reaction).__name__}; pass a pdejax.FeedForward.")
    alpha = abs(float(weights(reaction.strength)))
    bound = network_slope(reaction) * norm_slope(reaction.norm, spread) * norm_slope(reaction.norm_out, 0.0)
    parts = {"network": alpha * bound}
    if reaction.leak:
        parts["leak"] = alpha
    return certificate(parts, norm, spread=spread)


def layernorm_lipschitz(layer: Norm, *, spread: float = 0.0, norm: str = "token_max") -> Certificate:
    r"""Lipschitz certificate of `LayerNorm` or `RMSNorm`, the same in both norms:

    $$\|\mathrm{LN}(u) - \mathrm{LN}(v)\| \le \frac{\|\mathrm{diag}(g)\,P\|_2}{\sqrt{\sigma^2+\epsilon}}\,\|u - v\|,$$

    with P the projection off the mean for LayerNorm, the identity for RMSNorm (then the constant is
    $\|g\|_\infty/\sqrt{\sigma^2+\epsilon}$, which also bounds LayerNorm's). `spread` σ is a lower bound of every token's
    standard deviation over its features (root mean square suffices for RMSNorm); 0 gives the global constant
    $\|g\|_\infty/\sqrt\epsilon$, attained at a constant token: 10³ at ε = 1e-6.

    The Jacobian is $\mathrm{diag}(g)(P - zz^\top/d)/\sqrt{v+\epsilon}$ with z = c/√(v+ε), ‖z‖² < d. The domain
    {std ≥ σ} is not convex; the bound holds for pairs in it all the same, because the map continued linearly to
    smaller tokens has that Jacobian bound everywhere. Sharp for d ≥ 3.

    Raises `TypeError` for another object, `ValueError` for a negative spread or an unknown norm.
    """
    check_norm(norm)
    check_spread(spread)
    if not isinstance(layer, LayerNorm | RMSNorm):
        raise TypeError(f"layer is a {type(layer).__name__}; pass a pdejax.LayerNorm or pdejax.RMSNorm.")
    return certificate({"norm": norm_slope(layer, spread)}, norm, spread=spread)


def norm_slope(layer: Norm | None, spread: float) -> float:
    """Lipschitz constant of a normalization on tokens of at least this standard deviation; 1 for none."""
    if layer is None:
        return 1.0
    g = weights(layer.scale)
    gain = np.diag(g)
    if isinstance(layer, LayerNorm):
        gain = gain - g[:, None] / len(g)
    return operator_norm(gain) / math.sqrt(spread**2 + layer.eps)


def normalized_ball(layer: Norm, radius: float) -> tuple[np.ndarray, float]:
    """Centre `(d,)` and radius of a ball that holds every normalized token, for tokens of norm up to `radius`.

    ‖z‖ = ‖c‖/√(‖c‖²/d + ε) grows with ‖c‖ ≤ R and stays below √d.
    """
    g = weights(layer.scale)
    centre = weights(layer.bias) if isinstance(layer, LayerNorm) else np.zeros(len(g))
    return centre, float(np.max(np.abs(g))) * radius / math.sqrt(radius**2 / len(g) + layer.eps)


def network_slope(reaction: FeedForward) -> float:
    """Lipschitz constant of `reaction.network`."""
    low, high = activation_slopes(reaction.activation)
    w1, w2 = weights(reaction.w1), weights(reaction.w2)
    return abs(high + low) / 2 * operator_norm(w1 @ w2) + (high - low) / 2 * operator_norm(w1) * operator_norm(w2)


def _gelu_tanh_slope(x: float) -> float:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    steep = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + math.tanh(inner)) + 0.5 * x * steep / math.cosh(inner) ** 2
