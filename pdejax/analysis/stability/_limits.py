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

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers
from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._integrate import terms_of
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._systems import discretization_of, is_system
from pdejax.analysis.stability._region import ready, stability_factor, whole_field_solver
from pdejax.analysis.stability._spectrum import Point, checked_point, extreme_eigenvalues, log_norm
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.solvers._terms import parts_of
from pdejax.terms import FieldArgs

ROUNDING = 1e-9  # |R| − 1 below this is rounding error
GROWTH = 0.1  # excess of a growing mode's factor over e^{h Re λ} that still counts as following the flow
SMALLEST = 1e-4  # of 1/max|λ|: a scheme that is unstable at this step is unstable at every step
LANES = 16  # step sizes tried at once
SEEN = 1e-3  # log of the growth that counts as such
CLEAR = 3.0  # log of the growth that no turning of a mode explains


@dataclasses.dataclass(frozen=True)
class StepPrediction:
    """A step limit from eigenvalues.

    - `dt_max`: the largest stable step in units of depth; inf if every step tried is stable, 0 if none is.
    - `eigenvalue`: the one that limits it; `spectral_radius` max|λ| of those known.
    - `complete`: whether all eigenvalues were known; `converged`: whether the iteration for them did.
    - `sharp`: whether perturbations are expected to start growing at this very step: all eigenvalues known, none growing, the
      field linear and normal. `note` says what is not so, and what follows.
    """

    dt_max: float
    eigenvalue: complex
    spectral_radius: float
    complete: bool
    converged: bool = True
    sharp: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True)
class StepMeasurement:
    """A step limit from the growth of a perturbation.

    - `dt_max`: the largest step seen stable; inf or 0 as for `StepPrediction`.
    - `interval`: a range for the limit of endless runs (of what is seen of it, where `note` says that something is hidden).
      From the largest step seen stable to the smallest seen unstable, less than 0.1 % apart, either end moved by what is not
      settled in so many steps: six times what half as many would have changed, or the way to the step at which the perturbation
      grows twentyfold, whichever is more. It is wide where |R| hardly changes with h, as near the imaginary axis, and (0, …)
      may mean that no step is stable.
    - `steps` taken at every step size; `growth` the rate per unit depth that the flow itself was allowed.
    """

    dt_max: float
    interval: tuple[float, float]
    steps: int
    growth: float
    note: str = ""


