"""The largest stable step of a solver on a field: predicted from eigenvalues, and measured on perturbations."""

import dataclasses
import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._check import integer, on_numbers
from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._integrate import terms_of
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._systems import discretization_of, is_system
from pdejax.analysis.stability._region import parts_of, ready, stability_factor, whole_field_solver
from pdejax.analysis.stability._spectrum import Point, checked_point, extreme_eigenvalues, log_norm
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.terms import FieldArgs

ROUNDING = 1e-9  # |R| − 1 below this is rounding error
GROWTH = 0.1  # excess of a growing mode's factor over e^{h Re λ} that still counts as following the flow
SMALLEST = 1e-4  # of 1/max|λ|: a scheme that is unstable at this step is unstable at every step
LANES = 16  # step sizes tried at once


@dataclasses.dataclass(frozen=True)
class StepPrediction:
    """A step limit from eigenvalues.

    - `dt_max`: the largest stable step in units of depth; inf if every step tried is stable, 0 if none is.
    - `eigenvalue`: the one that limits it; `spectral_radius` max|λ| of those known.
    - `complete`: whether all eigenvalues were known; `converged` and `note`: whether the iteration for them did.
    """

    dt_max: float
    eigenvalue: complex
    spectral_radius: float
    complete: bool
    converged: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True)
class StepMeasurement:
    """A step limit from the growth of a perturbation.

    - `dt_max`: the largest step seen stable; inf or 0 as for `StepPrediction`. `bracket`: the smallest one seen unstable.
    - `steps` taken at every step size; `growth` the rate per unit depth that the flow itself was allowed.
    """

    dt_max: float
    bracket: float
    steps: int
    growth: float
    note: str = ""


