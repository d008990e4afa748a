"""A-priori error bounds of the continuum limit, v2 (12) and a one-sided one, with constants measured along the trajectory."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._arguments import checked
from pdejax._check import on_numbers, real_array, spoken_by
from pdejax._equation import as_field
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import Found
from pdejax.analysis.jacobian._operator import FieldAt, Jacobian
from pdejax.analysis.numerics._norms import mesh_norm
from pdejax.terms import FieldArgs


@dataclasses.dataclass(frozen=True)
class FieldConstants:
    """Constants of a field at points of a trajectory, all per unit depth: maxima over these points, and no bounds off it.

    - `log_norm_on_trajectory`: largest eigenvalue of the symmetric part of ∂F/∂u: distances between solutions nearby grow at most
      at this rate.
    - `lipschitz_on_trajectory`: largest singular value ‖∂F/∂u‖₂.
    - `curvature_on_trajectory`: sup‖u''‖_Ω, u'' = ∂F/∂t + (∂F/∂u)F, in field units per depth².
    """

    log_norm_on_trajectory: float
    lipschitz_on_trajectory: float
    curvature_on_trajectory: float


@checked
@on_numbers
def field_constants(
    field: Callable[..., Array], ts: Float[Array, " k"], us: Float[Array, "k n d"], mask: Mask | None = None
) -> FieldConstants:
    """Find the maxima of log-norm, Lipschitz constant and curvature of a field f(t, u, args) over points `(ts, us)` of a
    trajectory.

    Matrix-free beyond 400 entries: Jacobian-vector products both ways in ARPACK's Lanczos iteration, O(n·d) memory. They
    are maxima over the given points, so bounds made of them are as good as the sampling; a bound that must hold needs a
    certificate on a ball. With a `mask` they are those of the real tokens, which padded ones do not act on.

    Raises `RuntimeError` where an iteration does not converge.
    """
    owner = "field_constants"
    real_array(owner, "us", us, "(k, n, d)")
    if ts.shape[0] != us.shape[0]:
        raise ValueError(
            f"{owner}: ts has {ts.shape[0]} depths, but us has {us.shape[0]} fields; they must be as many."
        )
    equation = as_field(owner, field)
    with spoken_by(owner):
        equation.check(us.shape[1:])
    field, args = equation, None if mask is None else FieldArgs(mask)
    points = [Jacobian(FieldAt(field, t, args), u, mask) for t, u in zip(ts, us, strict=True)]
    log_norm = max(_known(jacobian.support(0.0)) for jacobian in points)
    lipschitz = max(_known(jacobian.norm()) for jacobian in points)
    return FieldConstants(log_norm, lipschitz, float(jnp.max(_curvatures(field, ts, us, args))))


@checked
@on_numbers
def growth_factor(rate: float, t1: float) -> float:
    r"""Give $(e^{\lambda T} - 1)/\lambda$, the accumulated growth of a unit error rate; T for λ = 0, infinite on overflow."""
    if abs(rate * t1) < 1e-12:
        return t1
    return math.expm1(rate * t1) / rate if rate * t1 < 700 else math.inf


@dataclasses.dataclass(frozen=True)
class ContinuumBounds:
    r"""Bounds of $\sup_l\|u_l - u(t_l)\|_\Omega$ for forward Euler: `v2_12_by_lipschitz`, which needs the Lipschitz constant, and
    `one_sided_by_log_norm_and_lipschitz`, which needs the log-norm too and is never larger; on a convex set that holds the
    solution and Euler's states."""

    v2_12_by_lipschitz: float
    one_sided_by_log_norm_and_lipschitz: float


@checked
def continuum_bounds(step: float, constants: FieldConstants, t1: float, *, consistency: float = 0.0) -> ContinuumBounds:
    r"""Bound how far forward Euler with step h is from the solution: v2 (12) with its constants made explicit, and ours,

    $$\Big(\sup_l\|F_l - F\| + \tfrac12 h\,\sup\|u''\|\Big)\cdot\frac{e^{LT} - 1}{L} \qquad\text{and}\qquad
      \Big(\cdots\Big)\cdot h\sum_{k<n}\kappa^k, \quad \kappa = \sqrt{1 + 2h\mu + h^2L^2} \le 1 + hL,$$

    L the Lipschitz constant, μ the log-norm, n = T/h, `consistency` sup‖F_l − F‖ (0 when layers are samples of the field itself).

    With the log-norm in the place of L v2 (12) is **no** bound: u' = 10uJ has log-norm 0, and Euler's error after T = 1 from
    ‖u₀‖ = 1 in 50 steps is 1.68, where that would be 1.

    *Derivation.* $e_{l+1} = (u + hF(u))|^{u(t_l)}_{u_l} + \rho_l$, and $\|I + hJ\|_2^2 \le 1 + 2h\mu + h^2L^2$ for each Jacobian
    J between the two, and so for their mean. Since κ ≤ 1 + hλ with $\lambda = \mu + \tfrac12hL^2$, the sum is at most
    $(e^{\lambda T} - 1)/\lambda$ if λ ≥ 0. If λ < 0 that quotient can be less than the sum (after one step it is less than h),
    and only the sum is a bound. As h → 0 either tends to $(e^{\mu T} - 1)/\mu$.

    *Hypotheses.* ‖u''‖ along the solution; L and μ on a convex set that holds the solution and the network's states. `constants`
    are maxima over points of the trajectory: the bounds are as good as they are for that set.
    """
    mu, lipschitz = constants.log_norm_on_trajectory, constants.lipschitz_on_trajectory
    local = consistency + 0.5 * step * constants.curvature_on_trajectory
    return ContinuumBounds(
        v2_12_by_lipschitz=local * growth_factor(lipschitz, t1),
        one_sided_by_log_norm_and_lipschitz=local * accumulated_growth(euler_factor(step, mu, lipschitz), step, t1),
    )


def euler_factor(step: float, log_norm: float, lipschitz: float) -> float:
    r"""Give $\sqrt{1 + 2h\mu + h^2L^2} \ge \|I + hJ\|_2$, for J of log-norm at most μ and 2-norm at most L ≥ |μ|."""
    # Measured constants may miss |μ| ≤ L by the tolerance of their iterations.
    return math.sqrt(max(1 + 2 * step * log_norm + (step * lipschitz) ** 2, 0.0))


def accumulated_growth(factor: float, step: float, t1: float) -> float:
    r"""Give $h\sum_{k<n}\kappa^k$ with n = T/h: an error rate of 1, multiplied by κ in every step; infinite on overflow."""
    n = t1 / step
    if factor == 1 or factor <= 0:
        return t1 if factor > 0 else step
    rate = math.log(factor)
    return step * math.expm1(n * rate) / (factor - 1) if n * rate < 700 else math.inf


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
        turned = jax.jvp(lambda s, w: equation(s, w, args), (t, u), (jnp.ones_like(t), velocity))[1]
        return mesh_norm(turned, None if args is None else args.mask)

    return jax.lax.map(second, (ts, us))
