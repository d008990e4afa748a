"""The a-priori error bound of the continuum limit, v2 (12), with constants measured along the trajectory."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from pdejax._equation import AbstractEquation
from pdejax._types import Field
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


def field_constants(
    equation: AbstractEquation, ts: Float[Array, " k"], us: Float[Array, "k n d"], args: FieldArgs | None = None
) -> FieldConstants:
    """Maxima of log-norm, Lipschitz constant and curvature over the points `(ts, us)` of a trajectory.

    Matrix-free: Jacobian-vector products both ways in ARPACK's Lanczos iteration, O(n·d) memory. They are maxima over the
    given points, so bounds made of them are as good as the sampling; a bound that must hold needs a certificate on a ball.
    """
    log_norms, lipschitz = [], []
    for t, u in zip(ts, us, strict=True):
        log_norms.append(_largest_eigenvalue(lambda v, t=t, u=u: _symmetric_product(equation, t, u, args, v), u))
        lipschitz.append(
            math.sqrt(max(_largest_eigenvalue(lambda v, t=t, u=u: _gram_product(equation, t, u, args, v), u), 0))
        )
    curvature = jnp.max(_curvatures(equation, ts, us, args))
    return FieldConstants(max(log_norms), max(lipschitz), float(curvature))


def growth_factor(rate: float, t1: float) -> float:
    r"""$(e^{\lambda T} - 1)/\lambda$, the accumulated growth of a unit error rate; T for λ = 0, infinite on overflow."""
    if abs(rate * t1) < 1e-12:
        return t1
    return math.expm1(rate * t1) / rate if rate * t1 < 700 else math.inf


def continuum_bound(
    step: float, constants: FieldConstants, t1: float, *, consistency: float = 0.0, rate: str = "log_norm"
) -> float:
    r"""Bound on $\sup_t\|u^L(t) - u(t)\|_\Omega$ for forward Euler with step h, the constants of v2 (12) made explicit:

    $$\big(\sup_l\|F_l - F\| + \tfrac12 h\,\sup\|u''\|\big)\,\frac{e^{\lambda T} - 1}{\lambda}.$$

    `consistency` is sup‖F_l − F‖ (0 when layers are samples of the field itself); λ is the `"log_norm"` (sharper) or the
    `"lipschitz"` constant, as v2 (12) has it.
    """
    return (consistency + 0.5 * step * constants.curvature) * growth_factor(getattr(constants, rate), t1)


@eqx.filter_jit
def _symmetric_product(equation, t, u: Field, args, v: Field) -> Field:
    def field(w):
        return equation(t, w, args)

    forward = jax.jvp(field, (u,), (v,))[1]
    (backward,) = jax.vjp(field, u)[1](v)
    return 0.5 * (forward + backward)


@eqx.filter_jit
def _gram_product(equation, t, u: Field, args, v: Field) -> Field:
    def field(w):
        return equation(t, w, args)

    (out,) = jax.vjp(field, u)[1](jax.jvp(field, (u,), (v,))[1])
    return out


@eqx.filter_jit
def _curvatures(equation, ts, us, args) -> Array:
    def second(x):
        t, u = x
        velocity = equation(t, u, args)
        return mesh_norm(jax.jvp(lambda s, w: equation(s, w, args), (t, u), (jnp.ones_like(t), velocity))[1])

    return jax.lax.map(second, (ts, us))


def _largest_eigenvalue(product, u: Field) -> float:
    """Largest eigenvalue of a symmetric operator on fields like `u`, from a fixed start so that reruns agree."""
    size = u.size
    if size <= 2:
        columns = [np.ravel(product(jnp.reshape(e, u.shape))) for e in jnp.eye(size, dtype=u.dtype)]
        return float(np.linalg.eigvalsh(np.stack(columns, axis=1)).max())

    def matvec(v):
        return np.asarray(product(jnp.asarray(v, u.dtype).reshape(u.shape))).ravel()

    operator = LinearOperator(shape=(size, size), matvec=matvec, dtype=np.dtype(u.dtype))  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    try:
        values = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start,
            tol=1e-3,  # pyright: ignore[reportArgumentType]  (scipy's stub asks for an int)
            ncv=min(size, 20),
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            "field_constants: the Lanczos iteration for the Jacobian did not converge; the field may have NaN or be very stiff."
        ) from error
    return float(values[0])