@checked
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

    With a `mask (n,)` the perturbations are those of real tokens: padded ones may be unstable and change nothing of them.

    It is the limit for small perturbations of `u` over many steps. `sharp` is False, and `note` says why, where a run or
    [`measure_dt_max`][pdejax.analysis.stability.measure_dt_max] need not show it: modes that grow hide decaying ones, a nonlinear
    field has another Jacobian at the next state, and not all eigenvalues may be known.

    An iteration that does not converge is said in `converged` and `note`, and the limit is then that of the eigenvalues
    that did; with none at all `RuntimeError` is raised. Raises `ValueError`/`TypeError` for an unknown solver, one that
    takes the terms apart, or a field that is not finite or does not fit.
    """
    owner = "predict_dt_max"
    point = checked_point(owner, system, u, t, mask)
    if solver is None:
        solver = _stepped(owner, system, point, None).solver
    resolved = whole_field_solver(owner, solver)
    jacobian, failed = point.jacobian(), []
    if jacobian.complete:
        values = np.linalg.eigvals(jacobian.known())
    else:
        found = extreme_eigenvalues(jacobian, rightmost=False)
        values = np.concatenate([each.values for each in found.values()])
        failed = [name for name, each in found.items() if not each.converged]
        if values.size == 0:
            raise RuntimeError(
                "predict_dt_max: no eigenvalue of the Jacobian converged; the field may be extremely stiff or non-normal. "
                "Measure with measure_dt_max instead."
            )
    values = np.asarray(values, complex)
    dt_max, limiting = _first_violation(resolved, values)
    radius = float(np.abs(values).max())
    reasons = _not_sharp(point, values, jacobian.complete, failed)
    return StepPrediction(dt_max, limiting, radius, jacobian.complete, not failed, not reasons, "; ".join(reasons))


def _not_sharp(point: Point, values: np.ndarray, complete: bool, failed: list[str]) -> list[str]:
    """Why the limit of the eigenvalues at this state need not be that of a run."""
    reasons = [f"did not converge: {', '.join(failed)}"] if failed else []
    if not complete:
        reasons.append("not all eigenvalues are known: another may limit the step more")
    fastest = float(np.real(_neutral(values)).max())
    if fastest > 0:
        reasons.append(
            f"modes grow at up to {fastest:.3g}: what the scheme adds to decaying ones is hidden until it is faster, so that a "
            "measured limit lies above"
        )
    elif complete:
        # Only where the matrix is at hand: the iteration for the log-norm of a stiff field is long.
        norm = float(point.jacobian().support(0.0).values[0])
        if norm > 1e-9 * np.abs(values).max():
            reasons.append(
                f"non-normal: small perturbations may grow for a while, at up to {norm:.3g}, below the limit too"
            )
    if not _linear(point):
        reasons.append(
            "nonlinear: the Jacobian, and with it the limit, changes along a run, and between the stages of a step"
        )
    return reasons


def _neutral(values: np.ndarray) -> np.ndarray:
    """Eigenvalues with real parts that are rounding error set to 0."""
    rates = np.real(values)
    return np.where(np.abs(rates) < 1e-12 * np.abs(values).max(), 0.0, rates) + 1j * np.imag(values)


def _linear(point: Point) -> bool:
    """Whether the Jacobian, applied to noise, is the same at another state."""
    u = point.u
    v = jax.random.normal(jax.random.key(1), u.shape, u.dtype)
    other = 0.1 * (1 + jnp.max(jnp.abs(u))) * jax.random.normal(jax.random.key(2), u.shape, u.dtype) - 0.7 * u
    here, there = (point.jacobian(at).matvec(v) for at in (u, other))
    size = float(jnp.linalg.norm(jnp.ravel(here)))
    return float(jnp.linalg.norm(jnp.ravel(here - there))) <= 1e3 * float(jnp.finfo(u.dtype).eps) * size


def _first_violation(solver: diffrax.AbstractSolver, values: np.ndarray) -> tuple[float, complex]:
    """The smallest h at which an eigenvalue breaks its condition, and that eigenvalue."""
    radius = np.abs(values).max()
    if radius == 0:
        return math.inf, 0j
    # Rounding must not turn a neutral mode into a growing or decaying one.
    values = _neutral(values)
    rates = np.real(values)

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


@checked
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

    The derivative $D\Phi_h(u)$ of the solver's own step map at `(t, u)` is applied `steps` times to noise from `key`,
    normalized in between. Unstable means that over the last half the perturbation grew by more than the flow can make it grow
    over that depth τ: $e^{\mu\tau}$ with the log-norm μ, or $e^{\alpha\tau}$ with α the largest real part of the eigenvalues (0
    if negative), times a factor of at most 20 for transients of non-normal fields, whichever is less. Beyond 400 entries μ is
    the sum of the terms', and where α is not found μ stands for it; `note` says so.

    Step sizes are tried sixteen at a time in one compiled `vmap`: first on a geometric grid, then between the last stable and the
    first unstable one, until they are less than 0.1 % apart. In finitely many steps a mode that grows slowly is not seen yet, and
    one that turns seems to grow: `interval` says how far the result may be off. Costs `180·steps` steps and their derivatives.

    It is a limit at `u`. On a nonlinear field the stages of a step beyond the first see the Jacobian elsewhere, so that for
    schemes of several stages it is not that of [`predict_dt_max`][pdejax.analysis.stability.predict_dt_max], whose note says so.

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
    flow = _flow(point)
    growth, note = flow.alpha, flow.note
    # A unit of step size: the local scale of the field from a few power iterations, good to a factor.
    unit = 1.0 / max(jacobian.scale(), 1e-300)
    noise = jax.random.normal(jax.random.key(0) if key is None else key, point.u.shape, point.u.dtype)

    def excess(sizes):
        """log of the growth beyond what the flow allows, over the last half of all steps and of their first half."""
        lanes = jnp.asarray(sizes, noise.dtype)
        grown = _measured(resolved, handed, point.t, point.u, point.args, noise, lanes, int(steps))
        late, early = steps - steps // 2, steps // 2 - steps // 4
        return np.asarray(grown) - np.stack([flow.allowed(sizes, late), flow.allowed(sizes, early)], axis=1)

    def unstable(sizes):
        return ~(excess(sizes)[:, 0] <= SEEN)

    sizes = np.geomspace(0.25, 1e5, LANES) * unit
    broken = unstable(sizes)
    if broken[0]:  # below the usual range
        sizes = np.geomspace(SMALLEST, 0.25, LANES) * unit
        broken = unstable(sizes)
    if not broken.any():
        return StepMeasurement(math.inf, (float(sizes[-1]), math.inf), int(steps), growth, note)
    if broken[0]:
        return StepMeasurement(0.0, (0.0, float(sizes[0])), int(steps), growth, note)
    first = int(np.argmax(broken))
    low, high = _between(unstable, sizes[first - 1], sizes[first])
    return StepMeasurement(float(low), _widened(excess, low, high), int(steps), growth, note)


def _widened(excess, low: float, high: float) -> tuple[float, float]:
    """The interval of `StepMeasurement` about the last stable and the first unstable step."""
    limits = []
    for horizon, grown, near in (
        (1, SEEN, np.geomspace(0.5, 2.0, LANES) * low),
        (0, CLEAR, np.geomspace(1.0, 4096.0, LANES) * low),
    ):
        broken = ~(excess(near)[:, horizon] <= grown)
        first = int(np.argmax(broken)) if broken.any() else LANES
        if first in (0, LANES):
            limits.append(0.0 if first == 0 else math.inf)
            continue
        last, _ = _between(lambda h, k=horizon, g=grown: ~(excess(h)[:, k] <= g), near[first - 1], near[first])
        limits.append(last)
    shorter, clear = limits
    # A limit h* that is approached like h* + c·steps^(−1/4), as in h⁴ on the imaginary axis, lies 5.3 differences away.
    off = max(6 * abs(shorter - low), abs(clear - low))
    return max(0.0, float(low - off)), float(high + off)


def _between(unstable, low: float, high: float) -> tuple[float, float]:
    """The last stable and the first unstable step of a range, less than 0.1 % apart."""
    while high > low * (1 + 1e-3):
        sizes = np.linspace(low, high, LANES + 2)[1:-1]
        broken = unstable(sizes)
        first = int(np.argmax(broken)) if broken.any() else LANES
        low, high = (sizes[first - 1] if first else low), (sizes[first] if first < LANES else high)
    return low, high


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


@dataclasses.dataclass(frozen=True)
class _Flow:
    r"""What the flow itself may do to a perturbation: grow by $e^{\alpha\tau}$ over a depth τ but for a transient factor, and
    by no
    more than $e^{\mu\tau}$. `size`: the largest |λ| of the modes that grow; `note`: what a user should know of it."""

    alpha: float
    mu: float
    transient: float
    size: float
    note: str

    def allowed(self, sizes: np.ndarray, steps: int) -> np.ndarray:
        """log of the growth in so many steps of these sizes. log|1 + hλ| ≤ h Re λ + ½h²|λ|²: what Euler, the coarsest scheme,
        adds
        to a growing mode."""
        depth = np.asarray(sizes) * steps
        own = np.minimum(math.log(1 + GROWTH), 0.5 * (self.size * np.asarray(sizes)) ** 2)
        return np.minimum(self.mu * depth, self.alpha * depth + self.transient) + own * steps


def _flow(point: Point) -> _Flow:
    """From the matrix of a field of at most 400 entries. Beyond, the log-norm is the sum of its terms' (that of stiff
    diffusion, 0
    or less, is known; an iteration on the whole field would look for it at the crowded end of a wide spectrum), and the rightmost
    eigenvalue is only looked for where that is positive."""
    jacobian = point.jacobian()
    if jacobian.complete:
        values, vectors = np.linalg.eig(jacobian.known())
        mu = max(0.0, float(jacobian.support(0.0).values[0]))
        return _growing(_neutral(values), mu, min(math.log(np.linalg.cond(vectors)), CLEAR))
    mu, failed = 0.0, []
    for name in point.field.names():
        found = log_norm(dataclasses.replace(point, field=point.field.only((name,))), name)
        if not found.converged:
            failed.append(name)
        mu += max(found.values) if len(found.values) else 0.0
    mu, note = max(0.0, float(mu)), f"log-norm did not converge and counts as 0: {', '.join(failed)}" if failed else ""
    if mu == 0 and not failed:
        return _Flow(0.0, 0.0, 0.0, 0.0, "")
    found = jacobian.extreme("LR")
    if found.converged and len(found.values) and not failed:
        return _growing(np.asarray(found.values), mu, CLEAR)
    stands = (
        "the rightmost eigenvalue is not known; for it stands the log-norm, an upper bound, and dt_max may be too large"
    )
    return _Flow(mu, mu, 0.0, 0.0, "; ".join(filter(None, (note, stands))))


def _growing(values: np.ndarray, mu: float, transient: float) -> _Flow:
    growing = values[np.real(values) > 0]
    if growing.size == 0:
        return _Flow(0.0, mu, transient, 0.0, "")
    alpha = float(np.real(growing).max())
    note = (
        f"modes grow at up to {alpha:.3g}: what the scheme adds to decaying ones is hidden until it is faster, and dt_max is an "
        "upper bound"
    )
    return _Flow(alpha, mu, transient, float(np.abs(growing).max()), note)


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
) -> Float[Array, "lanes 2"]:
    """log of the perturbation's growth over the last half of the steps and of their first half, for every step size."""

    mask = None if args is None else args.mask

    def lane(h):
        # Linearized once: what depends on u alone stays out of the loop.
        end, advance = Jacobian(lambda y: fresh_step(solver, terms, t, t + h, y, args)[0], u, mask).linearize()

        def body(v, _):
            new = advance(v)
            size = jnp.linalg.norm(jnp.ravel(new))
            alive = jnp.isfinite(size) & (size > 0)
            new = new / jnp.where(alive, size, 1)
            return jnp.where(alive, new, v), jnp.where(size == 0, -jnp.inf, jnp.where(alive, jnp.log(size), jnp.inf))

        _, logs = jax.lax.scan(body, noise / jnp.linalg.norm(jnp.ravel(noise)), length=steps)
        # A step that failed has no derivative worth the name.
        late, early = jnp.sum(logs[steps // 2 :]), jnp.sum(logs[steps // 4 : steps // 2])
        return jnp.where(jnp.all(jnp.isfinite(end)), jnp.stack([late, early]), jnp.inf)

    return jax.vmap(lane)(sizes)
