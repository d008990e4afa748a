"""Butcher tableaus, and one explicit Runge–Kutta step written out stage by stage."""

from typing import Any, NamedTuple

import diffrax
import jax
from jaxtyping import PyTree


class Tableau(NamedTuple):
    """Stage i is k_i = h f(t0 + c_i h, y0 + Σ_{j<i} a_ij k_j + a_ii k_i), and y1 = y0 + Σ_i b_i k_i.

    Python floats, so that they take the precision of the field. `rows[i]` holds a_ij for j < i, `diagonal`
    the a_ii, which are 0 for explicit methods.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    diagonal: tuple[float, ...]
    weights: tuple[float, ...]

    def stages(self) -> tuple[int, ...]:
        """The stages that y1 depends on. First-same-as-last methods have one more, for the next step."""
        needed: set[int] = set()
        for i in reversed(range(len(self.weights))):
            later = any(self.rows[j][i] != 0.0 for j in needed)
            if self.weights[i] != 0.0 or later:
                needed.add(i)
        return tuple(sorted(needed))


def tableau(solver: diffrax.AbstractSolver) -> Tableau | None:
    """The tableau of a Runge–Kutta method; None if `solver` is not one with a single tableau."""
    if isinstance(solver, diffrax.Euler):
        return Tableau((0.0,), ((),), (0.0,), (1.0,))
    # Of the class itself: diffrax's wrapping solvers pass isinstance for what they wrap.
    found = getattr(type(solver), "tableau", None)
    if isinstance(found, Tableau):
        return found
    if not isinstance(found, diffrax.ButcherTableau) or not issubclass(type(solver), diffrax.AbstractRungeKutta):
        return None
    diagonal = (0.0,) * found.num_stages if found.a_diagonal is None else map(float, found.a_diagonal)
    return Tableau(
        nodes=(float(found.c1), *map(float, found.c)),
        rows=((), *(tuple(map(float, row)) for row in found.a_lower)),
        diagonal=tuple(diagonal),
        weights=tuple(map(float, found.b_sol)),
    )


def is_explicit(method: Tableau) -> bool:
    return not any(method.diagonal)


def _combine(y: PyTree, coefficients: tuple[float, ...], increments: dict[int, PyTree]) -> PyTree:
    """y + Σ_j a_j k_j, leaving out the zeros."""
    for j, a in enumerate(coefficients):
        if a != 0.0:
            y = jax.tree.map(lambda yi, ki, a=a: yi + a * ki, y, increments[j])
    return y


def explicit_step(method: Tableau, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> PyTree:
    """y1 after one step of an explicit method.

    No loop over the stages: diffrax's own is checkpointed, which forward-mode derivatives cannot pass.
    """
    control = terms.contr(t0, t1)
    increments: dict[int, PyTree] = {}
    for i in method.stages():
        node = method.nodes[i]
        # t0 + (t1 − t0) may miss t1 by a rounding error, and the field may jump there.
        t = t1 if node == 1.0 else t0 + node * (t1 - t0)
        increments[i] = terms.vf_prod(t, _combine(y0, method.rows[i], increments), args, control)
    return _combine(y0, method.weights, increments)
