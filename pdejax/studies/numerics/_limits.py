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

from pdejax._depth import DepthVarying, scale_strength, strength_factor
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis import fit_order, mesh_norm
from pdejax.solvers import Grid
from pdejax.studies.numerics._convergence_config import MODES, check_tokens
from pdejax.terms import Diffusion
from pdejax.terms._base import gaussian


@dataclasses.dataclass(frozen=True)
class Regime:
    """How a quantity changes with the number of layers L.

    `values` at `layers`; `exponent` e and its 95 % half-width `ci` of values ∝ L^e; `verdict` in words. For i.i.d. layers the
    quantity is the spread between draws, (mean‖u − ū‖²)^{1/2}/‖ū‖; for smooth weights the distance to the ODE's solution.
    """

    family: str
    quantity: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    exponent: float
    ci: float
    verdict: str


def iid_spread(
    base: MasterEquation, u0: Field, *, layers: Sequence[int], scaling: str, draws: int, key: PRNGKeyArray
) -> Regime:
    """Spread between `draws` networks of independent layers, each `u ← u + s(L)F_l(u)`, as L grows."""
    longest = max(layers)
    spreads = []
    for count in layers:
        # A network of fewer layers is the longest one with the others switched off: everything compiles once.
        strength = strength_factor(scaling, count) * longest / count
        spreads.append(float(_spread(base, u0, jnp.where(jnp.arange(longest) < count, strength, 0.0), draws, key)))
    return regime(f"iid {scaling}", "spread between draws", layers, spreads)


def regime(family: str, quantity: str, layers: Sequence[int], values: Sequence[float]) -> Regime:
    """Fit values ∝ L^e and say what it means."""
    fit = fit_order([1 / count for count in layers], values, last=len(layers))
    exponent = -fit.order
    return Regime(family, quantity, tuple(layers), tuple(values), exponent, fit.ci, verdict(quantity, exponent))


def verdict(quantity: str, exponent: float) -> str:
    """The regime that an exponent of L shows, within ±0.15."""
    if math.isnan(exponent):
        return "not measurable: fewer than two usable values"
    if quantity != "spread between draws":
        if exponent < -0.85:
            return f"ODE limit, reached at rate L^{exponent:.2f}"
        return f"no first-order ODE limit: the distance changes as L^{exponent:.2f}"
    if abs(exponent + 0.5) <= 0.15:
        return f"ODE limit of the averaged field: draws agree as L^{exponent:.2f}"
    if abs(exponent) <= 0.15:
        return f"no limit along a path: draws keep their spread (L^{exponent:+.2f}), SDE-like"
    return f"unclassified: the spread changes as L^{exponent:.2f}"


@eqx.filter_jit
def _spread(base: MasterEquation, u0: Field, strengths: Float[Array, " layers"], draws: int, key: PRNGKeyArray):
    layers = strengths.shape[0]

    def layer(k, strength):
        return scale_strength(redraw(base, k), strength)

    def end(k):
        network = DepthVarying(eqx.filter_vmap(layer)(jax.random.split(k, layers), strengths), 1.0, "constant")
        return simulate(Discretization(network, "euler", t1=1.0, steps=layers), u0, save="end").us[-1]

    ends = jax.vmap(end)(jax.random.split(key, draws))
    mean = jnp.mean(ends, axis=0)
    return jnp.sqrt(jnp.sum(mesh_norm(ends - mean[None]) ** 2) / (draws - 1)) / mesh_norm(mean)


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
