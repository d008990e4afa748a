"""Linear growth bounds of a master equation: the corrected form of v2 Thm 3.3 (docs/stability.md, Theorems 1 and 2)."""

import dataclasses
import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax._equation import AbstractEquation, MasterEquation
from pdejax.analysis.stability._lipschitz_certificate import check_domain, operator_norm, weights
from pdejax.analysis.stability._lipschitz_pointwise import activation_slopes, network_slope, normalized_ball
from pdejax.exact._arguments import as_float, nonnegative
from pdejax.terms import (
    AbstractTerm,
    Attention,
    Diffusion,
    FeedForward,
    LayerNormRelaxation,
    LinearDamping,
    SpatialNorm,
)
from pdejax.terms._normalization import Norm
from pdejax.terms._reaction import ACTIVATIONS

GrowthNorm = Literal["token_max", "mesh"]


@dataclasses.dataclass(frozen=True)
class Growth:
    r"""A proven bound on how fast solutions grow: $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$ for every field u.

    `rate` λ and `offset` f (field units), per unit depth, sums over `parts`: `{term: (λ, f)}`; `norm` is `"token_max"`,
    $\max_i\|u_i\|_2$, or `"mesh"`, $(\frac1n\sum_i\|u_i\|^2)^{1/2}$.
    """

    rate: float
    offset: float
    norm: str
    parts: dict[str, tuple[float, float]]

    @property
    def absorbing_radius(self) -> float:
        """f/(−λ): every solution enters each larger ball and stays there. inf unless λ < 0."""
        return self.offset / -self.rate if self.rate < 0 else math.inf

    def bound(self, initial: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        """Bound of ‖u(t)‖ for ‖u(0)‖ = `initial`, see [`decay_bound`][pdejax.analysis.decay_bound]."""
        return decay_bound(initial, self.rate, self.offset, t)


def decay_bound(initial: ArrayLike, rate: ArrayLike, offset: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
    r"""$e^{\lambda t}\|u_0\| + f\,(e^{\lambda t}-1)/\lambda$ (f·t for λ = 0), which bounds ‖u(t)‖ if
    $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$. With linear damping, λ is the one-sided Lipschitz constant of the rest minus
    γ, and f = ‖F(0)‖. Arguments broadcast. Raises `ValueError` for a negative norm, offset or depth."""
    nonnegative("initial", initial)
    nonnegative("offset", offset)
    nonnegative("t", t)
    x, rate_, f, time = as_float(initial, rate, offset, t)
    safe = jnp.where(rate_ == 0, 1, rate_)
    return x * jnp.exp(rate_ * time) + f * jnp.where(rate_ == 0, time, jnp.expm1(safe * time) / safe)


def growth_bound(equation: AbstractEquation, n: int, *, norm: str = "token_max") -> Growth:
    r"""λ and f such that $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$ along solutions of v2 (4), from any u:
    what takes the place of v2 (15).

    | term | rate λ | offset f |
    |---|---|---|
    | attention, softmax | $\alpha\min(\sum_h\|M_h\|_2, \|W_O\|_2(\sum_h\|W_V^h\|_2^2)^{1/2})$, times √n in the mesh norm | ‖b‖ |
    | feed-forward | $\alpha(\lambda_{max}(\mathrm{sym}\,cW_1W_2) + r\|W_1\|_2\|W_2\|_2)$, slopes in [c−r, c+r] | ‖R(0)‖ |
    | either with a norm before or after | 0 | its largest output |
    | leak, `LinearDamping` | −α, −γ | 0 |
    | diffusion, D symmetric part ≥ 0 | 0 | 0 |
    | v2 (9), `SpatialNorm` | **0** | 0 |
    | `LayerNormRelaxation` | −γ | γ sup‖LN‖ |

    Rows of a softmax are convex weights, so attention's *growth* needs neither W_Q nor W_K, nor a ball; only its growth
    in the mesh norm carries √n (claim C5). The feed-forward constant is one-sided. v2 (9) contributes nothing: it is 0 on
    constant fields (claim C4). Diffusion in the token-max norm must be one scalar D: with unequal diffusivities the
    invariant sets of diffusion are boxes, not balls.

    λ < 0 makes every solution enter the ball of radius f/(−λ) exponentially fast; for S = −γu that is γ > G.

    Raises `TypeError` for an equation that is not a `MasterEquation`, `ValueError` for an unknown norm, n < 1, or a term
    without such a bound: the linear attention kernel (cubic in u), `EffectiveDiffusion`, a source, unequal diffusivities
    in the token-max norm, v2 (9) with γ or weights that vary over tokens in the mesh norm.
    """
    if norm not in get_args(GrowthNorm):
        raise ValueError(f"norm={norm!r} is unknown; choose one of {get_args(GrowthNorm)}.")
    check_domain(n, 1.0)
    if not isinstance(equation, MasterEquation):
        raise TypeError(
            f"equation is a {type(equation).__name__}; pass a MasterEquation (for weights that vary over depth, "
            "equation.at(t) or equation.layer(i))."
        )
    parts = {name: _term(getattr(equation, name), int(n), norm) for name in equation.names()}
    return Growth(sum(r for r, _ in parts.values()), sum(f for _, f in parts.values()), norm, parts)


def _term(term: AbstractTerm, n: int, norm: str) -> tuple[float, float]:
    match term:
        case Attention():
            return _attention(term, n, norm)
        case FeedForward():
            return _feedforward(term)
        case Diffusion():
            d = weights(term.diffusivity)
            equal = d.ndim == 0 or np.all(d == d.flat[0]) if d.ndim < 2 else np.allclose(d, d[0, 0] * np.eye(len(d)))
            if norm == "token_max" and not equal:
                raise ValueError(
                    "unequal diffusivities have no maximum principle for token norms; use norm='mesh' or one scalar."
                )
            return 0.0, 0.0
        case SpatialNorm():
            uneven = weights(term.gamma).ndim > 0 or (term.grid is not None and term.grid.boundary == "dirichlet")
            if norm == "mesh" and uneven:
                raise ValueError("SpatialNorm with gamma or weights that vary over tokens: use norm='token_max'.")
            return 0.0, 0.0
        case LayerNormRelaxation():
            gamma = weights(term.gamma)
            return -float(gamma.min()), float(gamma.max()) * _largest_output(term.norm)
        case LinearDamping():
            return -float(weights(term.gamma).min()), 0.0
        case _:
            raise ValueError(
                f"no growth bound is known for {type(term).__name__}; leave it out with equation.only(...)."
            )


def _attention(term: Attention, n: int, norm: str) -> tuple[float, float]:
    term.check(n, term.wq.shape[0])
    alpha = float(weights(term.strength))
    leak = -alpha if term.leak else 0.0
    if term.norm_out is not None:
        return leak, abs(alpha) * _largest_output(term.norm_out)
    if term.kernel == "linear":
        raise ValueError("attention with kernel='linear' grows cubically: it has no linear growth bound.")
    wv, wo = weights(term.wv), weights(term.wo)
    heads = wv.shape[1]
    bv = np.zeros(wv.shape[1:]) if term.bv is None else weights(term.bv)
    centre, reach = (np.zeros(len(wv)), 1.0) if term.norm is None else _limit(term.norm)
    constant = np.einsum("hk,hkd->d", bv + np.tensordot(centre, wv, 1), wo)
    constant = constant if term.bo is None else constant + weights(term.bo)
    apart = sum(operator_norm(wv[:, h] @ wo[h]) for h in range(heads))
    together = operator_norm(wo.reshape(-1, wo.shape[-1])) * math.hypot(
        *(operator_norm(wv[:, h]) for h in range(heads))
    )
    gain, offset = abs(alpha) * min(apart, together), abs(alpha) * float(np.linalg.norm(constant))
    if term.norm is not None:
        # Normalized tokens, and so their averages, stay in a ball.
        return leak, offset + gain * reach
    if norm == "mesh":
        w = np.full(n, 1 / n) if term.quadrature is None else weights(term.quadrature)
        # ‖1wᵀ‖₂ = √n‖w‖₂ for the uniform kernel; a softmax may be any row-stochastic matrix.
        gain *= math.sqrt(n) * (float(np.linalg.norm(w / w.sum())) if term.kernel == "uniform" else 1.0)
    return leak + gain, offset


def _feedforward(term: FeedForward) -> tuple[float, float]:
    if term.source is not None:
        raise ValueError(
            "the reaction has a source of unknown size: bound the equation without it and add sup‖g‖ to offset."
        )
    alpha = float(weights(term.strength))
    leak = -alpha if term.leak else 0.0
    if term.norm_out is not None:
        return leak, abs(alpha) * _largest_output(term.norm_out)
    w1, w2 = weights(term.w1), weights(term.w2)
    centre, reach = (np.zeros(len(w1)), 0.0) if term.norm is None else _limit(term.norm)
    hidden = jnp.asarray(centre @ w1 + weights(term.b1))
    at_centre = abs(alpha) * float(
        np.linalg.norm(weights(ACTIVATIONS[term.activation](hidden)) @ w2 + weights(term.b2))
    )
    if term.norm is not None:
        return leak, at_centre + abs(alpha) * network_slope(term) * reach
    low, high = activation_slopes(term.activation)
    matrix = alpha * (low + high) / 2 * (w1 @ w2)
    one_sided = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    return leak + one_sided + abs(alpha) * (high - low) / 2 * operator_norm(w1) * operator_norm(w2), at_centre


def _limit(layer: Norm) -> tuple[np.ndarray, float]:
    """Centre and radius of a ball that holds all normalized tokens: ‖g‖_∞√d about the bias."""
    centre, _ = normalized_ball(layer, 1.0)
    return centre, float(np.max(np.abs(weights(layer.scale)))) * math.sqrt(len(centre))


def _largest_output(layer: Norm) -> float:
    centre, reach = _limit(layer)
    return float(np.linalg.norm(centre)) + reach
