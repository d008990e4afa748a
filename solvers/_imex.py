"""Additive implicit-explicit Runge–Kutta methods: a linear operator implicitly, the rest explicitly."""

import abc
from collections.abc import Iterable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax.solvers._base import AbstractHermiteSolver, Terms, Time, Y
from pdejax.solvers._imex_tableaus import ARK3_TABLEAU, ARK4_TABLEAU, ARS222_TABLEAU, AdditiveTableau
from pdejax.solvers._operator import AbstractLinearOperator
from pdejax.solvers._terms import linear_operator_of, with_operator

StepResult = tuple[Y, Y, dict[str, Any], None, diffrax.RESULTS]


def _sum(y: Array, coefficients: Iterable[float], increments: Iterable[Array]) -> Array:
    """y + Σ_j a_j k_j over the increments there are, leaving out the zeros."""
    for a, k in zip(coefficients, increments, strict=False):
        if a != 0.0:
            y = y + a * k
    return y


def _operator_for(linear: Any, y: Any) -> AbstractLinearOperator:
    operator = linear_operator_of(linear)
    if not hasattr(y, "shape"):
        raise TypeError(
            f"the state must be one array (n, d), which the linear operator acts on; got {type(y).__name__}."
        )
    operator.check(y.shape)
    result = jax.eval_shape(lambda u: operator(0.0, u, None), y)
    if result.dtype != y.dtype:
        raise TypeError(
            f"the linear operator makes {result.dtype} of a state of type {y.dtype}; give u0 the type {result.dtype}."
        )
    return operator


class AbstractAdditive(AbstractHermiteSolver, diffrax.AbstractAdaptiveSolver[None]):
    """An additive Runge–Kutta method for u' = N(t, u) + L u, with terms `MultiTerm(ODETerm(N), ODETerm(operator))`.

    Every stage but the first solves (I − hγL) Y = r by `operator.solve`: a fast transform or a tridiagonal elimination,
    no Jacobian and no iteration. hLY is then (Y − r)/γ, which no large eigenvalue amplifies the rounding of.
    """

    @property
    def term_structure(self) -> Any:
        return with_operator(type(self).__name__, AbstractLinearOperator)

    @abc.abstractmethod
    def coefficients(self) -> AdditiveTableau:
        """The pair of tableaus."""

    def step_evaluations(self) -> int:
        """Evaluations of N in one step, without dense output."""
        return self.coefficients().evaluations()

    def slope(self, terms: Terms, t: Time, y: Array, args: Any, control: Any) -> Array:
        rest, linear = terms.terms
        return rest.vf_prod(t, y, args, control[0]) + linear.vf_prod(t, y, args, control[1])

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        method = self.coefficients()
        rest, linear = terms.terms
        operator = _operator_for(linear, y0)
        forward, h = terms.contr(t0, t1)
        scale = method.gamma * h
        needed = method.needed()

        nonlinear = [rest.vf_prod(t0, y0, args, forward)]
        stiff = [linear.vf_prod(t0, y0, args, h)]
        y = y0
        for i, node in enumerate(method.nodes[1:], start=1):
            r = _sum(_sum(y0, method.explicit[i], nonlinear), method.implicit[i], stiff)
            y = operator.solve(scale, r)
            stiff.append((y - r) / method.gamma)
            # t0 + (t1 − t0) may miss t1 by a rounding error, and the field may jump there.
            t = t1 if node == 1.0 else t0 + node * (t1 - t0)
            if needed[i]:
                nonlinear.append(rest.vf_prod(t, y, args, forward))
        y1 = _sum(y, method.corrections, nonlinear)
        error = _sum(_sum(jnp.zeros_like(y0), method.explicit_error, nonlinear), method.implicit_error, stiff)
        # Modes with h|λ| ≫ 1, which the method damps, would keep the steps short for an error they do not have.
        error = operator.solve(scale, error)
        dense = {"y0": y0, "y1": y1, "k0": nonlinear[0] + stiff[0], "k1": self.slope(terms, t1, y1, args, (forward, h))}
        return y1, error, dense, None, diffrax.RESULTS.successful