@on_numbers
def predict_dt_max(
    system: Any,
    u: ArrayLike,
    solver: diffrax.AbstractSolver | str | None = None,
    *,
    t: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> StepPrediction:
    r"""Predict the largest h such that every step up to it keeps the perturbations of `u` from growing by the scheme's doing.

    `system`: a field and a `solver`; or a discretization or model, with its own solver unless another is given. `t`: by
    default the discretization's t0, or 0. With the eigenvalues λ of the Jacobian at `(t, u)` and the solver's own $|R(z)|$
    (`stability_factor`):

    - a mode that does not grow, $\mathrm{Re}\lambda \le 0$, must not grow in the scheme: $|R(h\lambda)| \le 1$;
    - a mode that grows may follow the exact flow: $|R(h\lambda)| \le 1.1\,e^{h\,\mathrm{Re}\lambda}$.

    All eigenvalues are known for fields of at most 400 entries. Beyond, ARPACK finds the extreme ones in three directions
    (largest modulus, leftmost, largest imaginary part), which decides for stability regions that have no holes before
    those; growing modes are then only checked where they are among them. Eigenvalues decide about long-time growth: a
    non-normal Jacobian may amplify for a while below the limit (see `field_of_values` in `SpectralBounds`).

    An iteration that does not converge is said in `converged` and `note`, and the limit is then that of the eigenvalues
    that did; with none at all `RuntimeError` is raised. Raises `ValueError`/`TypeError` for an unknown solver, one that
    takes the terms apart, or a field that is not finite or does not fit.
    """
    owner = "predict_dt_max"
    point = checked_point(owner, system, u, t, mask)
    if solver is None:
        solver = _stepped(owner, system, point, None).solver
    resolved = whole_field_solver(owner, solver)
    jacobian, note = point.jacobian(), ""
    if jacobian.complete:
        values = np.linalg.eigvals(jacobian.known())
    else:
        found = extreme_eigenvalues(jacobian, rightmost=False)
        values = np.concatenate([each.values for each in found.values()])
        failed = [name for name, each in found.items() if not each.converged]
        note = f"did not converge: {', '.join(failed)}" if failed else ""
        if values.size == 0:
            raise RuntimeError(
                "predict_dt_max: no eigenvalue of the Jacobian converged; the field may be extremely stiff or non-normal. "
                "Measure with measure_dt_max instead."
            )
    values = np.asarray(values, complex)
    dt_max, limiting = _first_violation(resolved, values)
    radius = float(np.abs(values).max())
    return StepPrediction(dt_max, limiting, radius, jacobian.complete, not note, note)


def _first_violation(solver: diffrax.AbstractSolver, values: np.ndarray) -> tuple[float, complex]:
    """The smallest h at which an eigenvalue breaks its condition, and that eigenvalue."""
    radius = np.abs(values).max()
    if radius == 0:
        return math.inf, 0j
    # Rounding must not turn a neutral mode into a growing or decaying one.
    rates = np.real(values)
    rates = np.where(np.abs(rates) < 1e-12 * radius, 0.0, rates)
    values = rates + 1j * np.imag(values)

    def violations(steps):
        z = np.multiply.outer(steps, values)
        allowed = np.where(rates > 0, (1 + GROWTH) * np.exp(np.minimum(np.real(z), 700.0)), 1 + ROUNDING)
        return ~(stability_factor(solver, z) <= allowed)

    low = SMALLEST / radius
    if violations(np.array([low])).any():
        return 0.0, complex(values[np.argmax(violations(np.array([low]))[0])])
    for start in range(-4, 6):  # decade after decade
        steps = np.geomspace(10.0**start, 10.0 ** (start + 1), 128) / radius
        broken = violations(steps)
        if broken.any():
            first = int(np.argmax(broken.any(axis=1)))
            high, low = steps[first], (steps[first - 1] if first else low)
            break
        low = steps[-1]
    else:
        return math.inf, 0j
    for _ in range(4):
        steps = np.linspace(low, high, 34)[1:]
        broken = violations(steps)
        first = int(np.argmax(broken.any(axis=1)))
        low, high = (steps[first - 1] if first else low), steps[first]
    return float(low), complex(values[int(np.argmax(broken[first]))])


@on_numbers
def measure_dt_max(
    system: Any,
    u: ArrayLike,
    solver: diffrax.AbstractSolver | str | None = None,
    *,
    t: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    steps: int = 400,
    key: PRNGKeyArray | None = None,
) -> StepMeasurement:
    r"""Measure the largest h at which a perturbation of `u` does not grow, without an eigenvalue.

    The derivative $D\Phi_h(u)$ of the solver's own step map at `(t, u)` is applied `steps` times to noise from `key`, normalized
    in between. Unstable means that over the last half the perturbation grew by more than the flow allows: by more than
    $e^{\mu h\,\mathrm{steps}/2}$ with μ the field's log-norm (0 if negative), from `spectral_bounds` of its terms. Step sizes
    are tried sixteen at a time in one compiled `vmap`: first on a geometric grid, then inside the bracket, until it is
    narrower than 0.1 %. A mode must grow by about log(n·d)/steps per step to be seen, so the result lies above the true
    limit by up to 1 % at 400 steps. Costs `80·steps` steps and their derivatives.

    Systems as in [`predict_dt_max`][pdejax.analysis.stability.predict_dt_max], any solver: a splitting gets its terms, an
    exponential or implicit-explicit one the linear part of the field apart from the rest, as `simulate` hands them out.

    Raises `ValueError`/`TypeError` for an unknown solver, one whose step has no forward-mode derivative, a splitting whose
    sub-solvers do not match the equation's terms, `steps` below 40, or a field that is not finite or does not fit.
    """
    owner = "measure_dt_max"
    integer(owner, "steps", steps, 40, advice="else growth is not seen")
    point = checked_point(owner, system, u, t, mask)
    d = _stepped(owner, system, point, solver)
    resolved = d.solver
    assert resolved is not None
    resolved = resolved if parts_of(resolved) is not None else ready(resolved)
    split = "linear" if linear_part(resolved) is not None else d.split
    handed = terms_of(d.field, split, point.u, point.args or FieldArgs())
    jacobian = point.jacobian()
    growth, note = _allowed_growth(point)
    # A unit of step size: the local scale of the field from a few power iterations, good to a factor.
    unit = 1.0 / max(jacobian.scale(), 1e-300)
    noise = jax.random.normal(jax.random.key(0) if key is None else key, point.u.shape, point.u.dtype)

    def unstable(sizes):
        lanes = jnp.asarray(sizes, noise.dtype)
        grown = _measured(resolved, handed, point.t, point.u, point.args, noise, lanes, int(steps))
        return ~(np.asarray(grown) <= growth * sizes * (steps - steps // 2) + 1e-3)

    sizes = np.geomspace(0.25, 1e5, LANES) * unit
    broken = unstable(sizes)
    if broken[0]:  # below the usual range
        sizes = np.geomspace(SMALLEST, 0.25, LANES) * unit
        broken = unstable(sizes)
    if not broken.any():
        return StepMeasurement(math.inf, math.inf, int(steps), growth, note)
    if broken[0]:
        return StepMeasurement(0.0, float(sizes[0]), int(steps), growth, note)
    first = int(np.argmax(broken))
    low, high = sizes[first - 1], sizes[first]
    while high > low * (1 + 1e-3):
        sizes = np.linspace(low, high, LANES + 2)[1:-1]
        broken = unstable(sizes)
        first = int(np.argmax(broken)) if broken.any() else LANES
        low, high = (sizes[first - 1] if first else low), (sizes[first] if first < LANES else high)
    return StepMeasurement(float(low), float(high), int(steps), growth, note)


def _measured(solver: diffrax.AbstractSolver, *rest) -> Array:
    try:
        return _growth(solver, *rest)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"measure_dt_max: a step of {type(solver).__name__} has no forward-mode derivative. If it chooses its stages in "
            "every step it has no step limit either: give it a fixed number."
        ) from None


def _stepped(owner: str, system: Any, point: Point, solver: Any) -> Discretization:
    """The system, with another solver if one is given, at one depth and checked for the state."""
    if is_system(system):
        d = discretization_of(owner, system, point.u.shape[-2] if point.u.ndim > 1 else None)
        d = (
            d
            if solver is None
            else d.replace(solver=solver, **({"steps": max(len(d.layers), 1)} if d.adaptive else {}))
        )
    elif solver is None:
        raise ValueError(f"{owner}: a field alone has no solver; give one, such as 'euler', or a Discretization.")
    else:
        t1 = getattr(point.field, "t1", 1.0)
        d = Discretization(point.field, solver, t1=t1, steps=getattr(point.field, "size", 1))
    d, _ = d.settled(owner, point.u, point.args or FieldArgs())
    field = d.field
    if not d.layers or not isinstance(field, DepthVarying):
        return d
    index = int(np.clip(np.floor(float(point.t) / field.t1 * field.size), 0, field.size - 1))
    return Discretization(field.layer(index), take_layer(d.solver, index), t1=1.0, steps=1, split=d.split)


def _allowed_growth(point: Point) -> tuple[float, str]:
    """An upper bound of the field's log-norm, at least 0: the sum of its terms'.

    By term, because the log-norm of stiff diffusion (0 or less) is known, while an iteration on the whole field would look
    for it at the crowded end of a wide spectrum. A small field's is exact.
    """
    jacobian = point.jacobian()
    if jacobian.complete:
        return max(0.0, float(jacobian.support(0.0).values[0])), ""
    total, failed = 0.0, []
    for name in point.field.names():
        found = log_norm(dataclasses.replace(point, field=point.field.only((name,))), name)
        if not found.converged:
            failed.append(name)
        total += max(found.values) if len(found.values) else 0.0
    note = f"log-norm did not converge and counts as 0: {', '.join(failed)}" if failed else ""
    return max(0.0, float(total)), note


@eqx.filter_jit
def _growth(
    solver: diffrax.AbstractSolver,
    terms: diffrax.AbstractTerm,
    t: Array,
    u: Array,
    args: FieldArgs | None,
    noise: Array,
    sizes: Float[Array, " lanes"],
    steps: int,
) -> Float[Array, " lanes"]:
    """log of the perturbation's growth over the last half of the steps, for every step size."""

    def lane(h):
        # Linearized once: what depends on u alone stays out of the loop.
        end, advance = Jacobian(lambda y: fresh_step(solver, terms, t, t + h, y, args)[0], u).linearize()

        def body(v, _):
            new = advance(v)
            size = jnp.linalg.norm(jnp.ravel(new))
            alive = jnp.isfinite(size) & (size > 0)
            new = new / jnp.where(alive, size, 1)
            return jnp.where(alive, new, v), jnp.where(size == 0, -jnp.inf, jnp.where(alive, jnp.log(size), jnp.inf))

        _, logs = jax.lax.scan(body, noise / jnp.linalg.norm(jnp.ravel(noise)), length=steps)
        # A step that failed has no derivative worth the name.
        return jnp.where(jnp.all(jnp.isfinite(end)), jnp.sum(logs[steps // 2 :]), jnp.inf)

    return jax.vmap(lane)(sizes)
