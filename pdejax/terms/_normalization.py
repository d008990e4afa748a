"""Per-token normalization over features, as used inside blocks and as a retraction after a step."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._types import Field
from pdejax.solvers._written import one_line
from pdejax.terms._base import LEAST_EPS, at_least_float32, concrete
from pdejax.terms._constants import in_float64, operator_norm

_ADVICE = "it keeps a constant token and its derivatives finite"


class LayerNorm(eqx.Module):
    r"""Layer normalization of every token over its features (Ba et al., arXiv 1607.06450, (4)):

    $$\mathrm{LN}(u)_i = g \odot \frac{u_i - m_i}{\sqrt{v_i + \epsilon}} + b,\qquad
      m_i = \tfrac1d \sum_k u_{ik},\quad v_i = \tfrac1d \sum_k (u_{ik} - m_i)^2 .$$

    `scale` g and `bias` b have shape `(dim,)`. Not v2 (9), which averages over *tokens*: see `SpatialNorm`.
    Statistics are accumulated in at least float32. Raises `ValueError` for ε below 1e-24, with which a constant token or its
    derivative would overflow.
    """

    scale: Float[Array, " d"]
    bias: Float[Array, " d"]
    eps: float = eqx.field(static=True)

    __repr__ = one_line

    @checked
    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = jnp.ones(_check.integer("LayerNorm", "dim", dim))
        self.bias = jnp.zeros(dim)
        self.eps = _check.number("LayerNorm", "eps", eps, least=LEAST_EPS, advice=_ADVICE)

    @jax.named_scope("pdejax.LayerNorm")
    def __call__(self, u: Field) -> Field:
        x = u.astype(at_least_float32(u.dtype))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale.astype(y.dtype)[None] + self.bias.astype(y.dtype)[None]).astype(u.dtype)

    def lipschitz(self, spread: float = 0.0) -> float:
        r"""Lipschitz constant in the token-max and in the Frobenius norm,

        $$\|\mathrm{LN}(u) - \mathrm{LN}(v)\| \le \frac{\|\mathrm{diag}(g)\,P\|_2}{\sqrt{\sigma^2+\epsilon}}\,\|u - v\|,$$

        with P the projection off the mean. `spread` σ is a lower bound of every token's standard deviation over its features; 0
        gives the global constant $\|\mathrm{diag}(g)\,P\|_2/\sqrt\epsilon$, attained at a constant token: 10³ at ε = 1e-6 and
        g = 1. It is below $\|g\|_\infty/\sqrt\epsilon$ where g is not constant: 0.707 of it for g = (1, 0).

        The Jacobian is $\mathrm{diag}(g)(P - zz^\top/d)/\sqrt{v+\epsilon}$ with z = c/√(v+ε), ‖z‖² < d. The domain
        {std ≥ σ} is not convex; the bound holds for pairs in it all the same, because the map continued linearly to
        smaller tokens has that Jacobian bound everywhere. Sharp for d ≥ 3.
        """
        spread, g = _spread("LayerNorm", spread), in_float64(self.scale)
        return operator_norm(np.diag(g) - g[:, None] / len(g)) / math.sqrt(spread**2 + self.eps)

    def ball(self, radius: float = math.inf) -> tuple[Float[np.ndarray, " d"], float]:
        """Centre `(d,)` and radius of a ball that holds every normalized token, for tokens of norm up to `radius`."""
        return in_float64(self.bias), _reach("LayerNorm", self.scale, self.eps, radius)


class RMSNorm(eqx.Module):
    r"""Root-mean-square normalization (Zhang & Sennrich, arXiv 1910.07467, (4)):
    $\mathrm{RMS}(u)_i = g \odot u_i / \sqrt{\tfrac1d\|u_i\|^2 + \epsilon}$, with `scale` g of shape `(dim,)`.

    With `scale = 1/√d` and ε → 0 it projects every token on the unit sphere. Weights that are stored as w for the scale 1 + w
    (Gemma) become 1 + w where they are loaded. Raises `ValueError` for ε below 1e-24.
    """

    scale: Float[Array, " d"]
    eps: float = eqx.field(static=True)

    __repr__ = one_line

    @checked
    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = jnp.ones(_check.integer("RMSNorm", "dim", dim))
        self.eps = _check.number("RMSNorm", "eps", eps, least=LEAST_EPS, advice=_ADVICE)

    @jax.named_scope("pdejax.RMSNorm")
    def __call__(self, u: Field) -> Field:
        x = u.astype(at_least_float32(u.dtype))
        y = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale.astype(y.dtype)[None]).astype(u.dtype)

    def lipschitz(self, spread: float = 0.0) -> float:
        r"""Lipschitz constant $\|g\|_\infty/\sqrt{\sigma^2+\epsilon}$ in the token-max and in the Frobenius norm; `spread` σ is a
        lower bound of every token's root mean square over its features. Derivation: `LayerNorm.lipschitz`, with P = I."""
        spread = _spread("RMSNorm", spread)
        return operator_norm(np.diag(in_float64(self.scale))) / math.sqrt(spread**2 + self.eps)

    def ball(self, radius: float = math.inf) -> tuple[Float[np.ndarray, " d"], float]:
        """Centre (0) and radius of a ball that holds every normalized token, for tokens of norm up to `radius`."""
        return np.zeros(self.scale.shape[0]), _reach("RMSNorm", self.scale, self.eps, radius)


@checked
class SphereProjection(eqx.Module):
    """Projects every token on the sphere of a given radius, `u_i ← radius · u_i / ‖u_i‖` (Geshkovski et al.,
    arXiv 2312.10794, (2.2)): the retraction for tokens on the sphere. A zero token stays zero. Raises
    `ValueError` for a radius that is not positive and finite."""

    radius: float = 1.0

    __repr__ = one_line

    def __check_init__(self):
        if concrete(self.radius):
            _check.number("SphereProjection", "radius", self.radius, above=0)

    def __call__(self, u: Field) -> Field:
        squared = jnp.sum(u**2, axis=-1, keepdims=True)
        safe = jnp.where(squared > 0, squared, 1)
        return jnp.asarray(self.radius, u.dtype) * u * jax.lax.rsqrt(safe)


Norm = LayerNorm | RMSNorm


def norm_slope(layer: Norm | None, spread: float = 0.0) -> float:
    """Lipschitz constant of a normalization that may be absent."""
    return 1.0 if layer is None else layer.lipschitz(spread)


def largest_output(layer: Norm) -> float:
    """Largest length of a normalized token."""
    centre, reach = layer.ball()
    return float(np.linalg.norm(centre)) + reach


def _spread(owner: str, spread: float) -> float:
    advice = "it is a lower bound of every token's deviation over its features, 0 for none"
    return _check.number(f"{owner}.lipschitz", "spread", spread, least=0, advice=advice)


def _reach(owner: str, scale: Array, eps: float, radius: float) -> float:
    """‖z‖ = ‖c‖/√(‖c‖²/d + ε) grows with ‖c‖ ≤ R and stays below √d; the scale stretches it by ‖g‖_∞ at most."""
    if radius != math.inf:
        radius = _check.number(f"{owner}.ball", "radius", radius, least=0, advice="or infinite, for all tokens")
    g = in_float64(scale)
    length = math.sqrt(len(g)) if math.isinf(radius) else radius / math.sqrt(radius**2 / len(g) + eps)
    return float(np.max(np.abs(g))) * length
