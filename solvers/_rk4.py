"""The classic fourth-order Runge–Kutta method, which diffrax does not have."""

from typing import Any, ClassVar

import diffrax

from pdejax.solvers._base import AbstractHermiteSolver, StepResult, Terms, Time, Y, hermite
from pdejax.solvers._tableau import Tableau, explicit_step
from pdejax.solvers._terms import whole_field


class RK4(AbstractHermiteSolver):
    """Classic Runge–Kutta method: order 4, 4 evaluations per step, fixed steps only.

        k1 = h f(t, y)
        k2 = h f(t + h/2, y + k1/2)
        k3 = h f(t + h/2, y + k2/2)
        k4 = h f(t + h, y + k3)
        y ← y + (k1 + 2 k2 + 2 k3 + k4) / 6

    Stable on [−2.785, 0] of the real axis and [−2.828i, 2.828i] of the imaginary one. Cubic Hermite dense output
    keeps order 4 between the steps, for one more evaluation per step.

    It has no error estimate: with `diffrax.PIDController` diffrax raises `RuntimeError`. For adaptive steps
    use Tsit5 or Dopri5, or `diffrax.HalfSolver(RK4())`. Accepts any term, a `MultiTerm` as a whole. Order 4
    needs a field that is smooth in t and y: ReLU, or weights that jump in depth inside a step, reduce it to 2
    or 1.

    Source: W. Kutta (1901); Hairer, Nørsett, Wanner, *Solving Ordinary Differential Equations I*, table
    II.1.2. Not the 3/8 rule that some libraries call "rk4".
    """

    term_structure: ClassVar = whole_field("RK4")
    tableau: ClassVar = Tableau(
        nodes=(0.0, 0.5, 0.5, 1.0),
        rows=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        diagonal=(0.0, 0.0, 0.0, 0.0),
        weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )

    def order(self, terms: Terms) -> int:
        return 4

    def step_evaluations(self) -> int:
        return len(self.tableau.stages())

    def slope(self, terms: Terms, t: Time, y: Y, args: Any, control: Any) -> Y:
        return terms.vf_prod(t, y, args, control)

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: None, made_jump: Any
    ) -> StepResult:
        y1 = explicit_step(self.tableau, terms, t0, t1, y0, args)
        return y1, None, hermite(self, terms, t0, t1, y0, y1, args), None, diffrax.RESULTS.successful
