"""Phases of an information curve: piecewise lines, how many, and whether a walk without phases would show as many."""

import itertools
import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray
from scipy.special import stdtrit

from pdejax._arguments import checked
from pdejax._check import choice, integer, traced
from pdejax._figure import AbstractRecord

Null = Literal["increments", "residuals"]


class Phases(AbstractRecord):
    """Lines fitted piece by piece to curves `(T, c)` over depths `(T,)`.

    - `pieces`: how many, by the least `bic (K,)` (of 1 … K pieces). `starts (K,)`: index of the first point of each
      piece, T for those that do not exist. `slopes (K, c)`, `errors (K, c)`: of each piece, per unit depth, and their
      standard errors; NaN where none.
    - `fitted (T, c)`; `squares (K,)`: sums of squared residuals of 1 … K pieces, curves in units of `scale (c,)`, their
      noise.
    - `gain` = ln of the ratio of one line's squares to those of the chosen; `surrogates (resamples,)` the same for surrogates
      without phases, each with as many pieces; `p_value`: how many of them gain as much, 1 for one piece; NaN without
      surrogates.
    """

    depths: Float[Array, " T"]
    curves: Float[Array, "T c"]
    pieces: Int[Array, ""]
    starts: Int[Array, " K"]
    slopes: Float[Array, "K c"]
    errors: Float[Array, "K c"]
    fitted: Float[Array, "T c"]
    scale: Float[Array, " c"]
    squares: Float[Array, " K"]
    bic: Float[Array, " K"]
    gain: Float[Array, ""]
    surrogates: Float[Array, " resamples"]
    p_value: Float[Array, ""]

    @property
    def detected(self) -> Array:
        """Whether there is more than one piece and p < 0.05."""
        return (self.pieces > 1) & (self.p_value < 0.05)

    @property
    def breakpoints(self) -> np.ndarray:
        """Depths midway between the last point of a piece and the first of the next (needs concrete values)."""
        starts = np.asarray(self.starts)[1 : int(self.pieces)]
        depths = np.asarray(self.depths)
        return (depths[starts - 1] + depths[starts]) / 2

    def directions(self, level: float = 0.99, least: float = 0.1) -> list[tuple[str, ...]]:
        """`"rises"`, `"falls"` or `"flat"` for every piece and curve (needs concrete values): not flat if Student's t
        excludes slope 0 at `level` and the piece changes by more than `least` of the curve's range.

        The errors take the breaks as given; breaks chosen from the same data make them optimistic, hence both conditions."""
        count, size = int(self.pieces), self.depths.shape[0]
        starts = [int(s) for s in np.asarray(self.starts)[:count]] + [size]
        depths, ranges = np.asarray(self.depths), np.ptp(np.asarray(self.curves), axis=0)
        found = []
        for piece, (first, end) in enumerate(itertools.pairwise(starts)):
            slope, error = np.asarray(self.slopes[piece]), np.asarray(self.errors[piece])
            sure = np.abs(slope) > float(stdtrit(end - first - 2, (1 + level) / 2)) * error
            wide = np.abs(slope) * (depths[end - 1] - depths[first]) > least * ranges
            words = np.where(sure & wide, np.where(slope > 0, "rises", "falls"), "flat")
            found.append(tuple(str(word) for word in words))
        return found


