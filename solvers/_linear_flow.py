"""The exact flow of a linear operator, as a sub-solver of a splitting."""

from typing import Any, ClassVar

import diffrax
import jax
from jax import numpy as jnp

from pdejax.solvers._base import AbstractHermiteSolver, StepResult, Terms, Time, Y, hermite
from pdejax.solvers._modes import weighted
from pdejax.solvers._operator import AbstractModalOperator
from pdejax.solvers._terms import linear_operator_of, operator_alone


class LinearFlow(AbstractHermiteSolver):
    r"""One exact step of $u' = Lu$: $u_1 = e^{hL}u_0$, for `diffrax.ODETerm(operator)` with a
    [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator] or a
    [`CoupledOperator`][pdejax.solvers.CoupledOperator] L.

    A step of any size is exact and, where no eigenvalue has a positive real part, stable. It is meant for the
    diffusion in a splitting: `Strang((Midpoint(), LinearFlow()))` on `MultiTerm(ODETerm(rest), ODETerm(operator))`, or
    `LieTrotter` likewise. It asks for no evaluation of a field, and works in forward and reverse mode.

    Dense output is the cubic Hermite interpolant; between steps it is good only where hL is of moderate size.

    **Raises:** `TypeError` for a term whose vector field is neither.
    """

    term_structure: ClassVar = operator_alone("LinearFlow", AbstractModalOperator)

    def order(self, terms: Terms) -> int:
        return 99  # exact: never the lowest order of a composition

    def step_evaluations(self) -> int:
        return 0

    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: Any) -> Y:
        return terms.vf_prod(t, y, args, control)

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        operator = linear_operator_of(terms, AbstractModalOperator, "the term of a LinearFlow")
        operator.check(jnp.shape(y0))
        with jax.named_scope("pdejax.solvers.LinearFlow"):
            modes = operator.to_modes(y0)
            y1 = operator.from_modes(weighted(operator.phis(terms.contr(t0, t1), 0, modes.dtype)[0], modes))
            y1 = y1 if jnp.iscomplexobj(y1) else y1.astype(y0.dtype)
        return y1, None, hermite(self, terms, t0, t1, y0, y1, args), None, diffrax.RESULTS.successful
