"""What terms a solver wants, what it reads of them, and the words where they do not fit.

Before anything else `diffrax.diffeqsolve` asks `isinstance(terms, solver.term_structure)`. The structures made here are classes
whose answer is an error that names the solver and what it wants: diffrax's own prints every term whole, or nothing at all.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import diffrax
from diffrax._term import AdjointTerm  # diffrax exports it nowhere else

from pdejax.solvers._operator import AbstractLinearOperator, AbstractModalOperator
from pdejax.solvers._tridiagonal import TridiagonalOperator

Operator = TypeVar("Operator", bound="AbstractLinearOperator")
_WORDS = {
    AbstractModalOperator: "a DiagonalizableOperator or a CoupledOperator",
    AbstractLinearOperator: "a DiagonalizableOperator, a CoupledOperator or a TridiagonalOperator",
}
_PAIR = "diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator)): first the nonlinear rest, then the linear operator"


class _Structure(type(diffrax.AbstractTerm)):
    """A class of terms that says in words what does not fit; `parts` is how many terms it takes apart."""

    look: Callable[[Any], None]
    parts: int | None

    def __instancecheck__(cls, instance: Any) -> bool:
        cls.look(instance)
        return True


def _structure(look: Callable[[Any], None], parts: int | None) -> Any:
    made: Any = _Structure  # pyright takes it for one of equinox's dataclasses
    return made("Terms", (diffrax.AbstractTerm,), {"look": staticmethod(look), "parts": parts})


@functools.cache
def whole_field(solver: str) -> Any:
    """The `term_structure` of a solver that takes any one term, a `MultiTerm` as its sum."""

    def look(terms: Any) -> None:
        if not isinstance(terms, diffrax.AbstractTerm):
            raise TypeError(
                f"{solver}: terms is {described(terms)}; it must be one diffrax term, diffrax.ODETerm(f) with f(t, y, args), or "
                "the sum of several, diffrax.MultiTerm(…)."
            )

    return _structure(look, None)


@functools.cache
def with_operator(solver: str, kind: type[AbstractLinearOperator]) -> Any:
    """The `term_structure` of a solver that takes a linear operator apart from the rest of the field."""

    def look(terms: Any) -> None:
        _check_parts(solver, terms, 2, _PAIR)
        try:
            linear_operator_of(terms.terms[1], kind)
        except TypeError as error:
            raise TypeError(f"{solver}: {error}") from None

    return _structure(look, 2)


@functools.cache
def operator_alone(solver: str, kind: type[AbstractLinearOperator]) -> Any:
    """The `term_structure` of a solver of u' = Lu."""

    def look(terms: Any) -> None:
        try:
            linear_operator_of(terms, kind, "terms")
        except TypeError as error:
            raise TypeError(f"{solver}: {error}") from None

    return _structure(look, None)


@functools.cache
def one_each(solver: str, structures: tuple[Any, ...]) -> Any:
    """The `term_structure` of a splitting, from those of its sub-solvers."""
    count = len(structures)

    def look(terms: Any) -> None:
        _check_parts(solver, terms, count, f"diffrax.MultiTerm({', '.join(f'term_{i}' for i in range(count))})")
        for i, (structure, term) in enumerate(zip(structures, terms.terms, strict=True)):
            try:
                fits = _fits(structure, term)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{solver}: terms[{i}] does not fit its sub-solver. {error}") from None
            if not fits:
                raise TypeError(
                    f"{solver}: terms[{i}] is {described(term)}, which its sub-solver does not take; it wants {structure}."
                )

    return _structure(look, count)


def parts_of(solver: diffrax.AbstractSolver) -> int | None:
    """How many terms a solver takes apart, or None for one that takes the field as a whole."""
    structure = getattr(solver, "term_structure", diffrax.AbstractTerm)
    if isinstance(structure, _Structure):
        return structure.parts
    if get_origin(structure) is diffrax.MultiTerm:  # diffrax writes MultiTerm[tuple[One, Two]]
        return len(get_args(get_args(structure)[0]))
    return len(structure) if isinstance(structure, tuple) else None