class ARK3(AbstractAdditive):
    """ARK3(2)4L[2]SA: order 3, error estimate of order 2, 4 evaluations of N and 3 solves per step.

    Terms `MultiTerm(ODETerm(rest), ODETerm(operator))`: N explicit, L implicit by `operator.solve`, for a
    [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator] or a
    [`TridiagonalOperator`][pdejax.solvers.TridiagonalOperator] and an array (n, d). Stages, with γ = 0.4358665:

        Y_i = y + h Σ_{j<i} (e_ij N(t + c_j h, Y_j) + a_ij L Y_j) + h γ L Y_i

    y(t + h) ≈ y + h Σ_j b_j (N(t + c_j h, Y_j) + L Y_j). The implicit method is L-stable and stiffly accurate, of stage order
    two: every h is stable for the linear part, diffusive or dispersive. The rest has the limit of the explicit tableau,
    3.66 on the negative real axis.

    **Order reduction.** Where the rest does not vanish at a Dirichlet wall the order falls from 3 to 2.3…2.4 in the L²
    norm until the steps resolve the diffusion; Neumann and periodic boundaries keep 3. ARS222 and RKC2 keep their 2.

    **Error estimate**: the embedded method's, multiplied by (I − hγL)⁻¹. One more solve; without it modes that a step
    damps keep steps short: from noise on stiff diffusion a run at 1e-3 took 33 steps instead of 12.

    **Dense output**: cubic Hermite, which keeps the order between the steps, for one more evaluation of N. Its slope at
    the start of a step holds L y: where a first step does not resolve the decay of a rough start, values inside that
    step mean nothing.

    **Raises:** `TypeError` if the second term is no linear operator or makes a real state complex, `ValueError` if the
    operator does not fit the state.

    Source: Kennedy, Carpenter, Appl. Numer. Math. 44 (2003) 139, DOI 10.1016/S0168-9274(02)00138-1, appendix. The
    coefficients are those of diffrax's `KenCarp3`, which would factor the dense (n·d)² Jacobian.
    """

    def coefficients(self) -> AdditiveTableau:
        return ARK3_TABLEAU

    def order(self, terms: Terms) -> int:
        return 3


class ARK4(AbstractAdditive):
    """ARK4(3)6L[2]SA: order 4, error estimate of order 3, 6 evaluations of N and 5 solves per step.

    Terms, form of the stages (γ = 1/4), stability of the linear part, error estimate, dense output and errors raised are those
    of [`ARK3`][pdejax.solvers.ARK3]. The rest has the limit of the explicit tableau, 4.23 on the negative real axis. Where it
    does not vanish at a Dirichlet wall the order falls from 4 to 2.3…2.4 in the L² norm until the steps resolve the diffusion.

    Source: Kennedy, Carpenter, Appl. Numer. Math. 44 (2003) 139, DOI 10.1016/S0168-9274(02)00138-1, appendix. The
    coefficients are those of diffrax's `KenCarp4`, which would factor the dense (n·d)² Jacobian.
    """

    def coefficients(self) -> AdditiveTableau:
        return ARK4_TABLEAU

    def order(self, terms: Terms) -> int:
        return 4


class ARS222(AbstractAdditive):
    """ARS(2,2,2): order 2, error estimate of order 1, 2 evaluations of N and 2 solves per step.

    Terms `MultiTerm(ODETerm(rest), ODETerm(operator))`: N explicit, L implicit by `operator.solve`, for a
    [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator] or a
    [`TridiagonalOperator`][pdejax.solvers.TridiagonalOperator] and an array (n, d). Stages, with γ = 1 − √½:

        Y_i = y + h Σ_{j<i} (e_ij N(t + c_j h, Y_j) + a_ij L Y_j) + h γ L Y_i

    y(t + h) ≈ Y_3. L-stable and stiffly accurate; keeps order 2 at Dirichlet walls where the rest does not vanish. The rest
    alone is stable up to 2 on the negative real axis.

    **Error estimate**: against the first-order method with all weight on the second stage, multiplied by (I − hγL)⁻¹;
    the original method has none. **Dense output**, **Raises**: as for [`ARK3`][pdejax.solvers.ARK3].

    Source: Ascher, Ruuth, Spiteri, Appl. Numer. Math. 25 (1997) 151, DOI 10.1016/S0168-9274(97)00056-1, section 2.6.
    """

    def coefficients(self) -> AdditiveTableau:
        return ARS222_TABLEAU

    def order(self, terms: Terms) -> int:
        return 2
