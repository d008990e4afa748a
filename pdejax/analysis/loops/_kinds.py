"""What a loop does to one input: one classifier, its points certified by their residuals."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import integer, number, on_numbers
from pdejax._figure import AbstractRecord, Figure
from pdejax.analysis.loops._loop import Loop, applied, entries, repeated
from pdejax.analysis.loops._points import FixedPoint, LoopSpectrum, fixed_point, loop_eigenvalues, loop_exponents

KINDS = ("fixed point", "cycle", "drift", "marginal", "expanding", "blow-up", "not decided")
MARGIN = 1e-6  # a radius nearer to 1 is marginal
NEAR = 0.1  # of the largest state: where a return begins to look like one
FURTHER = 4096  # passes to see a slow return to its point
GROWN = 1e3  # of the first state: below, what is no number was no overflow


class LoopBehaviour(AbstractRecord):
    r"""What u ← G(u) does from its start, in `loops` passes.

    - `kind`: one of `"fixed point"` and `"cycle"` (of least `period` p; certified: $G^p(u^*) = u^*$ to `point.relative`, the
      spectral radius there below 1, the states come nearer); `"marginal"` (neither comes back nor leaves at a rate: a radius of
      1 to 1e-6, or a largest exponent whose whole interval counts as 0); `"drift"` (the state grows as a power of the number of
      passes); `"expanding"` (neighbours part exponentially, whether the states stay bounded, as in chaos, or not: an exponent
      whose whole interval lies above 0); `"blow-up"` (growth faster than exponential, or out of the floating-point numbers at
      once); `"not decided"` (also where steps still fall at a rate to a point that was not found, and where G has no value at
      a state that has not grown, such as a root of a negative number).
    - `point`, `spectrum`: the point or cycle and the eigenvalues of $DG^p$ there; None without one.
    - `rate`: geometric mean factor per pass of the distance to the point, $\rho^{1/p}$; NaN without one.
    - `growth`: a in max ‖u_k − u_0‖ ∝ k^a over the last doubling; NaN where the states left the numbers.
    - `exponent`: the largest Lyapunov exponent per pass, over the last half of the passes, with the interval over parts of them.
    - `norms (loops + 1,)`, `steps (loops,)`: ‖u_k‖ and ‖u_{k+1} − u_k‖ over real tokens. `bounded`: whether states stayed so.
    """

    point: FixedPoint | None
    spectrum: LoopSpectrum | None
    exponent: Figure
    norms: Float[np.ndarray, "..."]
    steps: Float[np.ndarray, "..."]
    kind: str = eqx.field(static=True)
    period: int = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    growth: float = eqx.field(static=True)
    loops: int = eqx.field(static=True)
    bounded: bool = eqx.field(static=True)

    @property
    def eigenvalues(self) -> Complex[np.ndarray, "..."]:
        """Those of the spectrum; none without a point."""
        return np.zeros(0, complex) if self.spectrum is None else self.spectrum.values


@checked
@on_numbers
def classify_loop(
    loop: Loop,
    *,
    loops: int = 512,
    periods: int = 8,
    count: int = 6,
    tolerance: float = 1e-9,
    key: PRNGKeyArray | None = None,
) -> LoopBehaviour:
    r"""Say what a loop does to its input: fixed point, cycle, drift, marginal, expanding or blow-up.

    1. States of `loops` passes. Those beyond the numbers: growth faster than exponential is a blow-up, else expanding; NaN
       before the states have grown 1,000-fold decides nothing.
    2. For p = 1 … `periods`, where u_k nearly equals u_{k−p} and comes nearer, or steps fall at one rate per pass and so have
       a finite sum, however far they lead: Newton–Krylov on $G^p$ from the last state, its
       residual and last step at most `tolerance`, relative; the `count` dominant eigenvalues there; and, by further passes,
       whether the states do come to it.
    3. Else by the length of the steps over doublings of k (a power of k or exponential), their directions, and the largest
       exponent with its interval. It counts as 0 where the interval lies within ±2 log(K)/K, K = `loops`, and holds an exponent
       that powers of k up to the second have. It is positive where the interval lies above 0 and the exponent above 2 log(K)/K.
       Steps that grow more slowly than e^{k/K} are a drift's, unless states fall over the last quarter.
    4. States that grow may be on their way to a point: Newton–Krylov is tried once from the last of them, and what it finds, if
       it attracts, is the point if 4,096 further passes lead there.

    In float32 small residuals are not reached: give `loop.astype("float64")`. A loop that needs many more passes than `loops`,
    or has a longer period, is `"not decided"`, or what its exponent shows. Memory: `loops` states. Raises `ValueError` for
    numbers out of range.
    """
    owner = "classify_loop"
    integer(owner, "loops", loops, 32, advice="of fewer passes nothing follows")
    integer(owner, "periods", periods, 1, loops // 4)
    small = number(owner, "tolerance", tolerance, above=0, below=1)
    real = entries(loop)
    us = np.asarray(loop.states(loops))
    flat = us.reshape(loops + 1, -1)[:, real].astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(flat, axis=1)
        steps = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    largest = float(np.finfo(us.dtype).max) ** 0.25
    lost = np.flatnonzero(~(norms <= largest * max(1.0, norms[0])))
    if lost.size:
        kind, exponent = _lost(norms, int(lost[0]))
        return LoopBehaviour(None, None, exponent, norms, steps, kind, 0, math.nan, math.nan, loops, False)
    growth = _growth(flat)
    falls = _falls(steps)
    found = _return(loop, us, flat, periods, count, small, growth < 0.5 or falls)
    exponent = loop_exponents(loop, k=1, loops=loops, discard=loops // 2, key=key).exponents[0]
    if found is not None:
        point, spectrum, kind = found
        rate = spectrum.radius ** (1 / point.period)
        return LoopBehaviour(point, spectrum, exponent, norms, steps, kind, point.period, rate, growth, loops, True)
    kind, bounded = _kind(flat, steps, growth, exponent, loops, falls)
    ahead = _ahead(loop, us[-1], count, small) if growth > 0.2 else None
    if ahead is not None:
        point, spectrum, there = ahead
        if there:
            rate = spectrum.radius
            return LoopBehaviour(point, spectrum, exponent, norms, steps, "fixed point", 1, rate, growth, loops, True)
        kind, bounded = "not decided", True
    return LoopBehaviour(None, None, exponent, norms, steps, kind, 0, math.nan, growth, loops, bounded)


def _lost(norms: np.ndarray, first: int) -> tuple[str, Figure]:
    """The kind and the exponent of states that are too large or no numbers from pass `first` on."""
    k, half = first - 1, first // 2
    # A cube that overflows may end in inf − inf: NaN after growth is growth.
    if np.isnan(norms[first]) and norms[k] <= GROWN * max(1.0, norms[0]):
        return "not decided", Figure(math.nan)
    if _faster(norms[:first]):
        return "blow-up", Figure(math.nan)
    # Of a linear loop the growth of the state is that of its differences.
    return "expanding", Figure(math.log(norms[k] / norms[half]) / max(k - half, 1))


def _faster(norms: np.ndarray) -> bool:
    """Whether finite lengths grew faster than exponentially before the states left the numbers."""
    # From 0 there is no rate.
    norms = norms[int(np.argmax(norms > 0)) :]
    if len(norms) < 6:
        return True
    rates = np.diff(np.log(np.maximum(norms, 1e-300)))
    last, before = rates[-1], np.median(rates[len(rates) // 2 - 1 : len(rates) // 2 + 2])
    return bool(last > 1.5 * max(before, 0.0))


def _growth(flat: np.ndarray) -> float:
    half = len(flat) // 2
    away = np.linalg.norm(flat - flat[0], axis=1)
    # The farthest, for what goes around comes near again.
    now, before = float(np.max(away[half:])), float(np.max(away[half // 2 : half + 1]))
    return math.log2(now / before) if now > 0 and before > 0 else 0.0


def _falls(steps: np.ndarray) -> bool:
    """Whether steps fall at one rate per pass, so that their sum is finite; those of a power of k fall ever more slowly."""
    window, loops = max(len(steps) // 32, 1), len(steps)
    sizes = np.asarray([np.mean(steps[k - window : k]) for k in (loops // 4, loops // 2, 3 * loops // 4, loops)])
    if not np.all(sizes > 0):
        return False
    rates = -np.diff(np.log(sizes))
    # Of a power 2.4 to 1 in these three quarters.
    return bool(rates.min() > 0.7 * rates.max() and rates[1] + rates[2] > 1e-3)


def _return(
    loop: Loop, us: np.ndarray, flat: np.ndarray, periods: int, count: int, tolerance: float, near: bool
) -> tuple[FixedPoint, LoopSpectrum, str] | None:
    """The point or cycle that the states come to, of least period, the spectrum there and what it is."""
    last, half = len(flat) - 1, len(flat) // 2
    # The middle of a drift is far from its end, that of a transient is not.
    size = float(np.max(np.linalg.norm(flat, axis=1)))
    for p in range(1, periods + 1):
        now, before = (max(np.linalg.norm(flat[k - j] - flat[k - j - p]) for j in range(p)) for k in (last, half))
        # What still moves away at a rate comes to nothing near: Newton would search in vain.
        nearer = now < NEAR * size and now < 0.9 * before and near
        if not (now <= tolerance * size or nearer):
            continue
        point = fixed_point(loop, jnp.asarray(us[last]), period=p, tolerance=min(tolerance, 1e-11))
        scale = max(size * 1e-3, float(np.linalg.norm(np.asarray(point.state).ravel())))
        if not point.converged or point.residual > tolerance * scale:
            continue
        target = np.asarray(point.state).reshape(-1)[entries(loop)]
        ends = [np.linalg.norm(flat[k] - target) for k in (last, last - p * (half // p))]
        there = ends[0] <= 1e-6 * scale
        spectrum = loop_eigenvalues(loop, point.state, count=count, period=p)
        radius = spectrum.radius
        if not spectrum.converged or not (there or ends[0] < 0.9 * ends[1]):
            continue
        if abs(radius - 1) <= MARGIN:
            return point, spectrum, "marginal"
        if radius > 1:
            # On an unstable point to rounding: what begins beside it leaves.
            if ends[0] <= 1e-10 * scale:
                return point, spectrum, "expanding"
            continue
        if there or _comes(loop, us[last], target, p, radius, float(ends[0])):
            return point, spectrum, "fixed point" if p == 1 else "cycle"
    return None


def _comes(loop: Loop, u: np.ndarray, target: np.ndarray, p: int, radius: float, distance: float) -> bool:
    """Whether further passes bring the state to a tenth of its distance from the point."""
    more = min(math.ceil(math.log(0.02) / math.log(max(radius, 1e-6))) + 1, FURTHER // p)
    end: Array = applied(repeated(loop, p * more), jnp.asarray(u))
    return bool(np.linalg.norm(np.asarray(end).ravel()[entries(loop)] - target) <= 0.1 * distance)


def _ahead(loop: Loop, u: np.ndarray, count: int, tolerance: float) -> tuple[FixedPoint, LoopSpectrum, bool] | None:
    """An attracting point that states which still grow may be on their way to, and whether further passes lead there; None
    without one, or where they lead away."""
    point = fixed_point(loop, jnp.asarray(u), tolerance=min(tolerance, 1e-11))
    if not point.converged:
        return None
    spectrum = loop_eigenvalues(loop, point.state, count=count)
    if not (spectrum.converged and spectrum.radius < 1 - MARGIN):
        return None
    real = entries(loop)
    target = np.asarray(point.state).ravel()[real]
    end = np.asarray(applied(repeated(loop, FURTHER), jnp.asarray(u))).ravel()[real]
    distance, left = np.linalg.norm(u.ravel()[real] - target), np.linalg.norm(end - target)
    return (point, spectrum, bool(left <= 0.1 * distance)) if left < distance else None


def exponent_kind(exponent: Figure, loops: int) -> str:
    """What a largest exponent shows, if its whole interval does: `"expanding"`, `"marginal"`, or nothing."""
    value, low, high = (float(x) for x in (exponent, exponent.low, exponent.high))
    threshold = 2 * math.log(loops) / loops
    # Of a tangent that grows or falls as k², over the last half.
    slow = 4 * math.log(2) / loops
    if value > threshold and low > 0:
        return "expanding"
    if -threshold <= low <= slow and -slow <= high <= threshold:
        return "marginal"
    return "not decided"


def _kind(
    flat: np.ndarray, steps: np.ndarray, growth: float, exponent: Figure, loops: int, falls: bool
) -> tuple[str, bool]:
    """Of states that come back to nothing: by the growth of steps over doublings, their directions, and the exponent."""
    window = max(loops // 32, 1)
    sizes = [float(np.mean(steps[k - window : k])) for k in (loops // 4, loops // 2, loops)]
    moves = np.diff(flat[-loops // 4 :], axis=0)
    lengths = np.linalg.norm(moves, axis=1)
    aligned = 0.0
    if np.all(lengths > 0):
        units = moves / lengths[:, None]
        aligned = float(np.mean(np.sum(units[1:] * units[:-1], axis=1)))
    power = True
    if min(sizes) > 0:
        first, second = math.log(sizes[1] / sizes[0]), math.log(sizes[2] / sizes[1])
        # A power of k grows as much over every doubling, an exponential twice as much over the next.
        if second > 0.5 and second > 1.5 * max(first, 0.0):
            return "expanding", False
        power = second <= 1.2 * max(first, 0.0) + 0.2
    # Steps that fall at a rate lead to a point that these passes do not reach; states that fall do not grow as a power.
    away = np.linalg.norm(flat - flat[0], axis=1)
    rises = np.mean(away[-loops // 4 :]) > np.mean(away[-loops // 2 : -loops // 4])
    drifts = growth > 0.2 and power and rises and not falls
    shown = exponent_kind(exponent, loops)
    if drifts and aligned > 0.9:
        return "drift", False
    if shown == "expanding":
        return shown, growth <= 0.2
    if growth > 0.2:
        return ("drift", False) if drifts and shown == "marginal" else ("not decided", True)
    return shown, True
