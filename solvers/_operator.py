"""Linear operators of a stiff equation, constant in depth, whose structure makes solves and exponentials cheap."""

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Inexact, Num, Shaped

from pdejax.solvers._divergence import check_diffusible, divergence, extend, inverse_square_spacing
from pdejax.solvers._grid import Grid
from pdejax.solvers._laplacian import Laplacian
from pdejax.solvers._modes import Modes, like, on_parts, times

Operator = TypeVar("Operator", bound="AbstractLinearOperator")


class AbstractLinearOperator(eqx.Module):
    """A linear vector field u' = L u on fields (n, d), constant in t and u.

    As `diffrax.ODETerm(operator)` it is the second term of the `diffrax.MultiTerm(rest, linear)` that
    exponential and implicit-explicit solvers take.
    """

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


class DiagonalizableOperator(AbstractLinearOperator):
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

    Values that are traced cannot be checked: symmetry and commutation are then assumed. Gradients with respect
    to a `(d, d)` matrix pass through its eigenvectors, and are NaN where eigenvalues repeat.

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

    def __init__(self, grid: Grid, diffusivity: Any = 0.0, matrix: Any = None, symbol: Any = None):
        check_diffusible(grid)
        self.symbol = None if symbol is None else _symbol(grid, symbol)
        d = _coefficient("diffusivity", diffusivity)
        m = None if matrix is None else _coefficient("matrix", matrix)
        widths = {a.shape[-1] for a in (d, m) if a is not None and a.ndim > 0}
        if len(widths) > 1:
            raise ValueError(
                f"diffusivity has shape {d.shape} and matrix {None if m is None else m.shape}; they must agree on d."
            )
        if not isinstance(d, Tracer):
            _check_diffusivity(np.asarray(d))
            if m is not None and not isinstance(m, Tracer):
                _check_commuting(np.asarray(d), np.asarray(m))
        self.grid, self.diffusivity, self.matrix = grid, d, m
        self.basis = _common_eigenvectors(d, m)
        self.rates = _diagonal(d, self.basis)
        self.shifts = None if m is None else _diagonal(m, self.basis)

    @jax.named_scope("pdejax.solvers.DiagonalizableOperator")
    def __call__(self, t: Any, u: Num[Array, "n d"], args: Any) -> Num[Array, "n d"]:
        del t, args
        self.check(u.shape)
        out = _act(self.diffusivity, on_parts(Laplacian(self.grid), u))
        if self.symbol is not None:
            modes = Modes(self.grid.boundary, None)
            symbol = like(self.symbol[:, None], jnp.finfo(u.dtype).dtype)
            out = out + modes.back(times(symbol, modes.to(u))).astype(out.dtype)
        if self.matrix is None:
            return out
        more = _act(self.matrix, u)
        kind = np.promote_types(out.dtype, more.dtype)
        return out.astype(kind) + more.astype(kind)

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
        matrix = rate if self.matrix is None else _added(self.matrix, rate)
        return DiagonalizableOperator(self.grid, self.diffusivity, matrix, self.symbol)

    def plus(self, other: AbstractLinearOperator) -> "DiagonalizableOperator":
        _same_kind(self, other)
        assert isinstance(other, DiagonalizableOperator)
        parts = ((self.diffusivity, other.diffusivity), (self.matrix, other.matrix), (self.symbol, other.symbol))
        return DiagonalizableOperator(
            self.grid, *(b if a is None else a if b is None else _added(a, b) for a, b in parts)
        )

    def spectral_radius(self) -> Inexact[Array, ""]:
        """max |λ_k D_j + s_k + M_j|, exact."""
        return jnp.max(jnp.abs(self.eigenvalues()))

    def check(self, shape: tuple[int, ...]) -> None:
        width = next((a.shape[-1] for a in (self.diffusivity, self.matrix) if a is not None and a.ndim > 0), None)
        _check_shape(self.grid.n, width, shape)


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

    def __init__(self, grid: Grid, coefficient: Any, mask: Any = None, shift: Any = None):
        check_diffusible(grid)
        d = _inexact("coefficient", coefficient)
        c = None if shift is None else _inexact("shift", shift)
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
        return out if self.shift is None else out + _act(self.shift.astype(real), u)

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
        shift = rate if self.shift is None else _added(self.shift, rate)
        return TridiagonalOperator(self.grid, self.coefficient, self.mask, shift)

    def plus(self, other: AbstractLinearOperator) -> "TridiagonalOperator":
        _same_kind(self, other)
        assert isinstance(other, TridiagonalOperator)
        if (self.mask is None) != (other.mask is None):
            raise ValueError("two linear parts with and without a mask have no common solve; use 'rkc2' or 'tsit5'.")
        a, b = (
            c[:, None] if c.ndim < max(self.coefficient.ndim, other.coefficient.ndim) else c
            for c in (self.coefficient, other.coefficient)
        )
        shift = (
            self.shift
            if other.shift is None
            else other.shift
            if self.shift is None
            else _added(self.shift, other.shift)
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
        _check_shape(self.grid.n, width, shape)

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


def linear_operator_of(term: Any, kind: type[Operator] = AbstractLinearOperator) -> Operator:
    """The operator of `diffrax.ODETerm(operator)`, also inside the wrapper in which diffrax hands terms to a solver.

    **Raises:** `TypeError` if the term's vector field is no operator of this `kind`.
    """
    inner = term
    while not isinstance(inner, diffrax.ODETerm) and isinstance(getattr(inner, "term", None), diffrax.AbstractTerm):
        inner = inner.term
    field = getattr(inner, "vector_field", None)
    if isinstance(field, kind):
        return field
    found = type(inner).__name__ if field is None else f"ODETerm({type(field).__name__})"
    name = kind.__name__.removeprefix("Abstract")
    hint = (
        " It has a variable coefficient or a mask, and no matrix functions: use an implicit-explicit or stabilized "
        "explicit solver for it."
        if isinstance(field, TridiagonalOperator)
        else ""
    )
    raise TypeError(
        f"the second term must be diffrax.ODETerm(operator) with a {name}; got {found}.{hint} Pass "
        "diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator)): first the nonlinear rest, then the "
        "linear operator."
    )


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
    system = lineax.TridiagonalLinearOperator(diagonal, off, off)
    return lineax.linear_solve(system, padded, solver=lineax.Tridiagonal(), throw=False).value[:n]


def _inexact(name: str, value: Any) -> Array:
    """A coefficient as an inexact array leaf of a type of its own, so that changing its value never recompiles."""
    if isinstance(value, str) or value is None or callable(value):
        raise TypeError(f"{name} must be a number or an array; got {value!r}.")
    array = jnp.asarray(value)
    kind = array.dtype if jnp.issubdtype(array.dtype, jnp.inexact) else jnp.result_type(float)
    return jnp.asarray(array, kind)


def _coefficient(name: str, value: Any) -> Array:
    """A scalar, (d,) or symmetric real (d, d)."""
    a = _inexact(name, value)
    if a.ndim > 2 or (a.ndim == 2 and a.shape[0] != a.shape[1]):
        raise ValueError(f"{name} has shape {a.shape}; allowed are a scalar, (d,) and (d, d).")
    if a.ndim == 2 and jnp.iscomplexobj(a):
        raise ValueError(f"{name} is a complex matrix; allowed are complex scalars and (d,), and real (d, d).")
    if isinstance(a, Tracer):
        return a
    concrete = np.asarray(a)
    if not np.all(np.isfinite(concrete)):
        raise ValueError(f"{name} has NaN or infinite entries.")
    if a.ndim == 2 and np.abs(concrete - concrete.T).max() > _rounding(concrete):
        raise ValueError(
            f"{name} must be symmetric, so that a rotation of the features makes it diagonal; it differs from its "
            f"transpose by {np.abs(concrete - concrete.T).max():.3g}. Leave a part that is not symmetric in the "
            "nonlinear rest, or use a stabilized explicit solver."
        )
    return a


def _symbol(grid: Grid, value: Any) -> Array:
    """Eigenvalues `(n,)`, one per mode of the grid."""
    found = _inexact("symbol", value)
    if found.shape != (grid.n,) or jnp.iscomplexobj(found):
        raise ValueError(
            f"symbol has shape {found.shape}; it must be ({grid.n},) real eigenvalues, one per mode of the grid."
        )
    if not isinstance(found, Tracer) and not np.isfinite(np.asarray(found)).all():
        raise ValueError("symbol has NaN or infinite entries.")
    return found


def _added(a: Array, b: Array) -> Array:
    """The sum of two coefficients, each a scalar, `(d,)` or `(d, d)`, in the wider type."""
    kind = np.promote_types(a.dtype, b.dtype)
    a, b = a.astype(kind), b.astype(kind)
    if {a.ndim, b.ndim} == {0, 2} or {a.ndim, b.ndim} == {1, 2}:
        matrix, other = (a, b) if a.ndim == 2 else (b, a)
        return matrix + jnp.diag(jnp.broadcast_to(other, matrix.shape[:1]))
    return a + b


def _same_kind(a: AbstractLinearOperator, b: AbstractLinearOperator) -> None:
    one, two = a.grid, b.grid  # pyright: ignore[reportAttributeAccessIssue]
    same = type(a) is type(b) and (one.n, one.boundary) == (two.n, two.boundary)
    lengths = (one.length, two.length)
    known = not any(isinstance(x, Tracer) for x in lengths)
    if not same or (known and float(lengths[0]) != float(lengths[1])):
        raise ValueError(
            f"the linear parts of two terms, a {type(a).__name__} and a {type(b).__name__}, have no common transform on one "
            "grid: build both on the same grid, or use solver='rkc2' or 'tsit5'."
        )


def _rounding(a: np.ndarray) -> float:
    return 100.0 * float(np.finfo(a.dtype).eps) * a.shape[-1] * max(float(np.abs(a).max()), 1e-300)


def _check_diffusivity(d: np.ndarray) -> None:
    lowest = float(np.linalg.eigvalsh(d).min() if d.ndim == 2 else np.min(np.real(d)))
    if lowest < (-_rounding(d) if d.ndim == 2 else 0.0):
        raise ValueError(
            f"diffusivity must not be negative (a backward heat equation, which grows without bound as dx → 0); its "
            f"smallest {'eigenvalue' if d.ndim == 2 else 'value'} is {lowest:.3g}."
        )


def _check_commuting(d: np.ndarray, m: np.ndarray) -> None:
    if max(d.ndim, m.ndim) < 2 or min(d.ndim, m.ndim) < 1:
        return
    if np.iscomplexobj(d) or np.iscomplexobj(m):
        raise ValueError("a complex diffusivity or matrix of shape (d,) cannot be combined with a (d, d) one.")
    d, m = (np.diag(a) if a.ndim == 1 else a for a in (d, m))
    product = d @ m
    gap = float(np.abs(product - product.T).max())
    if gap > d.shape[0] * np.abs(d).max() * _rounding(m):
        raise ValueError(
            f"diffusivity and matrix must commute to be diagonal together; DM − MD has an entry {gap:.3g}. "
            "Leave the matrix in the nonlinear rest."
        )


def _common_eigenvectors(d: Array, m: Array | None) -> Array | None:
    """An orthogonal V (d, d) with VᵀDV and VᵀMV diagonal; None where nothing needs rotating."""
    matrices = [a for a in (d, m) if a is not None and a.ndim == 2]
    if not matrices:
        return None
    if m is None or min(d.ndim, m.ndim) == 0:
        return jnp.linalg.eigh(matrices[0])[1]
    kind = np.promote_types(d.dtype, m.dtype)
    both = [jnp.diag(a) if a.ndim == 1 else a for a in (d.astype(kind), m.astype(kind))]
    # Commuting matrices share the eigenvectors of a combination with a weight that merges no two eigenvalue pairs.
    sizes = [jnp.maximum(jnp.linalg.norm(a), jnp.finfo(kind).tiny) for a in both]
    return jnp.linalg.eigh(both[0] / sizes[0] + 0.6180339887498949 * both[1] / sizes[1])[1]


def _diagonal(a: Array, basis: Array | None) -> Array:
    """The eigenvalues of `a` in the order of the basis: a scalar, or (d,)."""
    if basis is None or a.ndim == 0:
        return a
    v = basis.astype(a.dtype)
    return jnp.sum(v * (a[:, None] * v if a.ndim == 1 else a @ v), axis=0)


def _act(a: Array, u: Array) -> Array:
    """u Aᵀ for a scalar, (d,) or (d, d) A, in the precision of `u`."""
    return u @ like(a, u.dtype).T if a.ndim == 2 else times(a if a.ndim == 0 else a[None], u)


def _check_shape(n: int, width: int | None, shape: tuple[int, ...]) -> None:
    allowed = f"({n}, {'d' if width is None else width})"
    if len(shape) != 2 or shape[0] != n or shape[1] < 1 or (width is not None and shape[1] != width):
        raise ValueError(f"the linear operator acts on states of shape {allowed}; got {tuple(shape)}.")
