"""The three stages of v2 Thm 3.5: whether the rise of I(Y; T) ends before the fall of I(X; T) begins."""

import dataclasses

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers
from pdejax._figure import Figure

# A change of less than so many standard deviations of the noise is none; a curve whose peak is less than so many above its start
# or its end has not left it.
_LEAST, _KEPT = 6.0, 4.0


@dataclasses.dataclass(frozen=True)
class Stages:
    """Where extraction ends and compression begins.

    - `rise_ends`, `fall_begins`: depths at which the rise of I(Y; T) is complete but for `share` of it, and at which that share
      of the fall of I(X; T) is done. `gap`: the latter less the former, with its interval.
    - `seen`: whether the curves have the three stages. `why`: what is missing, in words; empty where nothing is.
    """

    rise_ends: float
    fall_begins: float
    gap: Figure
    seen: bool
    why: str


@checked
@on_numbers
def information_stages(
    curves: ArrayLike,
    *,
    depths: ArrayLike | None = None,
    share: float = 0.1,
    resamples: int = 200,
    key: PRNGKeyArray,
) -> Stages:
    r"""Decide whether curves I(X; T), I(Y; T) over depth, `(T, 2)`, have the three stages of v2 Thm 3.5: I(Y; T) rises while
    I(X; T)
    is kept, both rest, I(X; T) falls while I(Y; T) is kept.

    Each curve is fitted by the nearest monotone one, rising for Y, falling for X (isotonic regression), so that smooth curves and
    curves of straight pieces are treated alike. There are three stages if

    $$\text{gap} = t_X(\text{share}) - t_Y(1 - \text{share}) > 0$$

    with t_Y, t_X the depths at which these parts of the whole rise and fall are done; a rise and a fall both above 6 σ; and what
    is to be kept is: I(X; T) begins, and I(Y; T) ends, within `share` of its change, or 4 σ, of its largest value. The gap counts
    where the 5 % quantile of `resamples` draws of fit + σξ is above 0, σ of `curve_noise`: a test of level 0.05 at gap = 0, far
    below it where the curves change together. `gap` has the interval from 5 % to 95 %.

    - `depths (T,)` ascending, default 0 … T − 1. `share`: in (0, ½).

    Raises `ValueError` for curves of another shape, fewer than 5 depths, values that are not finite, or a share out of range.
    Source: v2 Thm 3.5; isotonic regression by min-max averages, Robertson, Wright and Dykstra 1988, (1.4.1).
    """
    y = np.asarray(curves, float)
    if y.ndim != 2 or y.shape[1] != 2 or len(y) < 5:
        raise ValueError(
            f"information_stages: curves has shape {y.shape}; it must be (T, 2), I(X; T) and I(Y; T) at five depths or more."
        )
    t = np.arange(len(y), dtype=float) if depths is None else np.asarray(depths, float)
    if t.shape != (len(y),) or not np.all(np.diff(t) > 0):
        raise ValueError(f"information_stages: depths must be {len(y)} ascending numbers, one per row of curves.")
    if not np.all(np.isfinite(y)):
        raise ValueError("information_stages: curves has values that are not finite; leave those depths out.")
    if not 0 < share < 0.5:
        raise ValueError(f"information_stages: share={share} must be above 0 and below 1/2; 0.1 is usual.")
    integer("information_stages", "resamples", resamples, 20)
    # Both as rising curves: the fall of I(X; T) is the rise of its negative.
    rising = np.stack([-y[:, 0], y[:, 1]])
    fits = _monotone(rising)
    noise = curve_noise(y)
    change = fits[:, -1] - fits[:, 0]
    moved = change > np.maximum(_LEAST * noise, 1e-9 * (1 + np.abs(y).max()))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    drawn = fits[None] + noise[None, :, None] * rng.standard_normal((resamples, *rising.shape))
    again = _monotone(drawn)
    fall_begins, rise_ends = _crossing(t, fits[0], share), _crossing(t, fits[1], 1 - share)
    gaps = _crossing(t, again[:, 0], share) - _crossing(t, again[:, 1], 1 - share)
    low, high = np.quantile(gaps, [0.05, 0.95])
    least = np.maximum(share * change, _KEPT * noise)
    gained, lost = y[:, 0].max() - y[0, 0] > least[0], y[:, 1].max() - y[-1, 1] > least[1]
    gap = float(fall_begins - rise_ends)
    reasons = {
        "I(Y; T) does not rise": not moved[1],
        "I(X; T) does not fall": not moved[0],
        "the fall of I(X; T) does not begin after the rise of I(Y; T) has ended": not (gap > 0 and low > 0),
        "I(X; T) rises first": gained,
        "I(Y; T) falls again": lost,
    }
    why = "; ".join(reason for reason, holds in reasons.items() if holds)
    return Stages(float(rise_ends), float(fall_begins), Figure(gap, low, high, level=0.9), not why, why)


@checked
@on_numbers
def curve_noise(curves: ArrayLike) -> Float[np.ndarray, "..."]:
    r"""Estimate the standard deviation `(…)` of the noise of curves `(T, …)` at equal steps,

    $$\hat\sigma = \frac{\operatorname{median}_i |c_{i+1} - 2 c_i + c_{i-1}|}{0.6745\,\sqrt 6}$$

    since second differences of independent normal noise have variance 6σ² and those of a smooth curve are small: the median takes
    no notice of the few at its bends.

    Raises `ValueError` for fewer than 5 points or values that are not finite.
    Source: second differences, Gasser, Sroka and Jennen-Steinmetz 1986; their median, Donoho and Johnstone 1994.
    """
    c = np.asarray(curves, float)
    if c.ndim < 1 or len(c) < 5 or not np.all(np.isfinite(c)):
        raise ValueError(
            f"curve_noise: curves has shape {c.shape}; it must hold finite numbers at five points or more, in front."
        )
    return np.asarray(np.median(np.abs(np.diff(c, 2, axis=0)), axis=0) / (0.6745 * np.sqrt(6)))


def _monotone(rows: np.ndarray) -> np.ndarray:
    """The nearest rising curve to each row `(…, T)`: max over starts of the min over ends of the averages between."""
    count = rows.shape[-1]
    sums = np.concatenate([np.zeros((*rows.shape[:-1], 1)), np.cumsum(rows, axis=-1)], axis=-1)
    start, end = np.arange(count)[:, None], np.arange(count)[None]
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / np.maximum(end - start + 1, 1)
    means = np.where(end >= start, means, np.inf)
    # least[…, a, i]: the least average from a to any end at or after i.
    least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
    return np.where(start <= end, least, -np.inf).max(axis=-2)


def _crossing(t: np.ndarray, fits: np.ndarray, level: float) -> np.ndarray:
    """Depths at which each rising curve `(…, T)` has done that part of its rise; NaN for a flat one."""
    rise = fits[..., -1:] - fits[..., :1]
    part = np.where(rise > 0, (fits - fits[..., :1]) / np.where(rise > 0, rise, 1), np.nan)
    first = np.argmax(part >= level, axis=-1)
    before = np.maximum(first - 1, 0)
    below, above = (np.take_along_axis(part, i[..., None], -1)[..., 0] for i in (before, first))
    step = np.where(above > below, above - below, 1)
    return np.asarray(t[before] + (level - below) / step * (t[first] - t[before]))
