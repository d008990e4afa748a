"""The classic fourth-order Runge–Kutta method, which diffrax does not have."""

from typing import Any, ClassVar

import diffrax
import jax

from pdejax.solvers._base import AbstractHermiteSolver, StepResult, Terms, Time, Y, hermite

# Butcher tableau: stage i is evaluated at t0 + c_i h, y0 + Σ_j a_ij k_j, and y1 = y0 + Σ_i b_i k_i.
NODES = (0.0, 0.5, 0.5, 1.0)
MATRIX = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def _combine(y: Y, coefficients: tuple[float, ...], increments: list[Y]) -> Y:
    """y + Σ_j a_j k_j, leaving out the zeros."""
    for a, k in zip(coefficients, increments, strict=False):
        if a != 0.0:
            y = jax.tree.map(lambda yi, ki, a=a: yi + a * ki, y, k)
    return y


class RK4(AbstractHermiteSolver):
    """Classic Runge–Kutta method: order 4, 4 evaluations per step, fixed steps only.

    k1 = h f(t, y), k2 = h f(t + h/2, y + k1/2), k3 = h f(t + h/2, y + k2/2), k4 = h f(t + h, y + k3), y ← y +
    (k1 + 2 k2 + 2 k3 + k4) / 6. Stable on [−2.785, 0] of the real axis and [−2.828i, 2.828i] of the imaginary
    one. Cubic Hermite dense output keeps order 4 between the steps, for one more evaluation per step.

    It has no error estimate: with `diffrax.PIDController` diffrax raises `RuntimeError`. For adaptive steps
    use Tsit5 or Dopri5, or `diffrax.HalfSolver(RK4())`. Accepts any term, a `MultiTerm` as a whole. Order 4
    needs a field that is smooth in t and y: ReLU, or weights that jump in depth inside a step, reduce it to 2
    or 1.

    Source: W. Kutta (1901); Hairer, Nørsett, Wanner, *Solving Ordinary Differential Equations I*, table
    II.1.2. Not the 3/8 rule that some libraries call "rk4"."""

    term_structure: ClassVar = diffrax.AbstractTerm

    def order(self, terms: Terms) -> int:
        return 4

    def step_evaluations(self) -> int:
        return len(WEIGHTS)

    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: Any) -> Y:
        return terms.vf_prod(t, y, args, control)

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        control = terms.contr(t0, t1)
        increments: list[Y] = []
        for node, row in zip(NODES, MATRIX, strict=True):
            # t0 + (t1 − t0) may miss t1 by a rounding error, and the field may jump there.
            t = t1 if node == 1.0 else t0 + node * (t1 - t0)
            increments.append(terms.vf_prod(t, _combine(y0, row, increments), args, control))
        y1 = _combine(y0, WEIGHTS, increments)
        return y1, None, hermite(self, terms, t0, t1, y0, y1, args), None, diffrax.RESULTS.successful
