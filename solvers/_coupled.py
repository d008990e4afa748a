"""Diffusion that mixes the features by any matrix: one matrix of size d per mode of the grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Inexact, Num

from pdejax._arguments import checked
from pdejax.solvers._coefficients import added, check_diffusivity, check_shape, coefficient, symbol_of
from pdejax.solvers._divergence import check_diffusible
from pdejax.solvers._grid import Grid
from pdejax.solvers._laplacian import Laplacian
from pdejax.solvers._modes import Modes, like, times
from pdejax.solvers._operator import (
    AbstractLinearOperator,
    AbstractModalOperator,
    DiagonalizableOperator,
    applied,
    same_grid,
)
from pdejax.solvers._phi import phi_of_matrices


class CoupledOperator(AbstractModalOperator):
    r"""$L u = (\nabla_h^2 u) D^\top + s(\nabla_h^2)u + u M^\top$ with any real matrices D and M: not symmetric, not commuting.

    A fast transform along the tokens leaves one matrix per mode, $\lambda_k D + s_k + M$. Solves take O(n d³), exponentials
    the same times log₂ of its size, where a [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator] takes O(n d²): take
    that for matrices known to be symmetric. Gradients with respect to D and M are finite everywhere.

    **Arguments:** as for [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator], but real, and matrices of any kind;
    eigenvalues of D must not have negative real parts (values that are traced are not looked at).

    **Raises:** `ValueError` for a grid of one token, shapes that disagree, NaN or infinite entries, complex values, or D with an
    eigenvalue of negative real part.
    """

    grid: Grid
    diffusivity: Array
    matrix: Array | None
    symbol: Array | None

    @checked
    def __init__(self, grid: Grid, diffusivity: Any = 0.0, matrix: Any = None, symbol: Any = None):
        check_diffusible(grid)
        self.symbol = None if symbol is None else symbol_of(grid, symbol)
        d = coefficient("diffusivity", diffusivity, symmetric=False)
        m = None if matrix is None else coefficient("matrix", matrix, symmetric=False)
        if any(a is not None and jnp.iscomplexobj(a) for a in (d, m)):
            raise ValueError(
                "diffusivity and matrix must be real here; a DiagonalizableOperator takes complex numbers."
            )
        widths = {a.shape[-1] for a in (d, m) if a is not None and a.ndim > 0}
        if len(widths) != 1:
            shapes = f"diffusivity has shape {d.shape} and matrix {None if m is None else m.shape}"
            raise ValueError(f"{shapes}; they must agree on d, and one of them must be an array.")
        if not isinstance(d, Tracer):
            check_diffusivity(np.asarray(d))
        self.grid, self.diffusivity, self.matrix = grid, d, m

    @jax.named_scope("pdejax.solvers.CoupledOperator")
    def __call__(self, t: Any, u: Num[Array, "n d"], args: Any) -> Num[Array, "n d"]:
        del t, args
        self.check(u.shape)
        return applied(self.grid, self.diffusivity, self.matrix, self.symbol, u)

    def to_modes(self, u: Num[Array, "n d"]) -> Num[Array, "n d"]:
        self.grid.check(u)
        return Modes(self.grid.boundary).to(u)

    def from_modes(self, coefficients: Num[Array, "n d"]) -> Num[Array, "n d"]:
        self.grid.check(coefficients, "coefficients")
        return Modes(self.grid.boundary).back(coefficients)

    def phis(self, scale: Any, largest: int, dtype: Any) -> tuple[Array, ...]:
        found = phi_of_matrices(times(scale, self.matrices(jnp.finfo(dtype).dtype)), largest)
        return tuple(like(p, dtype) for p in found)

    def solve(self, scale: Any, rhs: Num[Array, "n d"]) -> Num[Array, "n d"]:
        modes = self.to_modes(rhs)
        each = times(scale, self.matrices(jnp.finfo(modes.dtype).dtype))
        system = like(jnp.eye(each.shape[-1], dtype=each.dtype)[None] - each, modes.dtype)
        return self.from_modes(jnp.linalg.solve(system, modes[..., None])[..., 0]).astype(rhs.dtype)

    def matrices(self, dtype: Any) -> Inexact[Array, "n d d"]:
        """λ_k D + s_k + M for every mode."""
        d, width = self.diffusivity.astype(dtype), self._width()
        unit = jnp.eye(width, dtype=dtype)
        eigenvalues = Laplacian(self.grid).eigenvalues(dtype)
        out = eigenvalues[:, None, None] * _full(d, unit)[None]
        if self.symbol is not None:
            out = out + self.symbol.astype(dtype)[:, None, None] * unit[None]
        return out if self.matrix is None else out + _full(self.matrix.astype(dtype), unit)[None]

    def spectral_radius(self) -> Inexact[Array, ""]:
        """max_k ‖λ_k D + s_k + M‖₂."""
        return jnp.max(jnp.linalg.norm(self.matrices(self.diffusivity.dtype), 2, axis=(-2, -1)))

    def is_complex(self) -> bool:
        return False

    def check(self, shape: tuple[int, ...]) -> None:
        check_shape(self.grid.n, self._width(), shape)

    def shifted(self, rate: Any) -> "CoupledOperator":
        rate = jnp.asarray(rate)
        matrix = rate if self.matrix is None else added(self.matrix, rate)
        return CoupledOperator(self.grid, self.diffusivity, matrix, self.symbol)

    def plus(self, other: AbstractLinearOperator) -> "CoupledOperator":
        same_grid(self, other)
        assert isinstance(other, CoupledOperator | DiagonalizableOperator)
        return CoupledOperator(self.grid, *_sums(self, other))

    def _width(self) -> int:
        return next(a.shape[-1] for a in (self.diffusivity, self.matrix) if a is not None and a.ndim > 0)


@checked
def modal_operator(grid: Grid, diffusivity: Array, *, symmetric: bool) -> AbstractModalOperator:
    """The cheapest operator for this D: `symmetric` says whether a matrix is known to be."""
    if diffusivity.ndim == 2 and not symmetric:
        return CoupledOperator(grid, diffusivity)
    return DiagonalizableOperator(grid, diffusivity)


@checked
def summed(a: AbstractLinearOperator, b: AbstractLinearOperator) -> AbstractLinearOperator:
    """The sum of two linear parts on one grid. Raises `ValueError` for two that have no common transform."""
    if isinstance(a, DiagonalizableOperator) and isinstance(b, DiagonalizableOperator):
        same_grid(a, b)
        d, m, symbol = _sums(a, b)
        mixed = m is not None and min(d.ndim, m.ndim) > 0 and max(d.ndim, m.ndim) == 2  # they may not commute
        return CoupledOperator(a.grid, d, m, symbol) if mixed else DiagonalizableOperator(a.grid, d, m, symbol)
    if isinstance(b, CoupledOperator):
        return b.plus(a)
    return a.plus(b)


def _sums(a: Any, b: Any) -> tuple[Array, Array | None, Array | None]:
    pairs = ((a.matrix, b.matrix), (a.symbol, b.symbol))
    matrix, symbol = (y if x is None else x if y is None else added(x, y) for x, y in pairs)
    return added(a.diffusivity, b.diffusivity), matrix, symbol


def _full(a: Array, unit: Array) -> Array:
    """A scalar, (d,) or (d, d) as a matrix."""
    return a if a.ndim == 2 else a * unit if a.ndim == 0 else a[:, None] * unit
