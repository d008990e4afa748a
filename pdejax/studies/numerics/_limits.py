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

from pdejax._depth import strength_factor
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis import fit_order
from pdejax.analysis.limits._exponents import distance_verdict, relative_spreads, spread_exponent, spread_verdict
from pdejax.analysis.limits._recipe import redraw
from pdejax.solvers import Grid
from pdejax.studies.numerics._convergence_config import MODES, check_tokens
from pdejax.terms import Diffusion

BATCH = 16  # draws at a time


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


def iid_spreads(
    base: MasterEquation,
    u0: Field,
    *,
    layers: Sequence[int],
    scalings: Sequence[str | float],
    draws: int,
    key: PRNGKeyArray,
) -> list[Regime]:
    """Spread between `draws` networks of independent layers, each `u ← u + s(L)F_l(u)`, as L grows, for each s: by name, or
    L^−scaling.

    The exponent is fitted by least squares; its interval is Student's t with the jackknife's standard error over draws, which
    share their weights between numbers of layers and between scalings.
    """

    def scale(scaling: str | float, count: int) -> float:
        return strength_factor(scaling, count) / count if isinstance(scaling, str) else count**-scaling

    runs = sorted(itertools.product(range(len(scalings)), layers), key=lambda run: -run[1])
    counts, scales = [count for _, count in runs], [scale(scalings[i], count) for i, count in runs]
    found = _ends(base, u0, jnp.asarray(counts), jnp.asarray(scales, u0.dtype), max(layers), draws, key)
    ends = dict(zip(runs, np.asarray(found).swapaxes(0, 1), strict=True))
    return [_regime(s, layers, np.stack([ends[i, count] for count in layers])) for i, s in enumerate(scalings)]


def _regime(scaling: str | float, layers: Sequence[int], ends: np.ndarray) -> Regime:
    """What the ends of networks, `(layers, draws, n, d)`, say."""
    value, ci = spread_exponent(layers, ends)
    spreads, means = relative_spreads(ends), ends.mean(axis=1)
    moves = [float(np.linalg.norm(b - a) / np.linalg.norm(b)) for a, b in itertools.pairwise(means)]
    # What a mean of so many draws moves by chance.
    noise = float(np.hypot(*spreads[-2:])) / math.sqrt(ends.shape[1])
    settles = len(moves) < 2 or moves[-1] <= max(2 * noise, moves[-2])
    lost = [str(count) for count, spread in zip(layers, spreads, strict=True) if not math.isfinite(spread)]
    name = f"iid {scaling}" if isinstance(scaling, str) else f"iid 1/L^{scaling:g}"
    said = spread_verdict(value, ci, settles)
    if lost:
        said = f"not measurable: networks of {', '.join(lost)} layers diverged"
    return Regime(name, "spread between draws", tuple(layers), tuple(spreads.tolist()), value, ci, said, tuple(moves))


def smooth_regime(layers: Sequence[int], values: Sequence[float]) -> Regime:
    """Fit distances to the ODE's solution, of networks with weights smooth in depth, and say what they mean."""
    fit = fit_order([1 / count for count in layers], values, last=max(2, len(layers)))
    said = distance_verdict(-fit.order, fit.ci)
    return Regime(
        "smooth weights", "distance to the ODE's solution", tuple(layers), tuple(values), -fit.order, fit.ci, said
    )


@eqx.filter_jit
def _ends(base: MasterEquation, u0: Field, counts, scales, longest: int, draws: int, key: PRNGKeyArray) -> Array:
    """Ends `(draws, runs, n, d)` of networks of `counts` layers, the longest first, at residual `scales`.

    The weights of a layer are drawn once, for all runs that have it: drawing them costs more than a step does.
    """

    def end(k):
        keys = jax.random.split(k, longest)

        def layer(index, us):
            field = redraw(base, keys[index])

            def step(run, us):
                return us.at[run].add(scales[run] * field(0.0, us[run], None))

            return jax.lax.fori_loop(0, jnp.sum(counts > index), step, us)

        return jax.lax.fori_loop(0, longest, layer, jnp.broadcast_to(u0, (len(counts), *u0.shape)))

    return jax.lax.map(end, jax.random.split(key, draws), batch_size=min(BATCH, draws))


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
