"""Linear operators of a stiff equation, constant in depth, whose structure makes solves and exponentials cheap."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Inexact, Num, Shaped

from pdejax._arguments import checked
from pdejax.solvers._coefficients import (
    added,
    check_commuting,
    check_diffusivity,
    check_shape,
    coefficient,
    common_eigenvectors,
    diagonal,
    symbol_of,
    times_matrix,
)
from pdejax.solvers._divergence import check_diffusible
from pdejax.solvers._grid import Grid
from pdejax.solvers._laplacian import Laplacian
from pdejax.solvers._modes import Modes, like, on_parts, times
from pdejax.solvers._phi import phi
from pdejax.solvers._written import one_line


class AbstractLinearOperator(eqx.Module):
    """A linear vector field u' = L u on fields (n, d), constant in t and u.

    As `diffrax.ODETerm(operator)` it is the second term of the `diffrax.MultiTerm(rest, linear)` that
    exponential and implicit-explicit solvers take.
    """

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, t: Any, u: Num[Array, "n d"], args: Any) -> Num[Array, "n d"]:
        """L u, shape (n, d)."""

    @abc.abstractmethod
    def solve(self, scale: Shaped[ArrayLike, ""], rhs: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """(I − scale·L)⁻¹ rhs with a scalar `scale` that may be traced, without any matrix of size n·d."""

    @abc.abstractmethod
    def spectral_radius(self) -> Inexact[Array, ""]:
        """An upper bound of |λ| over the eigenvalues λ of L, per unit depth."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless L acts on a state of this shape."""

    @abc.abstractmethod
    def shifted(self, rate: Shaped[ArrayLike, ""]) -> "AbstractLinearOperator":
        """L + rate·I."""

    @abc.abstractmethod
    def plus(self, other: "AbstractLinearOperator") -> "AbstractLinearOperator":
        """The sum with another operator of the same kind and grid. Raises `ValueError` for any other."""


