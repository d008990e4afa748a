"""Two limits: the continuum regime as layers grow (claim C1), and the spatial order q of v1 (24) as tokens grow."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import stdtrit

from pdejax._depth import DepthVarying, scale_strength, strength_factor
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis import fit_order
from pdejax.analysis.numerics import fit_power
from pdejax.solvers import Grid
from pdejax.studies.numerics._convergence_config import MODES, check_tokens
from pdejax.terms import Diffusion
from pdejax.terms._base import gaussian


@dataclasses.dataclass(frozen=True)
class Regime:
    """How a quantity changes with the number of layers L.

    `values` at `layers`; `exponent` e of values ∝ L^e with the half-width `ci` of its interval; `verdict` in words. For i.i.d.
    layers the quantity is the spread between draws, (mean‖u − ū‖²)^{1/2}/‖ū‖, and `moves` says how far the mean goes from each
    number of layers to the next, ‖ū − ū′‖/‖ū‖; for smooth weights it is the distance to the ODE's solution.
    """

    family: str
    quantity: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    exponent: float
    ci: float
    verdict: str
    moves: tuple[float, ...] = ()


def iid_spread(
    base: MasterEquation, u0: Field, *, layers: Sequence[int], scaling: str | float, draws: int, key: PRNGKeyArray
) -> Regime:
    """Spread between `draws` networks of independent layers, each `u ← u + s(L)F_l(u)`, as L grows: s by name, or L^−scaling.

    The exponent is fitted by least squares; its interval is Student's t with the jackknife's standard error over draws, which
    share their weights between numbers of layers.
    """
    longest = max(layers)
    found = []
    for count in layers:
        # A network of fewer layers is the longest one with the others switched off: everything compiles once.
        factor = strength_factor(scaling, count) / count if isinstance(scaling, str) else count**-scaling
        strengths = jnp.where(jnp.arange(longest) < count, longest * factor, 0.0)
        found.append(np.asarray(_ends(base, u0, strengths, draws, key)))
    ends = np.stack(found)
    value, ci = spread_exponent(layers, ends)
    spreads, means = _spreads(ends), ends.mean(axis=1)
    moves = [float(np.linalg.norm(b - a) / np.linalg.norm(b)) for a, b in itertools.pairwise(means)]
    # What a mean of so many draws moves by chance.
    noise = float(np.hypot(*spreads[-2:])) / math.sqrt(draws)
    settles = len(moves) < 2 or moves[-1] <= max(2 * noise, moves[-2])
    name = f"iid {scaling}" if isinstance(scaling, str) else f"iid 1/L^{scaling:g}"
    lost = [str(count) for count, spread in zip(layers, spreads, strict=True) if not math.isfinite(spread)]
    said = spread_verdict(value, ci, settles)
    if lost:
        said = f"not measurable: networks of {', '.join(lost)} layers diverged"
    return Regime(name, "spread between draws", tuple(layers), tuple(spreads.tolist()), value, ci, said, tuple(moves))


def spread_exponent(layers: Sequence[int], ends: Float[np.ndarray, "layers draws n d"]) -> tuple[float, float]:
    """The exponent of L in the spread between draws, and its half-width by the jackknife; NaN for fewer than 3 draws."""
    counts, draws = np.asarray(layers, float), ends.shape[1]
    value = fit_power(counts, _spreads(ends)).order
    if draws < 3:
        return value, math.nan
    left_out = np.array([fit_power(counts, _spreads(np.delete(ends, i, axis=1))).order for i in range(draws)])
    error = math.sqrt((draws - 1) / draws * float(np.sum((left_out - left_out.mean()) ** 2)))
    return value, float(stdtrit(draws - 1, 0.975)) * error


def _spreads(ends: np.ndarray) -> np.ndarray:
    """The relative spread between draws `(layers,)` of states `(layers, draws, n, d)`."""
    mean = ends.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.sum((ends - mean) ** 2, axis=(1, 2, 3)) / (ends.shape[1] - 1))
    return spread / np.linalg.norm(mean[:, 0], axis=(1, 2))


def smooth_regime(layers: Sequence[int], values: Sequence[float]) -> Regime:
    """Fit distances to the ODE's solution, of networks with weights smooth in depth, and say what they mean."""
    fit = fit_order([1 / count for count in layers], values, last=max(2, len(layers)))
    said = distance_verdict(-fit.order, fit.ci)
    return Regime(
        "smooth weights", "distance to the ODE's solution", tuple(layers), tuple(values), -fit.order, fit.ci, said
    )


ROUNDING = 1e-3  # orders are told apart to the digits that are shown
MARGIN = 0.1  # exponents that differ by less are one regime


def spread_verdict(exponent: float, ci: float, settles: bool) -> str:
    """The regime that the exponent of the spread shows: one only where its whole interval lies within 0.1 of that regime's."""
    shown = f"L^{exponent:+.2f} ± {ci:.2f}"
    if not math.isfinite(exponent):
        return "not measurable: fewer than two usable values"
    if not math.isfinite(ci):
        return f"not decided: the spread changes as L^{exponent:+.2f}, of too few draws for an interval"
    if abs(exponent) + ci <= MARGIN:
        return f"no limit along a path: draws keep their spread ({shown}), SDE-like"
    if exponent - ci > 0:
        return f"no limit: the spread between draws grows as {shown}"
    if exponent + ci < 0 and not settles:
        return f"not decided: the spread between draws falls as {shown}, but their mean does not settle"
    if abs(exponent + 0.5) + ci <= MARGIN:
        return f"ODE limit of the averaged field: draws agree as {shown}"
    if exponent + ci < -0.5:
        return f"ODE limit of the averaged field: draws agree faster than at −1/2, as {shown}"
    if exponent - ci > -0.5 and exponent + ci < 0:
        return f"between the regimes: draws agree as {shown}, neither at −1/2 nor not at all"
    return f"not decided: the spread between draws changes as {shown}"


