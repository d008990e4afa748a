"""What solvers read of the terms that diffrax hands them."""

from typing import Any, TypeVar

import diffrax

from pdejax.solvers._operator import AbstractLinearOperator
from pdejax.solvers._tridiagonal import TridiagonalOperator

Operator = TypeVar("Operator", bound="AbstractLinearOperator")


def linear_operator_of(term: Any, kind: type[Operator] = AbstractLinearOperator) -> Operator:
    """The operator of `diffrax.ODETerm(operator)`, also inside the wrapper in which diffrax hands terms to a solver.

    **Raises:** `TypeError` if the term's vector field is no operator of this `kind`.
    """
    inner = term
    while not isinstance(inner, diffrax.ODETerm) and isinstance(getattr(inner, "term", None), diffrax.AbstractTerm):
        inner = inner.term
    field = getattr(inner, "vector_field", None)
    if isinstance(field, kind):
        return field
    found = type(inner).__name__ if field is None else f"ODETerm({type(field).__name__})"
    name = kind.__name__.removeprefix("Abstract")
    hint = (
        " It has a variable coefficient or a mask, and no matrix functions: use an implicit-explicit or stabilized "
        "explicit solver for it."
        if isinstance(field, TridiagonalOperator)
        else ""
    )
    raise TypeError(
        f"the second term must be diffrax.ODETerm(operator) with a {name}; got {found}.{hint} Pass "
        "diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator)): first the nonlinear rest, then the "
        "linear operator."
    )
