"""How a discretization takes gradients: names for diffrax's adjoints, one of our own, and what each refuses."""

import math
from typing import Any, Literal

import diffrax
import jax

from pdejax import _check
from pdejax._check import traced
from pdejax.solvers import linear_part
from pdejax.solvers._retract import retractions

AdjointName = Literal["stored", "recursive", "direct", "forward", "backsolve"]
BACKSOLVE_LIMIT = 5.0  # e-foldings of damping after which integrating backwards loses the gradient (measured)


class StoredAdjoint(diffrax.DirectAdjoint):
    """Mark fixed steps whose scan stores what came of products with weights, so that reverse mode multiplies no weights twice."""


_ADJOINTS = {
    "stored": StoredAdjoint,
    "recursive": diffrax.RecursiveCheckpointAdjoint,
    "direct": diffrax.DirectAdjoint,
    "forward": diffrax.ForwardMode,
    "backsolve": diffrax.BacksolveAdjoint,
}


def check_adjoint(owner: str, adjoint: Any, d: Any) -> diffrax.AbstractAdjoint | None:
    if isinstance(adjoint, str):
        adjoint = _ADJOINTS[_check.choice(owner, "adjoint", adjoint, _ADJOINTS)]()
    if adjoint is not None and not isinstance(adjoint, diffrax.AbstractAdjoint):
        raise TypeError(
            f"{owner}: adjoint is a {type(adjoint).__name__}; give one of {tuple(_ADJOINTS)} or a diffrax adjoint."
        )
    if isinstance(adjoint, StoredAdjoint) and d.adaptive:
        raise ValueError(
            f"{owner}: adjoint='stored' keeps what each of a known number of steps computes; give steps, or leave adjoint out."
        )
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        _check_backsolve(owner, d)
    return adjoint


def _check_backsolve(owner: str, d: Any) -> None:
    begin, end = f"{owner}: the backsolve adjoint", "leave adjoint out."
    if d.split is not None or linear_part(d.solver) is not None:
        raise ValueError(f"{begin} cannot differentiate a splitting ({type(d.solver).__name__}); {end}")
    if d.layers:
        raise ValueError(f"{begin} cannot cross layers of piecewise-constant weights; {end}")
    if retractions(d.solver):
        raise ValueError(f"{begin} integrates the field backwards and would miss the retraction of the solver; {end}")
    # Inside jax.grad this uncovers the value; inside jax.jit there is none to see.
    damping, t0, t1 = (jax.lax.stop_gradient(x) for x in (d.field.damping(), d.t0, d.t1))
    if traced(damping, t0, t1):
        dissipative = {"diffusion", "stabilization"} & set(d.field.names())
        if dissipative:
            raise ValueError(
                f"{begin} loses the gradient of a field that damps, and inside jax.jit the size of its "
                f"{' and '.join(sorted(dissipative))} cannot be seen; {end}"
            )
        return
    folds = float(damping) * (float(t1) - float(t0))
    if not math.isfinite(folds) or folds > BACKSOLVE_LIMIT:
        raise ValueError(
            f"{begin} integrates the field's damping backwards ({folds:.3g} e-foldings over this depth, at most "
            f"{BACKSOLVE_LIMIT:g} allowed), which loses the gradient; {end}"
        )
