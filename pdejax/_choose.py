"""`solver="auto"`: a scheme from the predicted stiffness of the field, and why."""

import dataclasses

import numpy as np

from pdejax._check import traced
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation
from pdejax._linear import split_linear
from pdejax.solvers import SOLVERS
from pdejax.solvers._operator import AbstractModalOperator
from pdejax.terms import FieldArgs

# Explicit steps that stability alone would force on Tsit5, above which a stiff scheme is the cheaper one: at N = 1000,
# D = 1e-4, T = 0.05 they are 6, and ETDRK4 needed 5 evaluations where Tsit5 needed 45 (`pdejax stiff`).
STIFF_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Choice:
    """A solver's `name` in `pdejax.solvers.SOLVERS` and the `reason` for it, one sentence."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose_solver(equation: AbstractEquation, args: FieldArgs, *, n: int, t0, t1, steps: int | None = None) -> Choice:
    r"""A good scheme for this field on `n` tokens, as `solver="auto"` takes it.

    With ρ the sum of the linear decay rates (diffusion 4D/Δx², leaks, damping) and T = t1 − t0, an explicit method
    needs ρT/β steps to stay stable, β its limit on the negative real axis. Where that is few, or where the given
    `steps` are enough, an explicit Runge–Kutta method is the cheapest; else the linear part is taken exactly
    (`"etdrk4"`), implicitly (`"ark4"`: padding mask), or by a stabilized explicit method (`"rkc2"`: no
    structure to use).

    Values that are traced cannot be looked at: then any diffusion counts as stiff.
    """
    rate = equation.damping()
    explicit = "tsit5" if steps is None else "rk4"
    limit = SOLVERS[explicit].real_limit
    assert limit is not None
    if not traced(t0, t1, rate):
        allowed = STIFF_STEPS if steps is None else steps
        needed = float(rate) * (float(t1) - float(t0)) / limit
        if needed <= allowed:
            return Choice(explicit, f"not stiff: stable with {max(int(np.ceil(needed)), 1)} explicit steps")
        stiffness = (
            "it depends on the state" if not np.isfinite(needed) else f"{needed:.3g} explicit steps for stability alone"
        )
    else:
        if not equation.couples_neighbours(n):
            return Choice(explicit, "no diffusion; the rates are traced and cannot be looked at")
        stiffness = "the diffusion is traced and counts as stiff"
    if isinstance(equation, DepthVarying) and equation.kind == "constant":
        equation = equation.layer(0)
    try:
        operator, _ = split_linear(equation, n, args)
    except ValueError as error:
        return Choice("rkc2", f"stiff ({stiffness}), and {str(error).split(':')[0].rstrip('.')}")
    if not isinstance(operator, AbstractModalOperator):
        return Choice("ark4", f"stiff ({stiffness}); the padding mask makes the diffusion variable: solved implicitly")
    if operator.grid.boundary == "dirichlet":
        return Choice(
            "etdrk4ho", f"stiff ({stiffness}); taken exactly, by the scheme that keeps its order at the walls"
        )
    return Choice("etdrk4", f"stiff ({stiffness}); the linear part is taken exactly by a fast transform")
