"""Conservative differences: fluxes at the faces between tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from pdejax._arguments import checked
from pdejax.solvers._grid import Boundary, Grid

# Ghost points: a copy of the end value (no flux), the boundary value 0, or the point across the seam.
_GHOSTS: dict[Boundary, str] = {"neumann": "edge", "dirichlet": "constant", "periodic": "wrap"}


def extend(values: Array, mode: str) -> Array:
    """`values` with one more point before and after along the first axis."""
    return jnp.pad(values, [(1, 1)] + [(0, 0)] * (values.ndim - 1), mode=mode)  # pyright: ignore[reportArgumentType]


def face_differences(grid: Grid, u: Inexact[Array, "n *features"]) -> Inexact[Array, "faces *features"]:
    """u_{i+1} − u_i over the n + 1 faces, the two ends included."""
    return jnp.diff(extend(u, _GHOSTS[grid.boundary]), axis=0)


def inverse_square_spacing(grid: Grid, dtype) -> Float[Array, ""]:
    """1/dx² as a scalar of the real type that belongs to `dtype`."""
    return jnp.asarray(1.0 / grid.spacing**2, jnp.finfo(dtype).dtype)


def check_diffusible(grid: Grid) -> None:
    """Raise `ValueError` for a grid of one token, which has no neighbour to exchange with."""
    if grid.n < 2:
        raise ValueError("diffusion needs at least 2 tokens; the grid has n=1. Use a longer sequence, or no diffusion.")


@checked
@jax.named_scope("pdejax.solvers.divergence")
def divergence(
    grid: Grid,
    coefficient: Float[Array, "..."],
    u: Inexact[Array, "n *features"],
    mask: Bool[Array, "..."] | None = None,
) -> Inexact[Array, "n *features"]:
    """Divergence form ∂x(D ∂x u) with a variable coefficient, in conservation form.

    (F_{i+1/2} − F_{i−1/2}) / dx with the flux F_{i+1/2} = ½(D_i + D_{i+1}) (u_{i+1} − u_i) / dx: second
    order, and Σ_i dx ∂x(D ∂x u)_i = F_right − F_left up to rounding, which is 0 for Neumann and periodic
    grids. For D ≥ 0 the operator is negative semidefinite. D may be negative (a backward heat equation, as v2
    (8) can give).

    **Arguments:**

    - `grid`: at least 2 tokens. Neumann: no flux through the ends. Dirichlet: u = 0 at both ends, and the
        outer faces take the D of the token beside them. Periodic: wraps around.
    - `coefficient`: D at the points, shape (n,) or that of `u`; unit length² / depth.
    - `u`: field, shape (n, d) or (n,).
    - `mask`: (n,), True for real tokens. Faces that touch a masked token carry no flux: padding neither gives
        to nor takes from the sequence, and its own divergence is 0.

    **Returns:** an array like `u`.

    **Raises:** `ValueError` if the shapes disagree or the grid has one token.

    Source: v2 (7), `∇·(D_eff ∇u)`; v1 (8) for constant D.
    """
    check_diffusible(grid)
    grid.check(u)
    if coefficient.shape not in ((grid.n,), u.shape):
        raise ValueError(
            f"coefficient has shape {coefficient.shape}; it must be ({grid.n},), one value per token, "
            f"or {u.shape}, that of u."
        )
    if mask is not None and mask.shape != (grid.n,):
        raise ValueError(f"mask has shape {mask.shape}; it must be ({grid.n},), one entry per token.")

    if jnp.iscomplexobj(u):  # by parts: strict promotion multiplies no complex array by a real one
        parts = (divergence(grid, coefficient, part, mask) for part in (u.real, u.imag))
        return jax.lax.complex(*parts)

    def column(values):
        return values.reshape(values.shape + (1,) * (u.ndim - values.ndim))

    seam = "wrap" if grid.boundary == "periodic" else "edge"
    at_faces = extend(coefficient.astype(jnp.finfo(u.dtype).dtype), seam)
    flux = column(0.5 * (at_faces[1:] + at_faces[:-1])) * face_differences(grid, u)
    if mask is not None:
        real = extend(mask, seam)
        flux = jnp.where(column(real[1:] & real[:-1]), flux, 0.0)
    return jnp.diff(flux, axis=0) * inverse_square_spacing(grid, u.dtype)
