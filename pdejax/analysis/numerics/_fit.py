"""Orders of convergence from errors, by extrapolation, and exponents of power laws from noisy values, by regression."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from pdejax._arguments import checked
from pdejax._bootstrap import over_seeds
from pdejax._check import on_numbers
from pdejax._figure import Figure

# Errors above a floor are taken to be known to this share of it.
KNOWN = 1 / 20
UNSEEN = 4.0  # of three errors: so many times the step of the extrapolation


@dataclasses.dataclass(frozen=True)
class OrderFit:
    """An order p of `error ∝ h^p`, the half-width `ci` of its 95 % interval (NaN where there is none), and the `used` points.
    `order` is NaN when fewer than two errors lie above the floor."""

    order: float
    ci: float
    used: tuple[int, ...]


@checked
@on_numbers
def fit_order(
    step_sizes: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray, *, floor: float = 0.0, last: int = 4
) -> OrderFit:
    r"""Extrapolate the order of errors $e = C h^p (1 + a h + b h^2 + \dots)$ to h → 0, from the `last` smallest steps whose error
    is above `floor`.

    Between neighbours the order is $p_i = \ln(e_i/e_{i+1})/\ln(h_i/h_{i+1}) = p + a\,\delta_i + O(h^2)$ with
    $\delta_i = (h_i - h_{i+1})/\ln(h_i/h_{i+1})$, so that two of them give p by Richardson's extrapolation to δ = 0. Errors of a
    solver have no noise but this bias, which the interval of a regression does not hold: for noisy values use `fit_power`.

    The half-width is the largest of: the last step of the extrapolation; its distance from the extrapolation before; what errors
    that are uncertain by `floor`/20 do to it. From three errors nothing is seen of b: four times that step. Tested with a
    and b drawn at random, up to a change of e by half and by a quarter at the largest step: it holds p in 95 of 100 draws or
    more, from three errors in 92.

    With two errors there is their order and no interval. Raises `ValueError` for sequences that do not match, steps that are
    not positive, or `last < 2`.
    """
    h, e, chosen = _usable("fit_order", step_sizes, errors, floor, last)
    used = tuple(chosen)
    if len(chosen) < 2:
        return OrderFit(math.nan, math.nan, used)
    h, e = h[chosen], e[chosen]
    ratio = np.log(h[:-1] / h[1:])
    local, mean = np.log(e[:-1] / e[1:]) / ratio, -np.diff(h) / ratio
    if len(chosen) == 2:
        return OrderFit(float(local[0]), math.nan, used)
    weight = mean[1:] / (mean[:-1] - mean[1:])
    limit = local[1:] + weight * np.diff(local)
    unsure = KNOWN * floor / e  # relative
    by_one = (unsure[:-1] + unsure[1:]) / ratio
    by_limit = abs(limit[-1] - local[-1]) * (UNSEEN if len(limit) == 1 else 1)
    width = [by_limit, (1 + weight[-1]) * by_one[-1] + weight[-1] * by_one[-2]]
    width += [abs(limit[-1] - limit[-2])] if len(limit) > 1 else []
    return OrderFit(float(limit[-1]), float(max(width)), used)


@checked
@on_numbers
def fit_power(
    sizes: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    *,
    floor: float = 0.0,
    last: int | None = None,
) -> OrderFit:
    r"""Fit an exponent p of values ∝ sizes^p by least squares of $\ln v$ on $\ln s$ over the `last` smallest sizes (default all)
    whose value is above `floor`.

    The interval is Student's t on the residuals: for values with noise, not for the bias of errors at large steps, for which
    there is `fit_order`. Raises `ValueError` as `fit_order` does.
    """
    x, y, chosen = _usable("fit_power", sizes, values, floor, max(2, np.size(values)) if last is None else last)
    used = tuple(chosen)
    if len(chosen) < 2:
        return OrderFit(math.nan, math.nan, used)
    x, y = np.log(x[chosen]), np.log(y[chosen])
    slope, intercept = np.polyfit(x, y, 1)
    free, ci = len(chosen) - 2, math.nan
    if free > 0:
        variance = np.sum((y - slope * x - intercept) ** 2) / free / np.sum((x - x.mean()) ** 2)
        ci = float(stdtrit(free, 0.975) * math.sqrt(variance))
    return OrderFit(float(slope), ci, used)


def order_over_seeds(fits: Sequence[OrderFit], *, average: Callable[[Sequence[float]], Figure] = over_seeds) -> Figure:
    r"""Average the orders that were fitted to each seed's errors: the interval of `average` over seeds, widened on both sides by
    the mean half-width of the fits, NaN where one of them has none.

    Seeds share the bias of large steps, which their scatter does not show: an interval made of the scatter alone leaves the
    order of theory out the more surely the more seeds there are. The mean of biases is no larger than the mean of what bounds
    each. Of one seed it is the interval of its fit. Tested on errors h^p (1 + a h + b h²): it holds p in 95 of 100 draws or
    more, whether a and b are shared by the seeds or drawn anew.
    """
    found = average([fit.order for fit in fits])
    bias = float(np.mean([fit.ci for fit in fits]))
    low, high = (found.value, found.value) if len(fits) == 1 else (found.low, found.high)
    return Figure(found.value, low - bias, high + bias, level=found.level)


def _usable(owner: str, sizes, values, floor: float, last: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Sizes and values as arrays, and the places of the smallest sizes whose value counts, from large to small."""
    h, e = np.asarray(sizes, float), np.asarray(values, float)
    names = ("step_sizes", "errors") if owner == "fit_order" else ("sizes", "values")
    if h.shape != e.shape or h.ndim != 1:
        raise ValueError(f"{owner}: {names[0]} {h.shape} and {names[1]} {e.shape} must be sequences of one length.")
    if np.any(h <= 0) or last < 2:
        raise ValueError(f"{owner}: {names[0]} must be positive and last at least 2.")
    if len(np.unique(h)) < len(h):
        raise ValueError(f"{owner}: {names[0]} must differ from one another.")
    usable = [int(i) for i in np.argsort(-h, kind="stable") if math.isfinite(e[i]) and e[i] > floor]
    return h, e, usable[-last:]
