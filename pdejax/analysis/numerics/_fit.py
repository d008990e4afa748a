"""Orders of convergence fitted to errors, with their uncertainty."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from pdejax._arguments import checked
from pdejax._check import on_numbers


@dataclasses.dataclass(frozen=True)
class OrderFit:
    """A fitted order: `order` p of `error ∝ h^p`, its 95 % confidence half-width `ci` (NaN with two points only), and the
    `used` points. `order` is NaN when fewer than two errors lie above the floor."""

    order: float
    ci: float
    used: tuple[int, ...]


@checked
@on_numbers
def fit_order(
    step_sizes: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray, *, floor: float = 0.0, last: int = 4
) -> OrderFit:
    r"""Least-squares slope of $\log e$ against $\log h$ over the `last` smallest steps whose error is above `floor`.

    The largest steps are not asymptotic and errors below `floor` are round-off or the reference's own error, so neither
    belongs in a fit. The interval is Student's t on the residuals. Raises `ValueError` for sequences that do not match,
    steps that are not positive, or `last < 2`.
    """
    h, e = np.asarray(step_sizes, float), np.asarray(errors, float)
    if h.shape != e.shape or h.ndim != 1:
        raise ValueError(f"fit_order: step_sizes {h.shape} and errors {e.shape} must be sequences of one length.")
    if np.any(h <= 0) or last < 2:
        raise ValueError("fit_order: step sizes must be positive and last at least 2.")
    usable = [i for i in np.argsort(-h, kind="stable") if math.isfinite(e[i]) and e[i] > floor]
    chosen = usable[-last:]
    if len(chosen) < 2:
        return OrderFit(math.nan, math.nan, tuple(int(i) for i in chosen))
    x, y = np.log(h[chosen]), np.log(e[chosen])
    slope, intercept = np.polyfit(x, y, 1)
    free, ci = len(chosen) - 2, math.nan
    if free > 0:
        variance = np.sum((y - slope * x - intercept) ** 2) / free / np.sum((x - x.mean()) ** 2)
        ci = float(stdtrit(free, 0.975) * math.sqrt(variance))
    return OrderFit(float(slope), ci, tuple(int(i) for i in chosen))
