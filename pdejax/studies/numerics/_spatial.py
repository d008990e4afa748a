"""The spatial order q of v1 (24): the field refined in the number of tokens."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis import fit_order
from pdejax.solvers import Grid
from pdejax.studies.numerics._convergence_config import MODES, check_tokens
from pdejax.terms import Diffusion

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
        equation = MasterEquation(base.interaction, base.reaction, Diffusion(grid, diffusivity), base.stabilization)
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
