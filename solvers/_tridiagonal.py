"""A diffusion whose coefficient varies over the tokens, or that a padding mask cuts: tridiagonal, solved by elimination."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Inexact, Num

from pdejax._arguments import checked
from pdejax._axes import same_axes, varying
from pdejax.solvers._coefficients import added, check_shape, inexact, times_matrix
from pdejax.solvers._divergence import check_diffusible, divergence, extend, inverse_square_spacing
from pdejax.solvers._grid import Grid
from pdejax.solvers._modes import on_parts
from pdejax.solvers._operator import AbstractLinearOperator, same_kind


class TridiagonalOperator(AbstractLinearOperator):
    r"""Divergence form $L u = \partial_x(D(x)\,\partial_x u) + c\,u$ with a variable coefficient, solved in O(n d).

    The stencil is that of [`divergence`][pdejax.solvers.divergence]; L is symmetric in the tokens and tridiagonal, with
    two corners on a periodic grid, which a Sherman–Morrison correction adds. It is solved by lineax, one
    Gaussian elimination with partial pivoting per feature. It has no matrix functions f(L): exponential solvers need a
    [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator].

    **Arguments:**

    - `grid`: at least 2 tokens.
    - `coefficient` D(x) ≥ 0 at the points, `(n,)` or `(n, d)`, length² per unit depth.
    - `mask`: `(n,)`, True at real tokens: no flux crosses a face that touches padding. `shift` acts on padding too.
    - `shift` c, per unit depth: None, a scalar or `(d,)`.

    **Raises:** `ValueError` for a grid of one token, shapes that disagree, or D that is negative or not finite.

    Source: v2 (7); W. H. Press et al., *Numerical Recipes*, 3rd ed. (2007), §2.7.2, for the corners.
    """

    grid: Grid
    coefficient: Array
    mask: Bool[Array, " n"] | None
    shift: Array | None

    @checked
    def __init__(self, grid: Grid, coefficient: Any, mask: Any = None, shift: Any = None):
        check_diffusible(grid)
        d = inexact("coefficient", coefficient)
        c = None if shift is None else inexact("shift", shift)
        if d.ndim not in (1, 2) or d.shape[0] != grid.n:
            raise ValueError(
                f"coefficient has shape {d.shape}; it must be ({grid.n},) or ({grid.n}, d): one D per token."
            )
        if c is not None and (c.ndim > 1 or (c.ndim == 1 and d.ndim == 2 and c.shape[0] != d.shape[1])):
            raise ValueError(f"shift has shape {c.shape}; allowed are a scalar and (d,), with the d of coefficient.")
        if jnp.iscomplexobj(d) or (c is not None and jnp.iscomplexobj(c)):
            raise ValueError("coefficient and shift must be real; a DiagonalizableOperator takes complex ones.")
        if not isinstance(d, Tracer) and not (np.all(np.isfinite(d)) and np.all(np.asarray(d) >= 0.0)):
            raise ValueError(
                f"coefficient must be finite and ≥ 0 at every token (D < 0 is a backward heat equation); its smallest "
                f"entry is {float(np.min(np.asarray(d)))}."
            )
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.shape != (grid.n,) or mask.dtype != bool:
                raise ValueError(f"mask must be ({grid.n},) booleans; got shape {mask.shape}, type {mask.dtype}.")
        self.grid, self.coefficient, self.mask, self.shift = grid, d, mask, c

    @jax.named_scope("pdejax.solvers.TridiagonalOperator")
    def __call__(self, t: Any, u: Num[Array, "n d"], args: Any) -> Num[Array, "n d"]:
        del t, args
        self.check(u.shape)
        real = jnp.finfo(u.dtype).dtype
        out = on_parts(lambda v: divergence(self.grid, self.coefficient.astype(real), v, mask=self.mask), u)
        return out if self.shift is None else out + times_matrix(self.shift.astype(real), u)

    def solve(self, scale: Any, rhs: Num[Array, "n d"]) -> Num[Array, "n d"]:
        self.grid.check(rhs, "rhs")
        if jnp.iscomplexobj(rhs):
            return on_parts(lambda part: self.solve(scale, part), rhs)
        kind = np.promote_types(rhs.dtype, jnp.float32)  # there is no half-precision elimination
        diagonal, faces = self._entries(kind)
        s = jnp.asarray(scale, kind)
        columns = diagonal.ndim - 1  # 1 if every feature has a matrix of its own
        one = _solve_cyclic if self.grid.boundary == "periodic" else _solve_tridiagonal
        one = jax.vmap(one, in_axes=(columns or None, 1 if faces.ndim == 2 else None, 1), out_axes=1)
        return one(1.0 - s * diagonal, -s * faces, rhs.astype(kind)).astype(rhs.dtype)

    def shifted(self, rate: Any) -> "TridiagonalOperator":
        rate = jnp.asarray(rate)
        shift = rate if self.shift is None else added(self.shift, rate)
        return TridiagonalOperator(self.grid, self.coefficient, self.mask, shift)

    def plus(self, other: AbstractLinearOperator) -> "TridiagonalOperator":
        same_kind(self, other)
        assert isinstance(other, TridiagonalOperator)
        if (self.mask is None) != (other.mask is None):
            raise ValueError("two linear parts with and without a mask have no common solve; use 'rkc2' or 'tsit5'.")
        a, b = (
            c[:, None] if c.ndim < max(self.coefficient.ndim, other.coefficient.ndim) else c
            for c in (self.coefficient, other.coefficient)
        )
        shift = (
            self.shift if other.shift is None else other.shift if self.shift is None else added(self.shift, other.shift)
        )
        return TridiagonalOperator(self.grid, a + b, self.mask, shift)

    def spectral_radius(self) -> Inexact[Array, ""]:
        """Gershgorin's bound max_i (|l_ii| + Σ_j |l_ij|), which is 4D/dx² + |c| for constant D and c ≤ 0."""
        diagonal, faces = self._entries(self.coefficient.dtype)
        off = jnp.abs(faces[:-1]) + jnp.abs(faces[1:])
        return jnp.max(jnp.abs(diagonal) + (off[:, None] if diagonal.ndim > off.ndim else off))

    def check(self, shape: tuple[int, ...]) -> None:
        width = self.coefficient.shape[1] if self.coefficient.ndim == 2 else None
        if width is None and self.shift is not None and self.shift.ndim == 1:
            width = self.shift.shape[0]
        check_shape(self.grid.n, width, shape)

    def _entries(self, dtype: Any) -> tuple[Array, Array]:
        """Main diagonal (n,) or (n, d) of L and its couplings across the n + 1 faces, 0 at ends without a neighbour."""
        seam = "wrap" if self.grid.boundary == "periodic" else "edge"
        points = extend(self.coefficient.astype(dtype), seam)
        faces = 0.5 * (points[1:] + points[:-1]) * inverse_square_spacing(self.grid, dtype)
        if self.mask is not None:
            real = extend(self.mask, seam)
            open_ = real[1:] & real[:-1]
            faces = jnp.where(open_[:, None] if faces.ndim == 2 else open_, faces, 0.0)
        ends = jnp.zeros_like(faces[:1])
        if self.grid.boundary == "neumann":
            faces = jnp.concatenate([ends, faces[1:-1], ends])
        diagonal = -(faces[1:] + faces[:-1])
        if self.grid.boundary == "dirichlet":  # the wall takes the flux and gives nothing back
            faces = jnp.concatenate([ends, faces[1:-1], ends])
        if self.shift is None:
            return diagonal, faces
        shift = self.shift.astype(dtype)
        if shift.ndim == 0:
            return diagonal + shift, faces
        return (diagonal if diagonal.ndim == 2 else diagonal[:, None]) + shift[None], faces


