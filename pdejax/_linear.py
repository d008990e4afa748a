"""The stiff linear part of a field, for solvers that take it exactly or implicitly."""

import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._equation import AbstractEquation, MasterEquation
from pdejax._types import Depth, Field
from pdejax.solvers import AbstractLinearOperator, DiagonalizableOperator, Grid
from pdejax.solvers._coupled import summed
from pdejax.terms import AbstractTerm, FieldArgs


class Remainder(eqx.Module):
    """The field without its linear part: the terms that have more than one, with what was taken of them given back."""

    terms: tuple[AbstractTerm, ...]
    operators: tuple[AbstractLinearOperator, ...]
    rate: Array | None

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        out = jnp.zeros_like(u)
        for term in self.terms:
            out = out + term(t, u, args)
        for operator in self.operators:
            out = out - operator(t, u, args)
        return out if self.rate is None else out + self.rate.astype(u.dtype) * u


def split_linear(
    equation: AbstractEquation, n: int, args: FieldArgs | None = None
) -> tuple[AbstractLinearOperator, Remainder]:
    r"""The field as $\partial_t u = Lu + N(t, u)$ on `n` tokens, from what its terms say of themselves (`AbstractTerm.linear`).

    L holds the constant diffusion, the linear damping −γu, the leaks −αu of attention and feed-forward, the −γu of a
    LayerNorm relaxation (scalar γ), and the linear part of any other term; N is what remains. `L(t, u, args) + N(t, u, args)`
    equals the field to rounding.

    Without a padding mask L is a `DiagonalizableOperator`, or a `CoupledOperator` for a matrix that is not known to be
    symmetric; with one, a `TridiagonalOperator`, because no flux crosses the faces of padded tokens. A field without diffusion
    gets D = 0.

    Raises `ValueError`, saying which solver to use instead, where the linear part has no such structure: coupled layers,
    weights that vary within a step, a diffusivity that depends on the state, a matrix with a mask, or one token.
    """
    mask = None if args is None else args.mask
    whole: list[AbstractLinearOperator] = []
    returned: list[AbstractLinearOperator] = []
    terms: list[AbstractTerm] = []
    rate = leak = None
    for term in one_depth(equation).terms:
        part = term.linear(n, mask)
        if part is None or not part.whole:
            terms.append(term)
        if part is None:
            continue
        if part.operator is not None:
            (whole if part.whole else returned).append(part.operator)
        if part.rate is not None:
            rate = _sum(rate, part.rate)
            leak = leak if part.whole else _sum(leak, part.rate)
    operators = [*whole, *returned]
    if not operators:
        if n < 2:
            raise ValueError("a field of one token has no diffusion to take exactly: use an explicit solver.")
        operators = [DiagonalizableOperator(Grid(n), 0.0)]
    operator = functools.reduce(summed, operators)
    return operator if rate is None else operator.shifted(-rate), Remainder(tuple(terms), tuple(returned), leak)


def one_depth(equation: AbstractEquation) -> MasterEquation:
    """The equation, if its linear part is the same throughout a step; else `ValueError`."""
    if isinstance(equation, MasterEquation):
        return equation
    raise ValueError(f"{equation.no_linear_part()}: use solver='rkc2' or 'tsit5'.")


def _sum(a: Array | None, b: Array) -> Array:
    """a + b in the wider type: strict promotion does not mix float32 and float64."""
    if a is None:
        return b
    kind = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(kind) + b.astype(kind)
