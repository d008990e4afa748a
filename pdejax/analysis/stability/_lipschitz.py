"""Lipschitz certificate of a whole field on a ball: the sum of its terms'."""

import math

import numpy as np

from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax.analysis.stability._lipschitz_attention import attention_lipschitz
from pdejax.analysis.stability._lipschitz_certificate import (
    Certificate,
    certificate,
    check_domain,
    check_norm,
    operator_norm,
    weights,
)
from pdejax.analysis.stability._lipschitz_pointwise import feedforward_lipschitz, norm_slope
from pdejax.exact._heat import largest_wave_number
from pdejax.solvers import Grid
from pdejax.terms import (
    AbstractTerm,
    Attention,
    Diffusion,
    FeedForward,
    LayerNormRelaxation,
    LinearDamping,
    SpatialNorm,
)


def field_lipschitz(
    equation: AbstractEquation, n: int, radius: float, *, norm: str = "token_max", spread: float = 0.0
) -> Certificate:
    r"""Lipschitz certificate of a master equation on n tokens with ‖u_i‖₂ ≤ R: the sum over its terms of

    | term | token-max norm | Frobenius norm |
    |---|---|---|
    | attention | [`attention_lipschitz`][pdejax.analysis.attention_lipschitz] | the same, times about √n |
    | feed-forward | [`feedforward_lipschitz`][pdejax.analysis.feedforward_lipschitz] | same |
    | diffusion | $4\|D\|_2/\Delta x^2$ | $\|D\|_2\max_k\vert\lambda_k\vert$, the exact eigenvalue on the grid |
    | v2 (9), `SpatialNorm` | $\tfrac23\gamma\epsilon^{-1/2}(a+b)^{3/2}(3b)^{-1/2}$, see below | $\gamma/\sqrt\epsilon$ |
    | `LayerNormRelaxation` | $\gamma\max(1, \|J\| - 1)$ for a uniform scale, else $\gamma(1 + \|J\|)$ | same |
    | `LinearDamping` | γ | same |

    In the mesh norm v2 (9) is $\gamma$ times an orthogonal projection followed by $c\mapsto c/\sqrt{\|c\|^2+\epsilon}$, whose
    derivative is largest, $\epsilon^{-1/2}$, at c = 0: sharp. (On a Dirichlet grid, whose end weights are 3/2, times
    √(3/2).) In the token-max norm the derivative is at most $(2(1-w_{min}) + x/((1+x)\sqrt{w_{min}}))/\sqrt{1+x}$ in
    units of γ/√ε, x = σ²/ε, with $w_{min}$ the smallest quadrature weight (1/n): the table has its maximum over x, with
    $a = 2(1-w_{min})$ and $b = w_{min}^{-1/2}$.

    A `DepthVarying` equation of kind `"constant"` gets the certificate of its worst layer.

    The parts are named after the terms, with decay apart (`interaction leak`, `reaction leak`, `damping`), so that
    `certificate.decay` and `certificate.rest` are the c and G of the corrected v1 (21).

    Raises `TypeError` for an equation that is not made of these terms, `ValueError` for a field that does not fit, a
    radius that is not positive and finite, an unknown norm, or a term without a bound (`EffectiveDiffusion`).
    """
    check_norm(norm)
    check_domain(n, radius, spread)
    if isinstance(equation, DepthVarying):
        if equation.kind != "constant":
            raise TypeError(
                f"equation varies over depth (kind={equation.kind!r}): pass the equation at one depth, equation.at(t)."
            )
        layers = (field_lipschitz(equation.layer(i), n, radius, norm=norm, spread=spread) for i in range(equation.size))
        return max(layers, key=lambda c: c.bound)
    if not isinstance(equation, MasterEquation):
        raise TypeError(
            f"equation is a {type(equation).__name__}; pass a MasterEquation, one layer of a coupled system."
        )
    parts: dict[str, float] = {}
    conditions: list[str] = []
    for name in equation.names():
        term = getattr(equation, name)
        part = _term(term, n, float(radius), norm, float(spread))
        conditions += [c for c in part.conditions if c not in conditions]
        for inner, value in part.parts.items():
            parts[inner if inner == "damping" else f"{name} leak" if inner == "leak" else name] = value
    return certificate(parts, norm, radius=float(radius), n=int(n), spread=float(spread), conditions=tuple(conditions))


def _term(term: AbstractTerm, n: int, radius: float, norm: str, spread: float) -> Certificate:
    match term:
        case Attention():
            return attention_lipschitz(term, n, radius, norm=norm, spread=spread)
        case FeedForward():
            return feedforward_lipschitz(term, norm=norm, spread=spread)
        case Diffusion():
            return certificate({"diffusion": _diffusion(term, n, norm)}, norm)
        case SpatialNorm():
            condition = "no padding: padded tokens feel σ without being part of it"
            return certificate({"stabilization": _spatial_norm(term, n, norm)}, norm, conditions=(condition,))
        case LayerNormRelaxation():
            return certificate({"stabilization": _relaxation(term, spread)}, norm)
        case LinearDamping():
            return certificate({"damping": _largest(term.gamma)}, norm)
        case _:
            raise ValueError(
                f"no Lipschitz bound is known for {type(term).__name__} on a ball; leave it out with equation.only(...), or "
                "measure lower bounds with sampled_lipschitz."
            )


def _diffusion(term: Diffusion, n: int, norm: str) -> float:
    term.check(n, term.diffusivity.shape[-1] if term.diffusivity.ndim else 1)
    d = weights(term.diffusivity)
    size = operator_norm(d) if d.ndim == 2 else float(np.max(np.abs(d)))
    # With a mask, faces are removed: a smaller quadratic form, so both bounds hold for it too.
    wave = 4.0 if norm == "token_max" else largest_wave_number(n, term.grid.boundary)
    return size * wave / float(np.asarray(term.grid.spacing)) ** 2


def _spatial_norm(term: SpatialNorm, n: int, norm: str) -> float:
    term.check(n, 1)
    w = _shares(term.grid, n)
    rate = _largest(term.gamma) / math.sqrt(float(weights(term.eps)))
    if norm == "frobenius":
        return rate * math.sqrt(float(w.max() / w.min()))
    a, b = 2 * (1 - float(w.min())), float(w.min()) ** -0.5
    # The largest (a + b)/√y − b/y^{3/2} over y = 1 + σ²/ε ≥ 1.
    if 3 * b <= a + b:
        return rate * a
    return rate * 2 / 3 * (a + b) ** 1.5 / math.sqrt(3 * b)


def _relaxation(term: LayerNormRelaxation, spread: float) -> float:
    slope = norm_slope(term.norm, spread)
    scale = weights(term.norm.scale)
    # A uniform positive scale makes the Jacobian symmetric with eigenvalues in [0, slope].
    uniform = bool(np.all(scale == scale[0]) and scale[0] >= 0)
    return _largest(term.gamma) * (max(1.0, slope - 1) if uniform else 1 + slope)


def _shares(grid: Grid | None, n: int) -> np.ndarray:
    if grid is None or grid.boundary != "dirichlet":
        return np.full(n, 1 / n)
    w = weights(grid.weights)
    return w / w.sum()


def _largest(gamma) -> float:
    return float(np.max(np.abs(weights(gamma))))