def _solve_cyclic(diagonal: Array, faces: Array, rhs: Array) -> Array:
    """Solve a symmetric system with couplings `faces[1:-1]` between neighbours and `faces[0]` across the seam."""
    corner = faces[0]
    # Sherman–Morrison with the seam's rank-one part (g, 0, …, corner)(1, 0, …, corner/g)ᵀ, g = −diagonal[0].
    pivot = -diagonal[0]
    ratio = corner / pivot
    modified = diagonal.at[0].add(-pivot).at[-1].add(-corner * ratio)
    column = jnp.zeros_like(rhs).at[0].set(pivot).at[-1].set(corner)
    y, z = (_solve_tridiagonal(modified, faces, b) for b in (rhs, column))
    return y - (y[0] + ratio * y[-1]) / (1.0 + z[0] + ratio * z[-1]) * z


def _solve_tridiagonal(diagonal: Array, faces: Array, rhs: Array) -> Array:
    n, off = rhs.shape[0], faces[1:-1]
    missing = max(0, 3 - n)  # some backends need three rows
    diagonal = jnp.concatenate([diagonal, jnp.ones(missing, diagonal.dtype)])
    off = jnp.concatenate([off, jnp.zeros(missing, off.dtype)])
    padded = jnp.concatenate([rhs, jnp.zeros(missing, rhs.dtype)])
    if varying(diagonal, off, padded):
        # Inside jax.shard_map lineax takes the place of an array for a part of its shape; this is what it calls.
        diagonal, off, padded = same_axes((diagonal, off, padded), None)
        none = jnp.zeros_like(padded[:1])
        lower, upper = jnp.concatenate([none, off]), jnp.concatenate([off, none])
        return jax.lax.linalg.tridiagonal_solve(lower, diagonal, upper, padded[:, None])[:n, 0]
    system = lineax.TridiagonalLinearOperator(diagonal, off, off)
    return lineax.linear_solve(system, padded, solver=lineax.Tridiagonal(), throw=False).value[:n]