def distance_verdict(exponent: float, ci: float) -> str:
    """What the exponent of the distance to the ODE's solution shows: a limit at first order where its interval holds −1."""
    if not (math.isfinite(exponent) and math.isfinite(ci)):
        return "not measurable: fewer than three usable values"
    shown = f"L^{exponent:.2f} ± {ci:.2f}"
    if abs(exponent + 1) <= ci + ROUNDING and ci <= 0.5:
        return f"ODE limit, reached at rate {shown}"
    if ci > 0.5:
        return f"not decided: the distance changes as {shown}"
    return f"no first-order ODE limit: the distance changes as {shown}"


@eqx.filter_jit
def _ends(base: MasterEquation, u0: Field, strengths: Float[Array, " layers"], draws: int, key: PRNGKeyArray):
    layers = strengths.shape[0]

    def layer(k, strength):
        return scale_strength(redraw(base, k), strength)

    def end(k):
        network = DepthVarying(eqx.filter_vmap(layer)(jax.random.split(k, layers), strengths), 1.0, "constant")
        return simulate(Discretization(network, "euler", t1=1.0, steps=layers), u0, save="end").us[-1]

    return jax.vmap(end)(jax.random.split(key, draws))


def redraw(equation: MasterEquation, key: PRNGKeyArray) -> MasterEquation:
    """The same equation with every weight matrix drawn anew, Gaussian of the same root mean square."""
    leaves, treedef = jax.tree.flatten(equation)
    matrices = [leaf for leaf in leaves if eqx.is_inexact_array(leaf) and leaf.ndim >= 2]
    drawn = iter(gaussian(key, *(leaf.shape for leaf in matrices)))

    def draw(leaf):
        if not (eqx.is_inexact_array(leaf) and leaf.ndim >= 2):
            return leaf
        return (jnp.sqrt(jnp.mean(leaf**2)) * next(drawn)).astype(leaf.dtype)

    return jax.tree.unflatten(treedef, [draw(leaf) for leaf in leaves])


SPAN = 0.2  # depth of the comparison


@dataclasses.dataclass(frozen=True)
class SpatialConvergence:
    """Spatial refinement at fixed depth.

    `tokens` N; `differences` ‖c_N − c_2N‖ between the first cosine coefficients of solutions on N and 2N tokens, relative;
    `order` q and `ci` of differences ∝ Δx^q; `expected` 2 (second-order Laplacian, midpoint quadrature).
    """

    boundary: str
    diffusivity: float
    tokens: tuple[int, ...]
    differences: tuple[float, ...]
    order: float
    ci: float
    expected: float


def spatial_convergence(
    base: MasterEquation, u0: Field, *, tokens: Sequence[int], diffusivity: float, depth: float = SPAN
) -> SpatialConvergence:
    """Solve `base` with diffusion on finer and finer Neumann grids from one smooth function.

    The function is the real embedded sequence `u0` smoothed to its lowest cosine modes, so that it can be sampled on any
    grid. Every solve is far more accurate in depth than in space. Raises `ValueError` unless `tokens` doubles.
    """
    check_tokens(tokens)
    modes = cosine_coefficients(u0)[:MODES]
    coefficients = []
    for n in tokens:
        grid = Grid(n)
        equation = MasterEquation(**dict(base.items()) | {"diffusion": Diffusion(grid, diffusivity)})
        start = sample_cosines(modes, n)
        # RK4 well inside its stability limit: the error in depth is many orders below that in space.
        steps = math.ceil(depth * float(equation.damping()) / 2) + 24
        end = simulate(Discretization(equation, "rk4", t1=depth, steps=steps), start, save="end").us[-1]
        coefficients.append(np.asarray(cosine_coefficients(end)[:MODES]))
    scale = np.linalg.norm(coefficients[-1])
    differences = [float(np.linalg.norm(a - b) / scale) for a, b in itertools.pairwise(coefficients)]
    fit = fit_order([1 / n for n in tokens[:-1]], differences, last=len(differences))
    return SpatialConvergence("neumann", diffusivity, tuple(tokens), tuple(differences), fit.order, fit.ci, 2.0)


def cosine_coefficients(u: Field) -> Float[Array, "n d"]:
    """Coefficients a_k of u(x) = Σ a_k cos(πkx), k < n, from samples at cell centres: a discrete cosine transform."""
    n = u.shape[0]
    scale = np.where(np.arange(n) == 0, 1.0, 2.0)[:, None] / n
    return jnp.asarray(scale * (cosines(n, n) @ np.asarray(u)), u.dtype)


def sample_cosines(modes: Float[Array, "m d"], n: int) -> Field:
    """Σ a_k cos(πkx) at n cell centres."""
    return jnp.asarray(cosines(modes.shape[0], n).T @ np.asarray(modes), modes.dtype)


def cosines(m: int, n: int) -> Float[np.ndarray, "m n"]:
    return np.cos(np.pi * np.arange(m)[:, None] * ((np.arange(n) + 0.5) / n)[None, :])
