r"""How fast tokens collapse or blow up: three laws fitted to a gap over depth, and which of them the data favour."""

import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from scipy.special import stdtrit

from pdejax._arguments import checked
from pdejax._bootstrap import bootstrap, check_bootstrap
from pdejax._check import choice, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax.terms._base import at_least_float32

Law = Literal["exponential", "algebraic", "blowup"]
LAWS = get_args(Law)
PARAMETERS = (2, 3, 3)
LEAST = 6  # depths that a law of three parameters needs
FAR = 10.0  # windows: beyond, a power law's rate varies by less than a tenth, and it cannot be told from an exponential


class CollapseRate(AbstractRecord):
    r"""A law fitted to m trajectories of a gap g at k depths.

    - `rate`: the law's figure with its interval, mean over trajectories: the rate r per unit depth (exponential), the power p
      (algebraic), the depth t* of the blow-up. `rates (m,)`: each trajectory's.
    - `power (m,)`: p of $|t-t_0|^{-p}$ (inf for the exponential law, its limit); `origin (m,)`: t₀ (−inf), t* for blow-up.
    - `distance (3,)`: how far t₀ or t* lies outside the fitted depths, in lengths of these, median over trajectories (inf for
      the exponential law). A power law far away is exponential to 1/distance in its rate.
    - `aic`, `bic`, `weights (3,)`: of the three laws in the order of `LAWS`, summed over trajectories, each with its own
      parameters; Akaike weights. `rms (3,)`: root mean square residual of ln g.
    - `autocorrelation (m,)`: of neighbouring residuals of this law; `effective (m,)`: depths that count as independent,
      the least over the laws, used in all criteria.
    - `ts (k,)`, `gap (m, k)`, `used (m, k)`: the data and which of them were fitted; `fitted (m, k)`: the law there, NaN
      elsewhere. `exact`: the rate to compare with, NaN if none was given.
    """

    rate: Figure
    rates: Float[Array, " m"]
    power: Float[Array, " m"]
    origin: Float[Array, " m"]
    distance: Float[Array, " laws"]
    aic: Float[Array, " laws"]
    bic: Float[Array, " laws"]
    weights: Float[Array, " laws"]
    rms: Float[Array, " laws"]
    autocorrelation: Float[Array, " m"]
    effective: Float[Array, " m"]
    ts: Float[Array, " k"]
    gap: Float[Array, "m k"]
    used: Bool[Array, "m k"]
    fitted: Float[Array, "m k"]
    exact: Float[Array, ""]
    law: str = eqx.field(static=True)

    def statement(self) -> str:
        """Which law the data favour, in a sentence: by AIC, undecided if another is within 2 of it. A power law whose t₀ or t*
        is more than `FAR` windows away counts as exponential."""
        aic: dict[str, float] = {}
        for name, value, distance in zip(LAWS, np.asarray(self.aic), np.asarray(self.distance), strict=True):
            kind = "exponential" if distance > FAR else name
            aic[kind] = min(aic.get(kind, math.inf), float(value))
        sizes = ", ".join(f"{name} {float(size):.2g}" for name, size in zip(LAWS, self.rms, strict=True))
        best, *others = sorted(aic, key=lambda name: aic[name])
        if not others:
            return f"the data favour the {best} law: the others come closest where they are exponential (rms residuals {sizes})"
        apart = aic[others[0]] - aic[best]
        figures = f"AIC lower by {apart:.3g} than the {others[0]} law's, rms residuals {sizes}"
        if not apart >= 2:  # NaN too
            return f"undecided between the {best} and the {others[0]} law ({figures})"
        return f"the data favour the {best} law ({figures})"