@checked
def information_phases(
    curve: ArrayLike,
    *,
    depths: ArrayLike | None = None,
    pieces: int = 3,
    shortest: int = 3,
    null: str = "increments",
    resamples: int = 200,
    key: PRNGKeyArray | None = None,
) -> Phases:
    r"""Break a curve `(T,)`, or several with common breaks `(T, c)`, over depth or training into 1 … `pieces` lines,
    which may jump.

    For each number of pieces the least sum of squares over all breaks, by dynamic programming; the number by

    $$\mathrm{BIC}_k = cT\ln\frac{S_k}{cT} + (2ck + k - 1)\ln(cT),$$

    S_k in units of each curve's noise, from second differences ($\sum(y_{i+1} - 2y_i + y_{i-1})^2/6$; no less than 1e-6
    of its standard deviation). BIC alone finds a second piece now and then, and in a random walk nearly always: hence
    the null.

    - `null="increments"`: the steps of the curve in random order, the same for all curves: a drift with the same steps
      but no phases. Cautious where the noise is white, for shuffled steps add up. `"residuals"`: one line plus its
      residuals in random order.
    - `depths (T,)` ascending, default 0 … T − 1. `shortest` ≥ 3 points per piece. `resamples` 0: no p-value; else `key`
      is needed.

    O((resamples + 1)·T²(pieces + c)) time, a table of T². Under tracing values are not looked at; NaN gives NaN squares
    and one piece. float32 sums of squares hold about 1e-6·T of a curve's variance. Raises `TypeError`/`ValueError` for
    curves that are not finite floats `(T,)`/`(T, c)`, T < 2·`shortest`, constant curves, depths that do not ascend, or
    sizes out of range. Source: Bai and Perron 2003, DOI 10.1002/jae.659; v2 Thm 3.5.
    """
    owner = "information_phases"
    y = jnp.asarray(curve)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"{owner}: curve has type {y.dtype}; it must be real floating-point numbers.")
    if y.ndim not in (1, 2) or 0 in y.shape:
        raise ValueError(f"{owner}: curve has shape {y.shape}; it must be (T,) or (T, curves).")
    y = y[:, None] if y.ndim == 1 else y
    for name, value, least in (("pieces", pieces, 1), ("shortest", shortest, 3), ("resamples", resamples, 0)):
        integer(owner, name, value, least)
    count = y.shape[0]
    if count < 2 * shortest:
        raise ValueError(
            f"{owner}: {count} points are too few for two pieces of {shortest}; give {2 * shortest} or more."
        )
    choice(owner, "null", null, get_args(Null))
    if resamples and key is None:
        raise ValueError(
            f"{owner}: key is missing; surrogates are random. Give key=jax.random.key(...), or resamples=0."
        )
    t = jnp.arange(count, dtype=y.dtype) if depths is None else jnp.asarray(depths).astype(y.dtype)
    if t.shape != (count,):
        raise ValueError(f"{owner}: depths has shape {t.shape}; it must be ({count},), one per point of curve.")
    if not traced(y, t):
        if not np.all(np.isfinite(np.asarray(y))):
            raise ValueError(f"{owner}: curve has values that are not finite; leave those points out.")
        if not np.all(np.diff(np.asarray(t)) > 0):
            raise ValueError(f"{owner}: depths must be finite and ascend.")
        if np.any(np.ptp(np.asarray(y), axis=0) == 0):
            raise ValueError(f"{owner}: a curve is constant; it has no phases.")
    key = jax.random.key(0) if key is None else key
    return _phases(y, t, key, min(pieces, count // shortest), shortest, null, resamples)


@eqx.filter_jit
def _phases(y: Array, t: Array, key: PRNGKeyArray, most: int, shortest: int, null: str, resamples: int) -> Phases:
    count, curves = y.shape
    scale = _noise(y)
    scaled = (y - jnp.mean(y, axis=0, keepdims=True)) / scale[None]
    squares, starts = _segmented(scaled, t, most, shortest)
    pieces = jnp.arange(1, most + 1).astype(y.dtype)
    size = curves * count
    bic = size * jnp.log(squares / size) + (2 * curves * pieces + pieces - 1) * math.log(size)
    chosen = jnp.argmin(bic)
    own = starts[chosen]
    slopes, errors, fitted = _lines(y, t, own)
    gain = jnp.log(squares[0] / squares[chosen])

    def surrogate(key):
        z = _surrogate(scaled, t, key, null)
        found, _ = _segmented(z / _noise(z)[None], t, most, shortest)
        return jnp.log(found[0] / found[chosen])

    if resamples:
        gains = lax.map(surrogate, jax.random.split(key, resamples))
        p = (1 + jnp.sum((gains >= gain).astype(y.dtype))) / (resamples + 1)
        p = jnp.where(chosen == 0, 1, p)
    else:
        gains, p = jnp.zeros(0, y.dtype), jnp.asarray(jnp.nan, y.dtype)
    return Phases(t, y, chosen + 1, own, slopes, errors, fitted, scale, squares, bic, gain, gains, p)


def _noise(y: Float[Array, "T c"]) -> Float[Array, " c"]:
    """Standard deviation of white noise on a smooth curve, from second differences."""
    second = y[2:] - 2 * y[1:-1] + y[:-2]
    spread = jnp.std(y, axis=0)
    noise = jnp.sqrt(jnp.mean(second**2, axis=0) / 6)
    return jnp.maximum(noise, jnp.where(spread > 0, 1e-6 * spread, 1))


def _surrogate(y: Array, t: Array, key: PRNGKeyArray, null: str) -> Array:
    if null == "residuals":
        line = _lines(y, t, jnp.zeros(1, jnp.int32))[2]
        return line + jax.random.permutation(key, y - line, axis=0)
    # Steps per unit depth: depths need not be even.
    gaps = jnp.diff(t)[:, None]
    steps = jax.random.permutation(key, jnp.diff(y, axis=0) / gaps, axis=0) * gaps
    return jnp.concatenate([y[:1], y[:1] + jnp.cumsum(steps, axis=0)])


def _segmented(y: Array, t: Array, most: int, shortest: int) -> tuple[Float[Array, " K"], Int[Array, "K K"]]:
    """Least squares of 1 … K pieces and the starts of their pieces, T where there are fewer."""
    count = y.shape[0]
    cost = _costs(y, t, shortest)
    best, totals, back = cost[0], [cost[0, -1]], []
    for _ in range(most - 1):
        # A last piece from i to j after the best of the pieces before i.
        through = jnp.concatenate([jnp.full(1, jnp.inf, y.dtype), best[:-1]])[:, None] + cost
        back.append(jnp.argmin(through, axis=0))
        best = jnp.min(through, axis=0)
        totals.append(best[-1])
    rows = []
    for last in range(most):
        end, starts = jnp.asarray(count - 1), []
        for level in reversed(range(last)):
            start = back[level][end]
            starts.insert(0, start)
            end = start - 1
        rest = [jnp.asarray(count)] * (most - 1 - last)
        rows.append(jnp.stack([jnp.asarray(0), *starts, *rest]).astype(jnp.int32))
    # Below this a sum of squares is rounding: exact lines must not be told apart by it.
    floor = jnp.finfo(y.dtype).eps * count * jnp.sum(y**2) + jnp.finfo(y.dtype).tiny
    return jnp.maximum(jnp.stack(totals), floor), jnp.stack(rows)


def _costs(y: Array, t: Array, shortest: int) -> Float[Array, "T T"]:
    """Squared residuals of a line through points i … j, inf for fewer than `shortest`."""
    count = y.shape[0]
    t = (t - jnp.mean(t)) / (t[-1] - t[0])
    parts = jnp.stack([jnp.ones_like(t), t, t**2, *y.T, *(t[:, None] * y).T, *(y**2).T])
    sums = jnp.pad(jnp.cumsum(parts, axis=1), ((0, 0), (1, 0)))
    moments = sums[:, None, 1:] - sums[:, :-1, None]  # (parts, i, j)
    n = jnp.maximum(moments[0], 1)
    curves = y.shape[1]
    spread = moments[2] - moments[1] ** 2 / n
    first, cross, square = (moments[3 + k * curves : 3 + (k + 1) * curves] for k in range(3))
    slope_part = (cross - moments[1][None] * first / n[None]) ** 2 / jnp.maximum(spread, jnp.finfo(y.dtype).tiny)[None]
    residual = jnp.sum(jnp.maximum(square - first**2 / n[None] - slope_part, 0), axis=0)
    index = jnp.arange(count)
    return jnp.where(index[None] - index[:, None] + 1 >= shortest, residual, jnp.inf)


def _lines(y: Array, t: Array, starts: Int[Array, " K"]) -> tuple[Array, Array, Array]:
    """Slopes, their standard errors and fitted values of the lines between starts."""
    count, ends = y.shape[0], jnp.concatenate([starts[1:], jnp.asarray([y.shape[0]], jnp.int32)])
    index = jnp.arange(count, dtype=jnp.int32)

    def one(start, end):
        inside = ((index >= start) & (index < end)).astype(y.dtype)
        n = jnp.sum(inside)
        tm, ym = jnp.sum(inside * t) / n, jnp.sum(inside[:, None] * y, axis=0) / n
        dt, dy = inside * (t - tm), inside[:, None] * (y - ym[None])
        slope = jnp.sum(dt[:, None] * dy, axis=0) / jnp.sum(dt**2)
        left = jnp.sum((dy - dt[:, None] * slope[None]) ** 2, axis=0)
        line = ym[None] + (t - tm)[:, None] * slope[None]
        return slope, jnp.sqrt(left / (n - 2) / jnp.sum(dt**2)), jnp.where(inside[:, None] > 0, line, 0)

    slopes, errors, lines = jax.vmap(one)(starts, ends)
    return slopes, errors, jnp.sum(lines, axis=0)
