"""What the solvers of this package share: no state between steps, and cubic Hermite dense output."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
from jaxtyping import Array, ArrayLike, PyTree, Real

from pdejax.solvers._tableau import explicit_step, is_explicit, tableau

Time = Real[Array, ""]
Terms = PyTree
Y = PyTree
StepResult = tuple[Y, None, dict[str, Any], None, diffrax.RESULTS]


class AbstractHermiteSolver(diffrax.AbstractSolver[None]):
    """A solver for fixed steps, without memory, whose dense output is the cubic Hermite interpolant through
    (y0, y1) with the slopes at both ends.

    The slopes are exact evaluations at (t0, y0) and (t1, y1), so interpolation adds an error O(h⁴): no order is
    lost up to order 4. They are extra work only in a solve that asks for values between the steps (`SaveAt(ts=…)`,
    `SaveAt(dense=True)`): otherwise nothing reads them and the compiler removes them.
    """

    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    @abc.abstractmethod
    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: PyTree) -> Y:
        """h du/dt at (t, y) of the path that the scheme approximates, with `control` = `terms.contr(t0, t1)`, which
        carries the signed step h.
        """

    @abc.abstractmethod
    def step_evaluations(self) -> int | None:
        """Evaluations of vector fields in one step without dense output; None if it depends on the field."""

    def init(self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any) -> None:
        return None

    def func(self, terms: Terms, t0: Time, y0: Y, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)


def slope(solver: diffrax.AbstractSolver, terms: Terms, t: Time, y: Y, args: Any, control: PyTree) -> Y:
    """`solver.slope` where there is one, else the vector field times the step."""
    if isinstance(solver, AbstractHermiteSolver):
        return solver.slope(terms, t, y, args, control)
    return terms.vf_prod(t, y, args, control)


def hermite(solver: AbstractHermiteSolver, terms: Terms, t0: Time, t1: Time, y0: Y, y1: Y, args: Any) -> dict[str, Any]:
    """The `dense_info` of a step from (t0, y0) to (t1, y1)."""
    control = terms.contr(t0, t1)
    k0 = solver.slope(terms, t0, y0, args, control)
    k1 = solver.slope(terms, t1, y1, args, control)
    return {"y0": y0, "y1": y1, "k0": k0, "k1": k1}


def fresh_step(
    solver: diffrax.AbstractSolver, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any
) -> tuple[Y, diffrax.RESULTS]:
    """One step of `solver` that remembers nothing: what it might have kept (the last stage of an FSAL method)
    belongs to a state that something else has moved since. Explicit Runge–Kutta steps are taken here, from
    their tableau: without that stage, and differentiable in forward mode too.
    """
    method = tableau(solver)
    if method is not None and is_explicit(method):
        return explicit_step(method, terms, t0, t1, y0, args), diffrax.RESULTS.successful
    state = solver.init(terms, t0, t1, y0, args)
    y1, _, _, _, result = solver.step(terms, t0, t1, y0, args, state, made_jump=False)
    return y1, result


def looks_back(solver: Any) -> bool:
    """Whether a step depends on the step before it, so that a single one would be a step of another method, of Euler's say."""
    inner = getattr(solver, "solver", None)
    parts = getattr(solver, "solvers", ()) if inner is None else (inner,)
    return isinstance(solver, diffrax.LeapfrogMidpoint | diffrax.ReversibleHeun) or any(map(looks_back, parts))


def check_sub_solver(solver: Any, name: str) -> None:
    """Raise `TypeError` or `ValueError` unless `solver` can take steps inside another solver."""
    if isinstance(solver, type) and issubclass(solver, diffrax.AbstractSolver):
        raise TypeError(f"{name} is the class {solver.__name__}; call it to make one: {solver.__name__}().")
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"{name} must be a diffrax solver such as diffrax.Euler(); got {solver!r}.")
    if looks_back(solver):
        raise ValueError(
            f"{name} is {type(solver).__name__}, whose steps depend on the step before: a single one is of another method. "
            "Take a one-step solver, such as diffrax.Midpoint()."
        )
    finder = getattr(solver, "root_finder", None)
    if finder is not None and not isinstance(finder.rtol, int | float | ArrayLike):
        raise ValueError(
            f"{name} is {type(solver).__name__} without tolerances for its root finder. It cannot take them from "
            "a step-size controller inside another solver: give them, for example "
            f"{type(solver).__name__}(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-8))."
        )
