"""`solver="auto"`: a scheme from the predicted stiffness of the field, and why."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pdejax._check import traced
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax.solvers import SOLVERS
from pdejax.terms import Diffusion, EffectiveDiffusion

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


def choose_solver(equation: AbstractEquation, *, t0, t1, steps: int | None = None, masked: bool = False) -> Choice:
    r"""A good scheme for this field, as `simulate(..., solver="auto")` takes it.

    With ρ the sum of the linear decay rates (diffusion 4D/Δx², leaks, damping) and T = t1 − t0, an explicit method
    needs ρT/β steps to stay stable, β its limit on the negative real axis. Where that is few, or where the given
    `steps` are enough, an explicit Runge–Kutta method is the cheapest; else the diffusion is taken exactly
    (`"etdrk4"`), implicitly (`"ark4"`: padding mask), or by a stabilized explicit method (`"rkc2"`: no
    structure to use).

    Values that are traced cannot be looked at: then any diffusion counts as stiff.
    """
    depth_known = not traced(t0, t1)
    rate = equation.damping()
    explicit = "tsit5" if steps is None else "rk4"
    limit = SOLVERS[explicit].real_limit
    assert limit is not None
    first = equation.layer(0) if isinstance(equation, DepthVarying) else equation
    diffusion = first.diffusion if isinstance(first, MasterEquation) else None
    if depth_known and not traced(rate):
        allowed = STIFF_STEPS if steps is None else steps
        needed = float(rate) * (float(t1) - float(t0)) / limit
        if needed <= allowed:
            return Choice(explicit, f"not stiff: stable with {max(int(np.ceil(needed)), 1)} explicit steps")
        stiffness = (
            "it depends on the state" if not np.isfinite(needed) else f"{needed:.3g} explicit steps for stability alone"
        )
    else:
        if diffusion is None:
            return Choice(explicit, "no diffusion; the rates are traced and cannot be looked at")
        stiffness = "the diffusion is traced and counts as stiff"
    return _stiff(equation, diffusion, masked, stiffness)


def _stiff(equation: AbstractEquation, diffusion, masked: bool, stiffness: str) -> Choice:
    if isinstance(diffusion, EffectiveDiffusion):
        return Choice("rkc2", f"stiff ({stiffness}), and the diffusivity depends on the state")
    if isinstance(equation, DepthVarying) and equation.kind != "constant":
        return Choice("rkc2", f"stiff ({stiffness}), and the weights vary within a step")
    if not isinstance(equation, MasterEquation | DepthVarying):
        return Choice("rkc2", f"stiff ({stiffness}), and coupled layers have no common transform")
    if isinstance(diffusion, Diffusion) and diffusion.diffusivity.ndim == 2:
        d = diffusion.diffusivity
        if masked or (not traced(d) and not bool(jnp.allclose(d, d.T))):
            return Choice("rkc2", f"stiff ({stiffness}), and the diffusivity matrix has no fast solve here")
    if masked:
        return Choice("ark4", f"stiff ({stiffness}); the padding mask makes the diffusion variable: solved implicitly")
    if isinstance(diffusion, Diffusion) and diffusion.grid.boundary == "dirichlet":
        return Choice(
            "etdrk4ho", f"stiff ({stiffness}); taken exactly, by the scheme that keeps its order at the walls"
        )
    return Choice("etdrk4", f"stiff ({stiffness}); the linear part is taken exactly by a fast transform")