@checked
def collapse_rate(
    ts: ArrayLike,
    gap: ArrayLike,
    *,
    law: Law = "exponential",
    window: tuple[float, float] | None = None,
    floor: ArrayLike | None = None,
    exact: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> CollapseRate:
    r"""Fit of a law to a gap `(k,)` or `(m, k)` (m trajectories) at depths `ts (k,)`, by least squares on ln g:

    | law | ln g | figure | exact |
    |---|---|---|---|
    | `"exponential"` | a − r t | r | post-LN: 1 − γ ~ e^{−2t}, r = 2 (arXiv 2312.10794; THEORY §5.5) |
    | `"algebraic"` | a − p ln(t − t₀), t₀ before the window | p | pre-LN: ~ t^{−2}, p = 2 (arXiv 2510.22026; §5.6) |
    | `"blowup"` | a − q ln(t* − t), t* after the window | t* | no norm: variance, t* = 1/(2va s₀²), q = 1 (§5.9) |

    The gap is `token_clustering(...).gap` (1 − mean cosine) for collapse, the tokens' variance for a blow-up. p or q < 0 means
    growth, or extinction at t*. t₀ and t* are found on a logarithmic grid and by golden section, up to 10⁴ windows away:
    a power in the thousands means that the data are exponential. All three laws are always fitted, for the comparison.

    - `window`: depths to fit; default the later half. The laws are asymptotic: an interval covers scatter, **not** the
      transient, so a rate that moves with the window has not been reached yet.
    - `floor`: gaps at or below are left out (default 100 roundings of the type, right for 1 − cos; 0 for
      `token_clustering(...).gap`, which keeps its relative accuracy). Values that are not finite are left out.
    - `exact`: a known rate to show beside the fit.
    - Interval: for one trajectory Student's t with the standard error of least squares, inflated by (1+ρ)/(1−ρ) for the
      autocorrelation ρ of neighbouring residuals; for several, the bootstrap over trajectories (`key` is then needed).
    - AIC and BIC are those of Gaussian residuals, k replaced by k(1−ρ)/(1+ρ): residuals of a smooth solve are model error and
      not independent, and k of them are not k pieces of evidence. Residuals below rounding count as rounding.

    Under `jit` and `vmap` fewer than six usable depths give NaN. Raises `ValueError`/`TypeError` for depths that do not
    increase, shapes, a law or window that does not fit, gaps that are negative, or fewer than six usable depths.
    """
    owner = "collapse_rate"
    check_bootstrap(owner, level, resamples)
    choice(owner, "law", law, LAWS)
    t, g = jnp.asarray(ts), jnp.asarray(gap)
    for name, x in (("ts", t), ("gap", g)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{owner}: {name} has type {x.dtype}; it must be real floating-point numbers.")
    if t.ndim != 1 or g.ndim not in (1, 2) or g.shape[-1] != t.shape[0] or 0 in g.shape:
        raise ValueError(
            f"{owner}: ts has shape {t.shape} and gap {g.shape}; they must be (k,) and (k,) or (trajectories, k)."
        )
    g = g if g.ndim == 2 else g[None]
    dtype = max(at_least_float32(t.dtype), at_least_float32(g.dtype), key=lambda x: jnp.finfo(x).bits)
    t, g = t.astype(dtype), g.astype(dtype)
    least = jnp.asarray(100 * jnp.finfo(g.dtype).eps if floor is None else floor).astype(dtype)
    if not traced(t) and (not np.all(np.diff(np.asarray(t)) > 0) or not np.all(np.isfinite(np.asarray(t)))):
        raise ValueError(f"{owner}: ts must be finite and increase.")
    if window is None:
        low, high = 0.5 * (t[0] + t[-1]), t[-1]
    else:
        low, high = (jnp.asarray(x).astype(dtype) for x in window)
        if not traced(low, high) and not float(low) < float(high):
            raise ValueError(f"{owner}: window={window} must be two depths, the first before the second.")
    if not traced(t, g, least, low, high):
        if np.any(np.asarray(g) < 0):
            raise ValueError(f"{owner}: gap has negative values; it must be a distance, a variance or 1 − cos.")
        fewest = int(jnp.min(jnp.sum(_usable(t, g, least, low, high), axis=1)))
        if fewest < LEAST:
            raise ValueError(
                f"{owner}: only {fewest} depths lie in the window [{float(low):g}, {float(high):g}] with a gap above "
                f"{float(least):.3g}; at least {LEAST} are needed. Save more depths, widen the window or lower the floor."
            )
    if g.shape[0] > 1 and key is None:
        raise ValueError(f"{owner}: {g.shape[0]} trajectories need a key for the bootstrap over them.")
    key = jax.random.key(0) if key is None else key  # one trajectory: not used
    found = _collapse(t, g, least, low, high, key, jnp.asarray(LAWS.index(law)), level, resamples)
    with jax.debug_nans(False):  # NaN says what is not known: nothing to stop a user who hunts his own
        known = jnp.asarray(jnp.nan if exact is None else exact).astype(dtype)
        found["fitted"] = jnp.where(found["used"], found["fitted"], jnp.nan)
    return CollapseRate(**found, ts=t, gap=g, exact=known, law=law)


def _usable(t: Array, g: Array, floor: Array, low: Array, high: Array) -> Array:
    within = (t >= low) & (t <= high)
    return within[None, :] & jnp.isfinite(g) & (g > floor) & (g > 0)


# Which law is asked for is traced: all are fitted anyway, and one compilation serves them.
@eqx.filter_jit
def _collapse(t, g, floor, low, high, key, law: Array, level: float, resamples: int) -> dict[str, Any]:
    used = _usable(t, g, floor, low, high)
    y = jnp.log(jnp.where(used, g, 1))
    fits = jax.vmap(_fit, in_axes=(None, 0, 0))(t, y, used)
    own = {name: jnp.take(value, law, axis=1) for name, value in fits.items()}
    number = jnp.sum(used, axis=1).astype(t.dtype)
    effective = jnp.min(fits["effective"], axis=1)
    parameters = jnp.asarray(PARAMETERS, t.dtype) + 1  # and the variance
    likelihood = effective[:, None] * jnp.log(fits["variance"])
    aic = jnp.sum(likelihood + 2 * parameters[None], axis=0)
    bic = jnp.sum(likelihood + jnp.log(jnp.maximum(effective, 1))[:, None] * parameters[None], axis=0)
    rates = own["figure"]
    if g.shape[0] == 1:
        free = jnp.maximum(own["effective"][0] - jnp.asarray(PARAMETERS, t.dtype)[law], 1)
        reach = _student(free, level) * own["error"][0] * jnp.sqrt(number[0] / own["effective"][0])
        rate = Figure(rates[0], rates[0] - reach, rates[0] + reach, level=level)
    else:
        rate = bootstrap(
            lambda w: jnp.sum(w * rates) / jnp.sum(w),
            g.shape[0],
            key=key,
            level=level,
            resamples=resamples,
            dtype=t.dtype,
        )
    return {
        "rate": rate,
        "rates": rates,
        "power": own["power"],
        "origin": own["origin"],
        "distance": jnp.median(fits["distance"], axis=0),
        "aic": aic,
        "bic": bic,
        "weights": jax.nn.softmax(-0.5 * aic),
        "rms": jnp.sqrt(jnp.mean(fits["square"], axis=0)),
        "autocorrelation": own["autocorrelation"],
        "effective": effective,
        "used": used,
        "fitted": jnp.exp(own["line"]),
    }


def _fit(t: Array, y: Array, used: Array) -> dict[str, Array]:
    """All three laws on one trajectory; every entry has the laws in front."""
    w = used.astype(t.dtype)
    enough = jnp.sum(used) >= LEAST
    first, last = jnp.min(jnp.where(used, t, jnp.inf)), jnp.max(jnp.where(used, t, -jnp.inf))
    span = jnp.where(enough, last - first, 1)
    elapsed, left = (jnp.where(used, x, 0) / span for x in (t - first, last - t))
    y = jnp.where(used, y, 0)

    def line(z):
        """Least squares y ≈ a + b z, exact in the offset: (b, fitted, residual)."""
        total = jnp.maximum(jnp.sum(w), 1)
        middle, level = jnp.sum(w * z) / total, jnp.sum(w * y) / total
        dz, dy = w * (z - middle), w * (y - level)
        power = jnp.sum(dz**2)
        b = jnp.sum(dz * dy) / jnp.where(power > 0, power, 1)
        return b, level + b * (z - middle), w * (dy - b * dz)

    def away(x, exponent):  # ln(1 + x/δ), δ = 10^exponent windows
        return jnp.log1p(x * 10.0 ** (-exponent))

    def power(x):
        """b, δ, the fit, its residual, and the columns that a linearization in (b, δ) has beside the constant one."""

        def loss(exponent):
            return jnp.sum(line(away(x, exponent))[2] ** 2)

        exponent = _least(loss, -4.0, 4.0, t.dtype)
        z = away(x, exponent)
        b, fit, residual = line(z)
        delta = 10.0**exponent
        return b, delta, fit, residual, centred(z), centred(b / (delta + x))

    def centred(z):
        return w * (z - jnp.sum(w * z) / jnp.maximum(jnp.sum(w), 1))

    slope, straight, scatter = line(elapsed)
    bs, deltas, fits, residuals, in_b, in_delta = jax.vmap(power)(jnp.stack([elapsed, left]))
    infinite = jnp.asarray(jnp.inf, t.dtype)
    origins = jnp.stack([-infinite, first - deltas[0] * span, last + deltas[1] * span])
    # Variance of one coefficient for unit noise: one over the squared length of what the other columns leave of its own.
    shares = [
        1 / (jnp.sum(centred(elapsed) ** 2) * span**2),
        1 / _left_over(in_b[0], in_delta[0]),
        span**2 / _left_over(in_delta[1], in_b[1]),
    ]
    residual = jnp.concatenate([scatter[None], residuals])
    square = jnp.sum(residual**2, axis=1) / jnp.maximum(jnp.sum(w), 1)
    rounding = (4 * jnp.finfo(t.dtype).eps * (1 + jnp.max(jnp.abs(y)))) ** 2
    both = (w[1:] * w[:-1])[None]
    rho = jnp.sum(both * residual[:, 1:] * residual[:, :-1], axis=1) / jnp.where(square > 0, square * jnp.sum(w), 1)
    rho = jnp.where(square > rounding, jnp.clip(rho, 0, 0.99), 0)
    variance = jnp.maximum(square, rounding)
    free = jnp.maximum(jnp.sum(w) - jnp.asarray(PARAMETERS, t.dtype), 1)
    found = {
        "figure": jnp.stack([-slope / span, -bs[0], origins[2]]),
        "power": jnp.stack([infinite, -bs[0], -bs[1]]),
        "origin": origins,
        "distance": jnp.stack([infinite, deltas[0], deltas[1]]),
        "error": jnp.sqrt(variance * jnp.sum(w) / free * jnp.stack(shares)),
        "square": square,
        "variance": variance,
        "autocorrelation": rho,
        "effective": jnp.sum(w) * (1 - rho) / (1 + rho),
    }
    found = {name: jnp.where(enough, value, jnp.nan) for name, value in found.items()}
    return found | {"line": jnp.concatenate([straight[None], fits])}


def _left_over(a: Array, b: Array) -> Array:
    """Squared length of what is left of a without its part along b; 0 where that is rounding."""
    own, other = jnp.sum(a**2), jnp.sum(b**2)
    left = jnp.sum((a - jnp.sum(a * b) / jnp.where(other > 0, other, 1) * b) ** 2)
    return jnp.where(left > (8 * jnp.finfo(a.dtype).eps) ** 2 * own, left, 0)


def _least(loss, low: float, high: float, dtype) -> Array:
    """Where `loss` is least on [low, high]: the best of a grid, then golden section beside it."""
    grid = jnp.linspace(low, high, 81, dtype=dtype)
    best = jnp.argmin(jax.vmap(loss)(grid))
    step = (high - low) / 80
    ratio = (math.sqrt(5) - 1) / 2

    def section(_, ends):
        a, b = ends
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        keep_left = loss(c) < loss(d)
        return jnp.where(keep_left, a, c), jnp.where(keep_left, d, b)

    a, b = jax.lax.fori_loop(0, 60, section, (grid[best] - step, grid[best] + step))
    return jnp.clip(0.5 * (a + b), low, high)


def _student(free: Array, level: float) -> Array:
    """Two-sided Student quantile for `free` ≥ 1 degrees of freedom, from a table in 1/free (good to 1e-4)."""
    inverse = np.linspace(0, 1, 401)
    table = stdtrit(1 / np.maximum(inverse, 1e-9), (1 + level) / 2)
    return jnp.interp(1 / free, jnp.asarray(inverse, free.dtype), jnp.asarray(table, free.dtype))
