"""Which solvers want the linear part of a field on its own."""

from typing import Any

import diffrax

from pdejax._arguments import checked
from pdejax.solvers._etdrk import AbstractETDRK
from pdejax.solvers._imex import AbstractAdditive
from pdejax.solvers._linear_flow import LinearFlow
from pdejax.solvers._operator import AbstractLinearOperator, AbstractModalOperator
from pdejax.solvers._splitting import AbstractSplitting


@checked
def linear_part(solver: Any) -> type[AbstractLinearOperator] | None:
    """The kind of linear operator that `solver` expects as the second of its two terms,
    `diffrax.MultiTerm(ODETerm(rest), ODETerm(operator))`, or None for a solver of other fields.

    Exponential methods and splittings with a [`LinearFlow`][pdejax.solvers.LinearFlow] need functions of the operator,
    implicit-explicit ones only its solves.

    **Raises:** `ValueError` for a splitting whose `LinearFlow` is not the last sub-solver.
    """
    while isinstance(solver, diffrax.AbstractWrappedSolver):
        solver = solver.solver
    if isinstance(solver, AbstractETDRK):
        return AbstractModalOperator
    if isinstance(solver, AbstractAdditive):
        return AbstractLinearOperator
    if isinstance(solver, AbstractSplitting) and any(isinstance(s, LinearFlow) for s in solver.solvers):
        if not isinstance(solver.solvers[-1], LinearFlow):
            raise ValueError(
                f"{type(solver).__name__} has its LinearFlow before another sub-solver; the linear operator is the last term, "
                "so LinearFlow() must be the last sub-solver."
            )
        return AbstractModalOperator
    return None
