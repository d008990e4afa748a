"""The a-priori error bound of the continuum limit, v2 (12), with constants measured along the trajectory."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._check import on_numbers
from pdejax._equation import as_field
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import Found
from pdejax.analysis.jacobian._operator import FieldAt, Jacobian
from pdejax.analysis.numerics._norms import mesh_norm
from pdejax.terms import FieldArgs


@dataclasses.dataclass(frozen=True)
class FieldConstants:
    """Constants of a field along a trajectory, all per unit depth.

    - `log_norm`: largest eigenvalue of the symmetric part of ∂F/∂u: distances between solutions grow at most at this rate.
    - `lipschitz`: largest singular value ‖∂F/∂u‖₂.
    - `curvature`: sup‖u''‖_Ω, u'' = ∂F/∂t + (∂F/∂u)F, in field units per depth².
    """

    log_norm: float
    lipschitz: float
    curvature: float


@on_numbers
def field_constants(
    field: Callable[..., Array], ts: Float[Array, " k"], us: Float[Array, "k n d"], mask: Mask | None = None
) -> FieldConstants:
    """Find the maxima of log-norm, Lipschitz constant and curvature of a field f(t, u, args) over points `(ts, us)` of a
    trajectory.

    Matrix-free beyond 400 entries: Jacobian-vector products both ways in ARPACK's Lanczos iteration, O(n·d) memory. They
    are maxima over the given points, so bounds made of them are as good as the sampling; a bound that must hold needs a
    certificate on a ball. Raises `RuntimeError` where an iteration does not converge.
    """
    field, args = as_field("field_constants", field), None if mask is None else FieldArgs(mask)
    points = [Jacobian(FieldAt(field, t, args), u) for t, u in zip(ts, us, strict=True)]
    log_norm = max(_known(jacobian.support(0.0)) for jacobian in points)
    lipschitz = max(_known(jacobian.norm()) for jacobian in points)
    return FieldConstants(log_norm, lipschitz, float(jnp.max(_curvatures(field, ts, us, args))))


@on_numbers
def growth_factor(rate: float, t1: float) -> float:
    r"""Give $(e^{\lambda T} - 1)/\lambda$, the accumulated growth of a unit error rate; T for λ = 0, infinite on overflow."""
    if abs(rate * t1) < 1e-12:
        return t1
    return math.expm1(rate * t1) / rate if rate * t1 < 700 else math.inf


def continuum_bound(
    step: float, constants: FieldConstants, t1: float, *, consistency: float = 0.0, rate: str = "log_norm"
) -> float:
    r"""Bound $\sup_t\|u^L(t) - u(t)\|_\Omega$ for forward Euler with step h, the constants of v2 (12) made explicit:

    $$\big(\sup_l\|F_l - F\| + \tfrac12 h\,\sup\|u''\|\big)\,\frac{e^{\lambda T} - 1}{\lambda}.$$

    `consistency` is sup‖F_l − F‖ (0 when layers are samples of the field itself); λ is the `"log_norm"` (sharper) or the
    `"lipschitz"` constant, as v2 (12) has it.
    """
    return (consistency + 0.5 * step * constants.curvature) * growth_factor(getattr(constants, rate), t1)


def _known(found: Found) -> float:
    if not found.converged:
        raise RuntimeError(
            "field_constants: the Lanczos iteration for the Jacobian did not converge; the field may have NaN or be very stiff."
        )
    return float(found.values[0])


@eqx.filter_jit
def _curvatures(equation, ts, us, args) -> Array:
    def second(x):
        t, u = x
        velocity = equation(t, u, args)
        return mesh_norm(jax.jvp(lambda s, w: equation(s, w, args), (t, u), (jnp.ones_like(t), velocity))[1])

    return jax.lax.map(second, (ts, us))
