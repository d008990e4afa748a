"""Fidelity of a residual flow to its input, v2 Thm 3.4 and (16)–(17): its bounds, and its decay with depth (claims C6, C13)."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import beside, bootstrap, check_bootstrap, compare
from pdejax._check import integer, number, probability, real_array, traced
from pdejax._discretization import Discretization
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax._figure import AbstractRecord, Figure
from pdejax._simulate import simulate
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states, shuffle_tokens
from pdejax.analysis.similarity._measures import relative_error, sequence_cosine


class FidelityReport(AbstractRecord):
    """Fidelity along trajectories against the two bounds; arrays `(...,)` as the samples were given.

    - `fidelity` ρ, `ratio` r = ‖I‖/‖u₀‖, `claimed` v2 (17), `sharp` √(1 − r²) (−1 for r ≥ 1).
    - `below_one`, `above_one`: samples with r < 1 and with r ≥ 1; `violated_below`, `violated_above`: how many of each have
      ρ below the claimed bound; `sharp_violated`: how many (of all) have ρ below the sharp one.
    """

    fidelity: Array
    ratio: Array
    claimed: Array
    sharp: Array
    below_one: Array
    above_one: Array
    violated_below: Array
    violated_above: Array
    sharp_violated: Array


@checked
def fidelity(us: Float[Array, "... n d"], u0: Float[Array, "n d"]) -> Float[Array, "..."]:
    r"""$\rho = \langle u, u_0\rangle/(\|u\|\,\|u_0\|)$, v2 Thm 3.4, the cosine between fields; over the last two axes. NaN if
    either is 0."""
    product = jnp.einsum("...nd,nd->...", us, u0)
    return product / (_size(us) * _size(u0))


@checked
def residual_ratio(us: Float[Array, "... n d"], u0: Float[Array, "n d"]) -> Float[Array, "..."]:
    r"""$r = \|\int_0^tF\|/\|u_0\| = \|u(t) - u_0\|/\|u_0\|$, by v2 (16). Inf or NaN if u₀ = 0."""
    return _size(us - u0[(None,) * (us.ndim - 2)]) / _size(u0)


@checked
def fidelity_bound(ratio: ArrayLike, *, claimed: bool = False) -> Float[Array, "..."]:
    r"""The least cosine ρ that ‖I‖ = r‖u₀‖ allows: $\sqrt{1-r^2}$ for r < 1 (u₀ + I lies in a ball about u₀ that the tangents
    from 0 touch at the angle arcsin r), 0 (not attained) for r = 1, −1 for r > 1. Attained by
    [`adversarial_update`][pdejax.analysis.residual.adversarial_update].

    `claimed`: v2 (17) instead, $\rho \ge (1-r)/(1+r)$. True for r ≤ 1, where it is weaker; false beyond, where only ρ ≥ −1 is:
    the numerator is negative there, and dividing it by the largest ‖u‖ rather than the actual one raises the bound. I = −2u₀
    gives ρ = −1 < −1/3."""
    r = jnp.asarray(ratio)
    if claimed:
        return (1 - r) / (1 + r)
    r = r.astype(jnp.result_type(float)) if not jnp.issubdtype(r.dtype, jnp.floating) else r
    return jnp.where(r <= 1, jnp.sqrt(jnp.where(r <= 1, 1 - r**2, 0)), -1)


@checked
def adversarial_update(u0: Float[Array, "n d"], ratio: float, *, key: PRNGKeyArray) -> Float[Array, "n d"]:
    r"""The update I of norm r‖u₀‖ that hurts fidelity most: $I = r\|u_0\|\,(-r\,\hat u_0 + \sqrt{1-r^2}\,\hat w)$ for r < 1, ŵ a
    random unit field orthogonal to u₀; $-r\,u_0$ for r > 1.

    Raises `ValueError` for a ratio that is negative or exactly 1 (u₀ + I = 0: no angle), or a field of one number with
    r < 1, which has nothing orthogonal to it.
    """
    real_array("adversarial_update", "u0", u0, "(n, d)")
    if not float(ratio) >= 0 or float(ratio) == 1:
        raise ValueError(f"adversarial_update: ratio={ratio} must be at least 0 and not 1, where u₀ + I would be 0.")
    if ratio > 1:
        return -ratio * u0
    if u0.size < 2:
        raise ValueError(
            "adversarial_update: a field of one number has no orthogonal direction; give at least two tokens or features."
        )
    unit = u0 / _size(u0)
    w = jax.random.normal(key, u0.shape, u0.dtype)
    w = w - jnp.sum(w * unit) * unit
    return ratio * _size(u0) * (-ratio * unit + (1 - ratio**2) ** 0.5 * w / _size(w))


@checked
def fidelity_report(us: Float[Array, "... n d"], u0: Float[Array, "n d"], tolerance: float = 1e-12) -> FidelityReport:
    """Fidelity, ratio and both bounds at every sample of `us (..., n, d)`, and how often each bound is violated by more than
    `tolerance` (rounding). Samples that are not finite count nowhere. Raises `ValueError` for a tolerance below 0."""
    if not traced(tolerance):
        number("fidelity_report", "tolerance", tolerance, least=0, advice="it is a rounding, such as 1e-12")
    rho, r = fidelity(us, u0), residual_ratio(us, u0)
    claimed, sharp = fidelity_bound(r, claimed=True), fidelity_bound(r)
    finite, below = jnp.isfinite(rho), r < 1
    broken = finite & (rho < claimed - tolerance)
    return FidelityReport(
        rho,
        r,
        claimed,
        sharp,
        below_one=jnp.sum(finite & below),
        above_one=jnp.sum(finite & ~below),
        violated_below=jnp.sum(broken & below),
        violated_above=jnp.sum(broken & ~below),
        sharp_violated=jnp.sum(finite & (rho < sharp - tolerance)),
    )


def _size(u: Array) -> Array:
    return jnp.sqrt(jnp.sum(u**2, axis=(-2, -1)))


DECAYS = ("exponential", "algebraic", "plateau")
_GRID = 160


class ResidualDecay(AbstractRecord):
    r"""Fidelity ρ(t) along depth and three laws fitted to its mean over sequences.

    - `ts (k,)`; `rho (k,)`, the mean, with its interval; its null `"tokens shuffled"` is the cosine with the input's tokens in
      another order, what of ρ is owed to the mean token alone; `sharp`, `claimed (k,)`: both lower bounds of ρ at
      r = ‖u − u₀‖/‖u₀‖, means over sequences. No null and None where fidelities were given rather than states.
    - `rate` λ of $Ae^{-\lambda t}$; `power` a of $At^{-a}$; `plateau` c and `plateau_rate` λ of $c + Ae^{-\lambda t}$, t from
      the first depth. An interval of c that holds 0 is no evidence of a plateau.
    - `aicc (3,)`: corrected Akaike criterion of the three laws, in the order of `DECAYS`; the smallest describes ρ best. A
      constant is a plateau.
    """

    ts: Float[Array, " k"]
    rho: Figure
    sharp: Float[Array, " k"] | None
    claimed: Float[Array, " k"] | None
    rate: Figure
    power: Figure
    plateau: Figure
    plateau_rate: Figure
    aicc: Figure

    @property
    def kind(self) -> str:
        """The law with the smallest criterion: "exponential", "algebraic" or "plateau"."""
        return DECAYS[int(jnp.argmin(self.aicc.value))]


class DecayDifference(AbstractRecord):
    """Decay without and with residual connection, and what lies between them, with paired intervals.

    - `bare`, `residual`: the fits. `rho (k,)`: fidelity with residual connection, beside its null `"bare"`, that without.
    - `rate`, `power`, `plateau`, `plateau_rate`: residual minus bare.
    """

    bare: ResidualDecay
    residual: ResidualDecay
    rho: Figure
    rate: Figure
    power: Figure
    plateau: Figure
    plateau_rate: Figure


@checked
def residual_decay(
    ts: ArrayLike,
    values: Trajectory | ArrayLike,
    *,
    mask: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tolerance: float = 1e-3,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> ResidualDecay:
    r"""Decay of $\rho(t) = \langle u, u_0\rangle/(\|u\|\|u_0\|)$ (v2 Thm 3.4) over depths `ts (k,)`.

    - `values`: states `(k, [batch], n, d)` or a trajectory, the first depth being u₀; or fidelities `(k,)` or `(k, batch)`.
    - `mask (n,)` or `(batch, n)`: real tokens of states. `start`: fit from this depth on (default: all but the first, where
      ρ = 1); the laws are asymptotic ones.

    Least squares in ρ itself, which may be negative: the amplitude (and c, held in [−1, 1]) in closed form, λ or a by a search
    over a grid and golden sections, λ up to 100 per range of depth, a up to 20. Misfits that are small beside `tolerance` (root
    mean square, in ρ) do not count against a law: without noise even a trace of another would reject it. Intervals: percentile
    bootstrap over sequences, each resample fitted anew; NaN for one sequence.

    O(k·batch·n·d) and, by resample, O(800·k). Where u or u₀ is 0, ρ is 0.

    Raises `ValueError`/`TypeError` for depths that do not increase or do not match, fewer than 5 depths to fit, states as in
    [`trajectory_fidelity`][pdejax.analysis.trajectory_fidelity], fidelities outside [−1, 1], options out of range.
    """
    ts, found = _checked("residual_decay", ts, values, mask, start, tolerance, key, level, resamples)
    return _decay(ts, *found, level=level, resamples=resamples)


@checked
def decay_difference(
    ts: ArrayLike,
    bare: Trajectory | ArrayLike,
    residual: Trajectory | ArrayLike,
    *,
    mask: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tolerance: float = 1e-3,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> DecayDifference:
    """Decay of fidelity of two systems on the same sequences at the same depths, `bare` without residual connections and
    `residual` with them. Arguments and errors as in [`residual_decay`][pdejax.analysis.residual_decay]; `ValueError` too where
    sequences differ in number."""
    options = (mask, start, tolerance, key, level, resamples)
    ts, first = _checked("decay_difference", ts, bare, *options)
    _, second = _checked("decay_difference", ts, residual, *options)
    if first[0].shape != second[0].shape:
        raise ValueError(
            f"decay_difference: bare has {first[0].shape[1]} sequences and residual {second[0].shape[1]}; pairs are compared."
        )
    return _difference(ts, first, second, level, resamples)


@checked
def residual_necessity(
    equation: AbstractEquation | Callable[..., Array],
    u0: Float[Array, "b n d"] | Float[Array, "n d"],
    *,
    layers: int,
    refine: int = 16,
    mask: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tolerance: float = 1e-3,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> DecayDifference:
    r"""The same leaky field F(u) = A(u) − u by explicit Euler at step 1, where a layer is u ← A(u) without residual connection,
    and at step 1/`refine`, where it is `refine` layers $u \leftarrow (1-h)u + hA(u)$ with one (v2 Thm 3.4 and its "bare"
    simulator, claim C13). Both are compared at depths 0, 1, …, `layers`.

    - `equation`: a field whose interaction (and reaction) have `leak=True`; with two leaky terms a step of 1 leaves −u behind,
      so that only one of them should leak; or a function F(t, u, args). `u0 (batch, n, d)` or `(n, d)`.

    Raises as [`residual_decay`][pdejax.analysis.residual_decay] and `ValueError` for fewer than 5 layers, `refine` below 2,
    a `MasterEquation` without leak, or a trajectory that diverges.
    """
    integer("residual_necessity", "layers", layers, 5, advice="a fit needs as many depths")
    integer("residual_necessity", "refine", refine, 2, advice="it is the number of steps by layer")
    terms = [getattr(equation, name, None) for name in ("interaction", "reaction")]
    if isinstance(equation, MasterEquation) and not any(getattr(term, "leak", False) for term in terms):
        raise ValueError(
            "residual_necessity: no term of the equation has leak=True, so that a step of 1 is a residual layer already; give "
            "the interaction a leak."
        )
    states = hidden_states("residual_necessity", "u0", jnp.asarray(u0)[None], mask)
    ts = jnp.arange(layers + 1).astype(states.u.dtype)

    def solve(steps):
        def one(u, real):
            return simulate(
                Discretization(equation, "euler", t1=float(layers), steps=steps),
                u,
                save=np.arange(layers + 1.0),
                mask=real,
            )

        return jax.vmap(one)(states.u[0], states.mask)

    bare, residual = solve(layers), solve(layers * refine)
    options = {"start": start, "tolerance": tolerance, "key": key, "level": level, "resamples": resamples}
    return decay_difference(ts, bare, residual, mask=states.mask, **options)


def _checked(owner, ts, values, mask, start, tolerance, key, level, resamples) -> tuple[Array, tuple[Any, ...]]:
    """Depths; ρ, its null and both bounds `(k, b)` (None for fidelities), weights of depths `(k,)`, tolerance and key."""
    check_bootstrap(owner, level, resamples)
    if not traced(tolerance):
        probability(owner, "tolerance", tolerance, "it is a misfit in ρ, such as 1e-3")
    key = jax.random.key(0) if key is None else key
    shuffle_key, draw_key = jax.random.split(key)
    if not isinstance(values, Trajectory) and jnp.ndim(values) in (1, 2):
        if mask is not None:
            raise ValueError(f"{owner}: a mask belongs to states; of fidelities leave out what is not real.")
        rho = jnp.asarray(values)
        if not jnp.issubdtype(rho.dtype, jnp.floating):
            raise TypeError(f"{owner}: fidelities have type {rho.dtype}; they must be floating-point.")
        if not traced(rho) and not (rho.size and np.all(np.abs(np.asarray(rho)) <= 1 + 1e-6)):
            raise ValueError(f"{owner}: fidelities must be cosines in [−1, 1], finite and at least one.")
        rho = rho if rho.ndim == 2 else rho[:, None]
        found = (rho, None, None, None)
    else:
        states = hidden_states(owner, "values", values, mask)
        u, real = states.u, states.mask
        found = _fidelities(u, real, shuffle_key)
    rho = found[0]
    ts = jnp.asarray(ts)
    if ts.shape != rho.shape[:1] and ts.ndim == 2 and isinstance(values, Trajectory):
        ts = ts[0]  # a batch shares its depths
    ts = ts.astype(rho.dtype)
    if ts.shape != rho.shape[:1]:
        raise ValueError(f"{owner}: ts has shape {ts.shape}; it must hold the {rho.shape[0]} depths of the states.")
    if not traced(ts) and not np.all(np.diff(np.asarray(ts)) > 0):
        raise ValueError(f"{owner}: ts must increase strictly and be finite; got {np.asarray(ts)}.")
    begin = ts[0] if start is None else jnp.asarray(start, rho.dtype)
    fitted = (ts >= begin) & (ts > ts[0])
    if not traced(fitted) and int(np.sum(np.asarray(fitted))) < 5:
        raise ValueError(
            f"{owner}: {int(np.sum(np.asarray(fitted)))} depths lie behind the first and at or behind start={start}; at least "
            "5 are needed to tell three laws apart."
        )
    return ts, (*found, (fitted.astype(rho.dtype), jnp.asarray(tolerance, rho.dtype)), draw_key)


@eqx.filter_jit
def _fidelities(u, real, key):
    first = jnp.broadcast_to(u[:1], u.shape)
    mask = jnp.broadcast_to(real[None], u.shape[:3])
    shuffled = jnp.broadcast_to(shuffle_tokens(u[:1], real, key), u.shape)
    r = relative_error(u, first, mask)
    sharp, claimed = fidelity_bound(r), fidelity_bound(r, claimed=True)
    return sequence_cosine(u, first, mask), sequence_cosine(u, shuffled, mask), sharp, claimed


@eqx.filter_jit
def _decay(ts, rho, null, sharp, claimed, options, key, level, resamples) -> ResidualDecay:
    b = rho.shape[1]

    def statistic(w):
        mean = rho @ w / jnp.sum(w)
        other = mean if null is None else null @ w / jnp.sum(w)
        return {"rho": mean, "null": other, "gap": mean - other, "fits": _fits(ts, mean, options)}

    found = bootstrap(statistic, b, key=key, level=level, resamples=resamples, dtype=rho.dtype)
    bounds = (None, None) if sharp is None else (jnp.mean(sharp, axis=1), jnp.mean(claimed, axis=1))
    own, apart = ({} if null is None else {"tokens shuffled": x} for x in (found["null"], found["gap"]))
    mean, fits = beside(found["rho"], own, apart), found["fits"]
    return ResidualDecay(ts, mean, *bounds, *(fits[i] for i in range(4)), aicc=fits[-3:])


def _difference(ts, first, second, level, resamples) -> DecayDifference:
    options = {"level": level, "resamples": resamples}
    bare, residual = _decay(ts, *first, **options), _decay(ts, *second, **options)
    gaps, rho = _gaps(ts, first[0], second[0], *first[4:], **options)
    return DecayDifference(bare, residual, rho, *gaps)


@eqx.filter_jit
def _gaps(ts, a, b, options, key, level, resamples) -> tuple[list[Figure], Figure]:
    def statistic(w):
        one, other = jax.vmap(lambda rho: _fits(ts, rho @ w / jnp.sum(w), options))(jnp.stack([a, b]))
        return (other - one)[:4]

    gaps = bootstrap(statistic, a.shape[1], key=key, level=level, resamples=resamples, dtype=a.dtype)
    rho = compare(b.T, {"bare": a.T}, key=key, level=level, resamples=resamples)
    return [gaps[i] for i in range(4)], rho


def _fits(ts: Float[Array, " k"], rho: Float[Array, " k"], options: tuple[Array, Array]) -> Float[Array, " 7"]:
    """Rate, power, plateau, its rate, and the criteria of the three laws. `options`: weights of depths, tolerance."""
    fitted, tolerance = options
    points = jnp.sum(fitted)
    scale = ts[-1] - ts[0]
    tau = (ts - ts[0]) / scale
    here = fitted > 0
    least = jnp.min(jnp.where(here, tau, jnp.inf))
    mean_rho = jnp.sum(fitted * rho) / points

    def model(x, places, levelled):
        """The level c and the sum of squares that A e^{−x·place} + c leaves, both coefficients at their best."""
        basis = jnp.exp(-x * places)
        mean = jnp.sum(fitted * basis) / points
        spread = jnp.sum(fitted * (basis - mean) ** 2)
        slope = jnp.where(spread > 0, jnp.sum(fitted * (basis - mean) * (rho - mean_rho)), 0)
        level = jnp.clip(mean_rho - slope / jnp.where(spread > 0, spread, 1) * mean, -1, 1)
        level = jnp.where(levelled, level, 0)
        amplitude = jnp.sum(fitted * basis * (rho - level)) / jnp.sum(fitted * basis**2)
        return level, jnp.sum(fitted * (rho - level - amplitude * basis) ** 2)

    def search(places, levelled, low, high):
        x = _least(lambda x: model(x, places, levelled)[1], low, high)
        return x, *model(x, places, levelled)

    # From the first depth fitted on, so that no law is tiny there; a power of t is an exponential in ln t.
    gap, log_ratio = jnp.where(here, tau - least, 0), jnp.log(jnp.where(here, tau / least, 1))
    # Slower than one e-folding over four ranges a plateau cannot be told from a straight line.
    low, high = jnp.asarray([0.0, 0.0, 0.25], rho.dtype), jnp.asarray([100.0, 20.0, 100.0], rho.dtype)
    places, levelled = jnp.stack([gap, log_ratio, gap]), jnp.asarray([False, False, True])
    (rate, power, slow), (_, _, level), rss = jax.vmap(search)(places, levelled, low, high)

    def criterion(rss, parameters):
        spare = (2 * parameters * (parameters + 1)) / jnp.maximum(points - parameters - 1, 0.5)
        return points * jnp.log(rss / points + tolerance**2) + 2 * parameters + spare

    constant = criterion(jnp.sum(fitted * (rho - mean_rho) ** 2), 1)
    curved = criterion(rss[2], 3)
    flat = constant <= curved
    criteria = [criterion(rss[0], 2), criterion(rss[1], 2), jnp.minimum(constant, curved)]
    level, slow = jnp.where(flat, mean_rho, level), jnp.where(flat, 0, slow)
    return jnp.stack([rate / scale, power, level, slow / scale, *criteria])


def _least(function, low: Float[Array, ""], high: Float[Array, ""]) -> Float[Array, ""]:
    """The x in [low, high] where `function` is least: a grid, dense near `low`, then golden sections."""
    grid = low + (high - low) * jnp.asarray(np.linspace(0, 1, _GRID) ** 3, low.dtype)
    values = jax.vmap(function)(grid)
    best = jnp.argmin(values)
    golden = (math.sqrt(5) - 1) / 2

    def shrink(_, ends):
        a, b = ends
        x, y = b - golden * (b - a), a + golden * (b - a)
        left, right = jax.vmap(function)(jnp.stack([x, y]))
        return jnp.where(left <= right, a, x), jnp.where(left <= right, y, b)

    ends = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, _GRID - 1)]
    a, b = jax.lax.fori_loop(0, 50, shrink, ends)
    x = 0.5 * (a + b)
    # The ends of the range are candidates too: no decay at all is one.
    return jnp.where(function(x) < values[best], x, grid[best])