def takes_fields(solver: diffrax.AbstractSolver) -> bool:
    """Whether a solver is one of plain differential equations: not of noise, of momenta, or of a state in two halves."""
    inner = getattr(solver, "solver", None)
    if isinstance(inner, diffrax.AbstractSolver):
        return takes_fields(inner)
    structure = solver.term_structure
    if isinstance(structure, _Structure):
        return all(takes_fields(one) for one in getattr(solver, "solvers", ()))
    noisy = isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver)
    if get_origin(structure) is diffrax.MultiTerm:
        return not noisy and all(_fits(one, _ANY) for one in get_args(get_args(structure)[0]))
    return not isinstance(structure, tuple) and _fits(structure, _ANY)


def linear_operator_of(
    term: Any, kind: type[Operator] = AbstractLinearOperator, place: str = "the second term"
) -> Operator:
    """The operator of `diffrax.ODETerm(operator)`, also inside the wrapper in which diffrax hands terms to a solver.

    **Raises:** `TypeError` if the term's vector field is no operator of this `kind`.
    """
    inner = _unwrapped(term)
    field = getattr(inner, "vector_field", None)
    if isinstance(field, kind):
        return field
    hint = (
        " It has a variable coefficient or a mask, and no matrix functions: use an implicit-explicit or stabilized "
        "explicit solver for it."
        if isinstance(field, TridiagonalOperator)
        else ""
    )
    words = _WORDS.get(kind, f"a {kind.__name__}")
    advice = f" Pass {_PAIR}." if place == "the second term" else ""
    advice = _other_adjoint(inner) or advice
    raise TypeError(f"{place} must be diffrax.ODETerm(operator) with {words}; got {described(inner)}.{hint}{advice}")


def described(terms: Any) -> str:
    """What was given as terms, in a few words: never the arrays in it."""
    terms = _unwrapped(terms)
    if isinstance(terms, AdjointTerm):
        return f"the adjoint of {described(terms.term)}, as BacksolveAdjoint makes it"
    if isinstance(terms, diffrax.MultiTerm):
        return f"MultiTerm({', '.join(described(one) for one in terms.terms)})"
    if isinstance(terms, diffrax.ODETerm):
        return f"ODETerm({type(terms.vector_field).__name__})"
    if isinstance(terms, tuple | list):
        return f"a {type(terms).__name__} of {len(terms)}"
    return repr(terms) if terms is None else f"a {type(terms).__name__}"


def _unwrapped(term: Any) -> Any:
    # Not the adjoint's: it acts on more than the state, and has neither the parts nor the operator of what is in it.
    while not isinstance(term, diffrax.ODETerm | AdjointTerm) and isinstance(
        getattr(term, "term", None), diffrax.AbstractTerm
    ):
        term = term.term
    return term


def _other_adjoint(terms: Any) -> str:
    """What to do where it is the adjoint that does not fit."""
    return " Use diffrax.RecursiveCheckpointAdjoint()." if isinstance(terms, AdjointTerm) else ""


def _check_parts(solver: str, terms: Any, count: int, wanted: str) -> None:
    if not isinstance(terms, diffrax.MultiTerm):
        raise TypeError(f"{solver}: terms is {described(terms)}; it must be {wanted}.{_other_adjoint(terms)}")
    if len(terms.terms) != count:
        raise ValueError(
            f"{solver}: terms has {len(terms.terms)} parts, but the solver takes {count}: it must be {wanted}."
        )


def _fits(structure: Any, term: Any) -> bool:
    """Whether a term is of a structure: one of this file, which raises in words, or one of diffrax."""
    if get_origin(structure) is diffrax.MultiTerm:
        inner = get_args(get_args(structure)[0])
        return (
            isinstance(term, diffrax.MultiTerm)
            and len(term.terms) == len(inner)
            and all(_fits(one, part) for one, part in zip(inner, term.terms, strict=True))
        )
    return not isinstance(structure, tuple) and isinstance(term, get_origin(structure) or structure)


_ANY = diffrax.ODETerm(lambda t, y, args: y)
