"""Exponents of the number of layers, with intervals over draws, and the one margin by which regimes are told apart."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from pdejax._figure import Figure
from pdejax.analysis.numerics._fit import fit_power

ROUNDING = 1e-3  # orders are told apart to the digits that are shown
MARGIN = 0.1  # exponents that differ by less are one regime


def spread_exponent(layers: Sequence[int], ends: Float[np.ndarray, "layers draws n d"]) -> tuple[float, float]:
    """The exponent of L in the spread between draws, and its half-width by the jackknife; NaN for fewer than 3 draws."""
    value, ci = exponent_over_draws(layers, relative_spreads, ends)
    return value, ci


def exponent_over_draws(
    layers: Sequence[int], statistic: Callable[[np.ndarray], np.ndarray], samples: np.ndarray
) -> tuple[float, float]:
    """The exponent of L in `statistic(samples) (layers,)` of samples `(layers, draws, …)`, and Student's half-width with the
    jackknife's standard error over draws, which may be shared between numbers of layers; NaN for fewer than 3 draws."""
    counts, draws = np.asarray(layers, float), samples.shape[1]
    value = fit_power(counts, statistic(samples)).order
    if draws < 3:
        return value, math.nan
    left_out = np.array([fit_power(counts, statistic(np.delete(samples, i, axis=1))).order for i in range(draws)])
    return value, student(draws) * jackknife_error(left_out)


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error from a statistic without each of the draws."""
    draws = len(left_out)
    return math.sqrt((draws - 1) / draws * float(np.sum((left_out - left_out.mean()) ** 2)))


def student(draws: int) -> float:
    """Half-width of a 95 % interval in standard errors."""
    return float(stdtrit(draws - 1, 0.975))


def relative_spreads(ends: np.ndarray) -> np.ndarray:
    """The relative spread between draws `(layers,)` of states `(layers, draws, n, d)`."""
    mean = ends.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.sum((ends - mean) ** 2, axis=(1, 2, 3)) / (ends.shape[1] - 1))
    return spread / np.linalg.norm(mean[:, 0], axis=(1, 2))


def settled_exponent(layers: Sequence[int], values: np.ndarray, left_out: np.ndarray) -> Figure:
    r"""The exponent of L that values `(layers,)` tend to, with an interval for noise **and** for what it still moves.

    It is the slope over the upper half of the L. The half-width is √(a² + b²): a Student's with the jackknife's error over draws
    (`left_out (draws, layers)`: the values without each draw), b the distance to the slope over the lower half. Corrections
    $1 + cL^{-q}$ leave the upper slope $1/(m^q - 1)$ of that distance from the limit, m being how many times larger the L of the
    upper half are: less than the distance for q > ln 2/ln m.
    """
    half = len(layers) // 2
    upper, lower = (slopes(layers, x) for x in (slice(half, None), slice(0, len(layers) - half)))
    value, early = upper @ np.log(values), lower @ np.log(values)
    ci = math.hypot(student(len(left_out)) * jackknife_error(np.log(left_out) @ upper), value - early)
    return Figure(float(value), float(value - ci), float(value + ci))


def slopes(layers: Sequence[int], part: slice) -> np.ndarray:
    """Weights `(layers,)` that make the least-squares slope of what they are multiplied by over ln L, for the L in `part`."""
    x = np.log(np.asarray(layers, float))
    inside = x[part] - x[part].mean()
    weights = np.zeros(len(x))
    weights[part] = inside / np.sum(inside**2)
    return weights


def near(exponent: Figure, target: float, margin: float = MARGIN) -> bool:
    """Whether the whole interval lies within the margin of the target; an exponent that is not known is near nothing."""
    return bool(abs(float(exponent) - target) + half_width(exponent) <= margin)


def below(exponent: Figure, bound: float) -> bool:
    """Whether the whole interval lies below the bound."""
    return bool(float(exponent) + half_width(exponent) < bound)


def above(exponent: Figure, bound: float) -> bool:
    """Whether the whole interval lies above the bound."""
    return bool(float(exponent) - half_width(exponent) > bound)


def half_width(exponent: Figure) -> float:
    """Half the interval's width, NaN where there is none."""
    return float(exponent.high) - float(exponent)


def spread_verdict(exponent: float, ci: float, settles: bool) -> str:
    """The regime that the exponent of the spread shows: one only where its whole interval lies within 0.1 of that regime's."""
    shown = f"L^{exponent:+.2f} ± {ci:.2f}"
    found = Figure(exponent, exponent - ci, exponent + ci)
    if not math.isfinite(exponent):
        return "not measurable: fewer than two usable values"
    if not math.isfinite(ci):
        return f"not decided: the spread changes as L^{exponent:+.2f}, of too few draws for an interval"
    if near(found, 0.0):
        return f"no limit along a path: draws keep their spread ({shown}), SDE-like"
    if above(found, 0.0):
        return f"no limit: the spread between draws grows as {shown}"
    if below(found, 0.0) and not settles:
        return f"not decided: the spread between draws falls as {shown}, but their mean does not settle"
    if near(found, -0.5):
        return f"ODE limit of the averaged field: draws agree as {shown}"
    if below(found, -0.5):
        return f"ODE limit of the averaged field: draws agree faster than at −1/2, as {shown}"
    if above(found, -0.5) and below(found, 0.0):
        return f"between the regimes: draws agree as {shown}, neither at −1/2 nor not at all"
    return f"not decided: the spread between draws changes as {shown}"


def distance_verdict(exponent: float, ci: float) -> str:
    """What the exponent of the distance to the ODE's solution shows: a limit at first order where its interval holds −1, and
    not what noise that averages out has, −½."""
    if not (math.isfinite(exponent) and math.isfinite(ci)):
        return "not measurable: fewer than three usable values"
    shown = f"L^{exponent:.2f} ± {ci:.2f}"
    if abs(exponent + 1) <= ci + ROUNDING and exponent + ci < -0.5 and ci <= 0.5:
        return f"ODE limit, reached at rate {shown}"
    if ci > 0.5 or abs(exponent + 1) <= ci + ROUNDING:
        return f"not decided: the distance changes as {shown}"
    return f"no first-order ODE limit: the distance changes as {shown}"
