"""Splitting methods: each term of a `MultiTerm` is integrated by its own solver, one after another."""

import abc
import functools
import operator
from typing import Any

import diffrax
import equinox as eqx
import jax

from pdejax.solvers._base import (
    AbstractHermiteSolver,
    StepResult,
    Terms,
    Time,
    Y,
    check_sub_solver,
    fresh_step,
    hermite,
    slope,
)
from pdejax.solvers._evaluations import fresh_step_evaluations
from pdejax.solvers._terms import one_each
from pdejax.solvers._written import one_line

SubSolvers = tuple[diffrax.AbstractSolver, ...]


def _to_solvers(solvers: Any) -> SubSolvers:
    if not isinstance(solvers, tuple | list):
        raise TypeError(f"solvers must be a tuple with one solver per term; got {solvers!r}.")
    if len(solvers) == 0:
        raise ValueError("solvers is empty; give one solver per term.")
    for i, solver in enumerate(solvers):
        check_sub_solver(solver, f"solvers[{i}]")
    return tuple(solvers)


class AbstractSplitting(AbstractHermiteSolver):
    """A composition of flows: each sub-step integrates one term alone, with that term's own solver, over a part of
    the step.

    The terms reach `step` inside diffrax's wrapper; each sub-solver is given its own wrapped term, which
    carries the direction of time and its own control. Dense output takes its slopes from the sum of all
    terms.
    """

    solvers: eqx.AbstractVar[SubSolvers]

    __repr__ = one_line

    @abc.abstractmethod
    def schedule(self) -> tuple[tuple[int, float, float], ...]:
        """(index of the term, start, end) of every sub-step, in order; start and end are 0, ½ or 1 of the step."""

    @property
    def term_structure(self) -> Any:
        return one_each(type(self).__name__, tuple(solver.term_structure for solver in self.solvers))

    def sub_orders(self, terms: Terms) -> list[int] | None:
        """Orders of the sub-solvers; None if one of them does not state its order."""
        orders = [solver.order(term) for solver, term in zip(self.solvers, terms.terms, strict=True)]
        known = [order for order in orders if order is not None]
        return known if len(known) == len(orders) else None

    def step_evaluations(self) -> int | None:
        total = 0
        for i, _, _ in self.schedule():
            count = fresh_step_evaluations(self.solvers[i])
            if count is None:
                return None
            total += count
        return total

    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: Any) -> Y:
        parts = [
            slope(solver, term, t, y, args, part)
            for solver, term, part in zip(self.solvers, terms.terms, control, strict=True)
        ]
        return jax.tree.map(lambda *leaves: functools.reduce(operator.add, leaves), *parts)

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        times = {0.0: t0, 0.5: t0 + 0.5 * (t1 - t0), 1.0: t1}
        y, result = y0, diffrax.RESULTS.successful
        for i, start, end in self.schedule():
            y, new = fresh_step(self.solvers[i], terms.terms[i], times[start], times[end], y, args)
            result = diffrax.RESULTS.where(diffrax.is_successful(result), new, result)
        return y, None, hermite(self, terms, t0, t1, y0, y, args), None, result