class AbstractModalOperator(AbstractLinearOperator):
    """An operator that a fast transform along the tokens takes apart into one number or one matrix per mode, so that
    exponential solvers can take functions of it.
    """

    grid: eqx.AbstractVar[Grid]

    @abc.abstractmethod
    def to_modes(self, u: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """Coefficients of `u`: real for real `u`, at least float32."""

    @abc.abstractmethod
    def from_modes(self, coefficients: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """The field whose `to_modes` is `coefficients`."""

    @abc.abstractmethod
    def phis(self, scale: Shaped[ArrayLike, ""], largest: int, dtype: Any) -> tuple[Array, ...]:
        """φ_0 … φ_largest of scale·L on coefficients of this type: values `(n, d)`, or matrices `(n, d, d)`."""

    @abc.abstractmethod
    def is_complex(self) -> bool:
        """Whether L makes a real field complex."""


class DiagonalizableOperator(AbstractModalOperator):
    r"""$L u = (\nabla_h^2 u) D^\top + s(\nabla_h^2)u + u M^\top$: diffusion, any other symbol, and a constant linear
    reaction, diagonal in mode space.

    $\nabla_h^2$ is the [`Laplacian`][pdejax.solvers.Laplacian] of the grid. A fast transform along the tokens and a
    rotation of the features make L diagonal, with the eigenvalues λ_k D_j + s_k + M_j, so that any function f(L) costs
    O(n d log n), and O(n d²) more if D or M is a matrix.

    **Arguments:**

    - `grid`: at least 2 tokens.
    - `diffusivity` D, length² per unit depth: a scalar, `(d,)`, or a symmetric positive semidefinite `(d, d)`. A scalar
        or `(d,)` may be complex with real part ≥ 0, for dispersive equations (D = i gives the free Schrödinger
        equation of a complex field). Diffusivities below 0 are backward heat equations and are refused.
    - `matrix` M, per unit depth: None, a scalar (−γ for damping, −c for a leak), `(d,)`, or a symmetric `(d, d)`, of any
        sign. It must commute with D.
    - `symbol` s, per unit depth: None, or `(n,)` real eigenvalues of another operator on the tokens that has the same modes,
        in the order of `Laplacian(grid).eigenvalues()`: hyper-diffusion −κ∂⁴ is `-kappa * Laplacian(grid).eigenvalues() ** 2`.

    Values that are traced cannot be refused: for matrices that are not symmetric or do not commute every function of L is then
    NaN. Gradients with respect to a `(d, d)` matrix pass through its eigenvectors, and are NaN where eigenvalues repeat: a
    [`CoupledOperator`][pdejax.solvers.CoupledOperator] has neither limit.

    **Raises:** `ValueError` for a grid of one token, shapes that disagree, NaN or infinite entries, D with a negative
    eigenvalue, a matrix that is not symmetric, or D and M that do not commute (leave M in the nonlinear rest then).

    Source: v1 (8) and the linear parts of v2 (5), (6), (9).
    """

    grid: Grid
    diffusivity: Array
    matrix: Array | None
    rates: Array
    shifts: Array | None
    basis: Array | None
    symbol: Array | None

    @checked
    def __init__(self, grid: Grid, diffusivity: Any = 0.0, matrix: Any = None, symbol: Any = None):
        check_diffusible(grid)
        self.symbol = None if symbol is None else symbol_of(grid, symbol)
        d = coefficient("diffusivity", diffusivity)
        m = None if matrix is None else coefficient("matrix", matrix)
        widths = {a.shape[-1] for a in (d, m) if a is not None and a.ndim > 0}
        if len(widths) > 1:
            raise ValueError(
                f"diffusivity has shape {d.shape} and matrix {None if m is None else m.shape}; they must agree on d."
            )
        if not isinstance(d, Tracer):
            check_diffusivity(np.asarray(d))
            if m is not None and not isinstance(m, Tracer):
                check_commuting(np.asarray(d), np.asarray(m))
        self.grid, self.diffusivity, self.matrix = grid, d, m
        self.basis = common_eigenvectors(d, m)
        self.rates = diagonal(d, self.basis)
        self.shifts = None if m is None else diagonal(m, self.basis)

    @jax.named_scope("pdejax.solvers.DiagonalizableOperator")
    def __call__(self, t: Any, u: Num[Array, "n d"], args: Any) -> Num[Array, "n d"]:
        del t, args
        self.check(u.shape)
        return applied(self.grid, self.diffusivity, self.matrix, self.symbol, u)

    @property
    def modes(self) -> Modes:
        """The change of variables to mode space, without the eigenvalues."""
        return Modes(self.grid.boundary, self.basis)

    def to_modes(self, u: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """û, the coefficients in the orthonormal eigenvectors of L: real for real `u`, at least float32."""
        self.grid.check(u)
        return self.modes.to(u)

    def from_modes(self, coefficients: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """The field whose `to_modes` is `coefficients`."""
        self.grid.check(coefficients, "coefficients")
        return self.modes.back(coefficients)

    def phis(self, scale: Any, largest: int, dtype: Any) -> tuple[Array, ...]:
        z = times(scale, self.eigenvalues(jnp.finfo(dtype).dtype))
        return tuple(like(p, dtype) for p in phi(z, largest))

    def is_complex(self) -> bool:
        return any(a is not None and jnp.iscomplexobj(a) for a in (self.diffusivity, self.matrix))

    def eigenvalues(self, dtype: Any = None) -> Inexact[Array, "n #d"]:
        """λ_k D_j + s_k + M_j in the order of `to_modes`, shape (n, d), or (n, 1) where all features share them.

        Real, or complex if D or M is; of the precision of `dtype` (default: that of the grid).
        """
        laplacian = Laplacian(self.grid).eigenvalues(dtype)[:, None]
        rates = like(jnp.atleast_1d(self.rates)[None], laplacian.dtype)
        values = times(laplacian, rates)
        if self.symbol is not None:
            values = values + like(self.symbol[:, None], jnp.finfo(values.dtype).dtype).astype(values.dtype)
        if self.shifts is None:
            return values
        shifts = like(jnp.atleast_1d(self.shifts)[None], laplacian.dtype)
        kind = np.promote_types(values.dtype, shifts.dtype)
        return values.astype(kind) + shifts.astype(kind)

    def apply(self, f: Callable[[Array], Array], scale: Any, u: Num[Array, "n d"]) -> Num[Array, "n d"]:
        """f(scale·L) u, with f elementwise on eigenvalues: `operator.apply(jnp.exp, t, u)` is e^{tL} u.

        Real if `u`, D, M and the values of f are real; in the precision of `u`.
        """
        modes = self.to_modes(u)
        out = self.from_modes(times(f(times(scale, self.eigenvalues(modes.dtype))), modes))
        return out if jnp.iscomplexobj(out) else out.astype(u.dtype)

    def solve(self, scale: Any, rhs: Num[Array, "n d"]) -> Num[Array, "n d"]:
        return self.apply(lambda z: 1.0 / (1.0 - z), scale, rhs)

    def shifted(self, rate: Any) -> "DiagonalizableOperator":
        rate = jnp.asarray(rate)
        matrix = rate if self.matrix is None else added(self.matrix, rate)
        return DiagonalizableOperator(self.grid, self.diffusivity, matrix, self.symbol)

    def plus(self, other: AbstractLinearOperator) -> "DiagonalizableOperator":
        same_kind(self, other)
        assert isinstance(other, DiagonalizableOperator)
        parts = ((self.diffusivity, other.diffusivity), (self.matrix, other.matrix), (self.symbol, other.symbol))
        return DiagonalizableOperator(
            self.grid, *(b if a is None else a if b is None else added(a, b) for a, b in parts)
        )

    def spectral_radius(self) -> Inexact[Array, ""]:
        """max |λ_k D_j + s_k + M_j|, exact."""
        return jnp.max(jnp.abs(self.eigenvalues()))

    def check(self, shape: tuple[int, ...]) -> None:
        width = next((a.shape[-1] for a in (self.diffusivity, self.matrix) if a is not None and a.ndim > 0), None)
        check_shape(self.grid.n, width, shape)


def applied(grid: Grid, diffusivity: Array, matrix: Array | None, symbol: Array | None, u: Array) -> Array:
    """(∇²u) Dᵀ + s(∇²)u + u Mᵀ."""
    out = times_matrix(diffusivity, on_parts(Laplacian(grid), u))
    if symbol is not None:
        modes = Modes(grid.boundary, None)
        values = like(symbol[:, None], jnp.finfo(u.dtype).dtype)
        out = out + modes.back(times(values, modes.to(u))).astype(out.dtype)
    if matrix is None:
        return out
    more = times_matrix(matrix, u)
    kind = np.promote_types(out.dtype, more.dtype)
    return out.astype(kind) + more.astype(kind)


def same_grid(a: Any, b: Any) -> None:
    """Raise `ValueError` unless two operators on modes have one grid."""
    modal = isinstance(a, AbstractModalOperator) and isinstance(b, AbstractModalOperator)
    require_one_grid(a, b, alike=modal)


def same_kind(a: Any, b: Any) -> None:
    """Raise `ValueError` unless two operators are of one class and one grid."""
    require_one_grid(a, b, alike=type(a) is type(b))


def require_one_grid(a: Any, b: Any, *, alike: bool) -> None:
    one, two = a.grid, b.grid
    lengths = (one.length, two.length)
    known = not any(isinstance(x, Tracer) for x in lengths)
    same = alike and (one.n, one.boundary) == (two.n, two.boundary)
    if not same or (known and float(lengths[0]) != float(lengths[1])):
        raise ValueError(
            f"the linear parts of two terms, a {type(a).__name__} and a {type(b).__name__}, have no common transform on one "
            "grid: build both on the same grid, or use solver='rkc2' or 'tsit5'."
        )
