"""Projection onto a set after every step, such as LayerNorm after a residual update."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

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
from pdejax.solvers._written import one_line


def _to_solver(solver: Any) -> diffrax.AbstractSolver:
    check_sub_solver(solver, "solver")
    return solver


def _to_retraction(retraction: Any) -> Callable[[Y], Y]:
    if not callable(retraction):
        raise TypeError(f"retraction must be a function of the state, u -> u; got {retraction!r}.")
    return retraction


def _describe(y: Y) -> Any:
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", y)


def retractions(solver: Any) -> list[Callable[[Y], Y]]:
    """The retractions of a solver and of the solvers inside it, in their order."""
    found = jax.tree.leaves(solver, is_leaf=lambda node: isinstance(node, Retract))
    return [node.retraction for node in found if isinstance(node, Retract)]


class Retract(AbstractHermiteSolver):
    """y1 ← ρ(y1) after every step of another solver, ρ the `retraction`.

    With `Euler` at h = 1 and ρ = LayerNorm it is the post-LN update `LN(u + f(u))`, inside
    [`LieTrotter`][pdejax.solvers.LieTrotter] the post-LN block.

    If ρ is a projection onto a manifold M (ρ∘ρ = ρ: LayerNorm without scale and bias, u ↦ u/|u|), the steps
    converge as h → 0 to the flow of the projected field Dρ(u) f(u) on M. The order is 1 in general, because
    the free step leaves M along the unprojected field, and this is what `order` returns; it is that of the
    wrapped solver if f is tangent to M. A ρ that is not a projection (LayerNorm with a learned scale) acts
    once per step however short the step is: such a block has meaning at its own step only.

    Dense output: cubic Hermite whose slopes are pushed through ρ, h Dρ(u) f(u), because the path follows the
    projected field; with the raw slopes the interpolant bulges out of M by O(h). If y0 lies on M the values
    between the steps are as accurate as those on them, up to order 4, but they are near M, not on it.

    Fixed steps only: the error estimate of the wrapped solver says nothing about the retracted state, so none
    is given and diffrax raises `RuntimeError` with a PID controller. First-same-as-last solvers evaluate anew
    in every step.

    **Arguments:**

    - `solver`: any diffrax solver that can take a single step.
    - `retraction`: ρ, a function y ↦ y of equal shape and type, forward-differentiable (no `jax.custom_vjp`).
        An `equinox.Module` may hold arrays: gradients flow to them.

    **Raises:** `TypeError` for anything else as `solver` or `retraction`; `ValueError` if ρ changes the shape
    or type.

    Source: projection methods, Hairer, Lubich, Wanner, *Geometric Numerical Integration*, algorithm IV.4.2. It is
    how a Transformer applies LayerNorm; v2 (9) is a different, spatial term.
    """

    solver: diffrax.AbstractSolver = eqx.field(converter=_to_solver)
    retraction: Callable[[Y], Y] = eqx.field(converter=_to_retraction)

    __repr__ = one_line

    @property
    def term_structure(self) -> Any:
        return self.solver.term_structure

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.solver.term_compatible_contr_kwargs

    def order(self, terms: Terms) -> int | None:
        return None if self.solver.order(terms) is None else 1

    def step_evaluations(self) -> int | None:
        return fresh_step_evaluations(self.solver)

    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: Any) -> Y:
        return jax.jvp(self.retraction, (y,), (slope(self.solver, terms, t, y, args, control),))[1]

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        free, result = fresh_step(self.solver, terms, t0, t1, y0, args)
        y1 = self.retraction(free)
        if _describe(y1) != _describe(free):
            raise ValueError(
                f"retraction changed the state from {_describe(free)} to {_describe(y1)}; it must keep both."
            )
        return y1, None, hermite(self, terms, t0, t1, y0, y1, args), None, result