class LieTrotter(AbstractSplitting):
    """Lie–Trotter splitting Φ_k(h) ∘ … ∘ Φ_1(h): the first term over the whole step, then the second, and so on.

    Order 1, whatever the sub-solvers (unless the flows commute); fixed steps only. `solvers[i]` integrates
    term i of `diffrax.MultiTerm(term_0, …, term_{k−1})`.

    With Euler sub-steps at h = 1 on `MultiTerm(attention, feed_forward)` one step is the **sequential pre-LN
    Transformer block**: `u += Attn(LN u)`, then `u += FFN(LN u)`. With `Retract(Euler(), LN)` as both
    sub-solvers it is the post-LN block.

    Dense output: cubic Hermite from the sum of the terms, order 1 between the steps as on them. If
    sub-solvers retract, see [`Retract`][pdejax.solvers.Retract].

    **Arguments:**

    - `solvers`: a tuple of k diffrax solvers, one per term. Any that can take a single step: explicit,
        implicit (with its own tolerances; derivatives in reverse mode only), adaptive (the error estimate is not
        used), other splittings.

    **Raises:** `TypeError`, `ValueError` if `solvers` is not that; with `diffrax.PIDController` diffrax
    raises `RuntimeError`, for there is no error estimate.

    Source: H. F. Trotter (1959), DOI 10.1090/S0002-9939-1959-0108732-6; Hairer, Lubich, Wanner, *Geometric
    Numerical Integration*, §II.5. v2 §3.1 identifies a residual layer with forward Euler; a sequential
    block is this instead.
    """

    solvers: SubSolvers = eqx.field(converter=_to_solvers)

    def schedule(self) -> tuple[tuple[int, float, float], ...]:
        return tuple((i, 0.0, 1.0) for i in range(len(self.solvers)))

    def order(self, terms: Terms) -> int | None:
        return None if self.sub_orders(terms) is None else 1


class Strang(AbstractSplitting):
    """Strang splitting Φ_k(h/2) ∘ … ∘ Φ_2(h/2) ∘ Φ_1(h) ∘ Φ_2(h/2) ∘ … ∘ Φ_k(h/2): a palindrome around the **first**
    term.

    The last term of `diffrax.MultiTerm(term_0, …, term_{k−1})` comes first and last, in half steps over
    [t0, t0 + h/2] and [t0 + h/2, t1]; the first term takes the whole step in the middle. So the terms keep the
    order (interaction, reaction, …), the expensive interaction is evaluated once per stage, and with Euler
    sub-steps at h = 1 one step is the **Macaron block** ½FFN, Attn, ½FFN.

    Order 2 if every sub-solver has order 2 or more, else 1: Macaron's Euler sub-steps give 1. Fixed steps
    only. On fine grids a term that breaks the boundary condition of a stiff diffusion costs order, in the L²
    norm to 1.25 where it does not vanish at a Dirichlet wall and to 1.75 where it has a slope at a Neumann
    wall (a source g(x); never a reaction that acts on each token alone, whose slope vanishes with that of u).
    Periodic boundaries keep 2. Einkemmer and Ostermann, SIAM J. Sci. Comput. 37 (2015) and 38 (2016).

    Dense output: cubic Hermite from the sum of the terms, which keeps order 2 between the steps. If
    sub-solvers retract, see [`Retract`][pdejax.solvers.Retract].

    **Arguments:** and **Raises:** as for [`LieTrotter`][pdejax.solvers.LieTrotter].

    Source: G. Strang (1968), DOI 10.1137/0705041. Macaron: Lu et al., arXiv 1906.02762.
    """

    solvers: SubSolvers = eqx.field(converter=_to_solvers)

    def schedule(self) -> tuple[tuple[int, float, float], ...]:
        outer = range(1, len(self.solvers))
        return (
            *((i, 0.0, 0.5) for i in reversed(outer)),
            (0, 0.0, 1.0),
            *((i, 0.5, 1.0) for i in outer),
        )

    def order(self, terms: Terms) -> int | None:
        orders = self.sub_orders(terms)
        return None if orders is None else min(2, *orders)


class Injecting(AbstractSplitting):
    """A splitting before every step of which the last term acts, over the whole step: Φ_k(h), then `then` of the others.

    With Euler sub-steps and an injection as the last term, one step is u + e followed by the block that `then` is. Order 1. Made
    by `pdejax.lift`.
    """

    solvers: SubSolvers = eqx.field(converter=_to_solvers)
    places: tuple[tuple[int, float, float], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, then: AbstractSplitting, first: diffrax.AbstractSolver) -> "Injecting":
        count = len(then.solvers)
        return cls((*then.solvers, first), ((count, 0.0, 1.0), *then.schedule()))

    def schedule(self) -> tuple[tuple[int, float, float], ...]:
        return self.places

    def order(self, terms: Terms) -> int | None:
        return None if self.sub_orders(terms) is None else 1
