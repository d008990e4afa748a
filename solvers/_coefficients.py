"""Coefficients of linear operators: a number, one per feature, or a matrix; and what is checked of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from pdejax.solvers._grid import Grid
from pdejax.solvers._modes import like, times


def inexact(name: str, value: Any) -> Array:
    """A coefficient as an inexact array leaf of a type of its own, so that changing its value never recompiles."""
    if isinstance(value, str) or value is None or callable(value):
        raise TypeError(f"{name} must be a number or an array; got {value!r}.")
    array = jnp.asarray(value)
    kind = array.dtype if jnp.issubdtype(array.dtype, jnp.inexact) else jnp.result_type(float)
    return jnp.asarray(array, kind)


def coefficient(name: str, value: Any, *, symmetric: bool = True) -> Array:
    """A scalar, (d,) or real (d, d), which must be symmetric unless said otherwise."""
    a = inexact(name, value)
    if a.ndim > 2 or (a.ndim == 2 and a.shape[0] != a.shape[1]):
        raise ValueError(f"{name} has shape {a.shape}; allowed are a scalar, (d,) and (d, d).")
    if a.ndim == 2 and jnp.iscomplexobj(a):
        raise ValueError(f"{name} is a complex matrix; allowed are complex scalars and (d,), and real (d, d).")
    if isinstance(a, Tracer):
        return a
    concrete = np.asarray(a)
    if not np.all(np.isfinite(concrete)):
        raise ValueError(f"{name} has NaN or infinite entries.")
    if symmetric and a.ndim == 2 and np.abs(concrete - concrete.T).max() > rounding(concrete):
        raise ValueError(
            f"{name} must be symmetric, so that a rotation of the features makes it diagonal; it differs from its "
            f"transpose by {np.abs(concrete - concrete.T).max():.3g}. A CoupledOperator takes any matrix."
        )
    return a


def symbol_of(grid: Grid, value: Any) -> Array:
    """Eigenvalues `(n,)`, one per mode of the grid."""
    found = inexact("symbol", value)
    if found.shape != (grid.n,) or jnp.iscomplexobj(found):
        raise ValueError(
            f"symbol has shape {found.shape}; it must be ({grid.n},) real eigenvalues, one per mode of the grid."
        )
    if not isinstance(found, Tracer) and not np.isfinite(np.asarray(found)).all():
        raise ValueError("symbol has NaN or infinite entries.")
    return found


def added(a: Array, b: Array) -> Array:
    """The sum of two coefficients, each a scalar, `(d,)` or `(d, d)`, in the wider type."""
    kind = np.promote_types(a.dtype, b.dtype)
    a, b = a.astype(kind), b.astype(kind)
    if {a.ndim, b.ndim} == {0, 2} or {a.ndim, b.ndim} == {1, 2}:
        matrix, other = (a, b) if a.ndim == 2 else (b, a)
        return matrix + jnp.diag(jnp.broadcast_to(other, matrix.shape[:1]))
    return a + b


def rounding(a: np.ndarray) -> float:
    return 100.0 * float(np.finfo(a.dtype).eps) * a.shape[-1] * max(float(np.abs(a).max()), 1e-300)


def check_diffusivity(d: np.ndarray) -> None:
    lowest = float(np.min(np.real(np.linalg.eigvals(d) if d.ndim == 2 else d)))
    if lowest < (-rounding(d) if d.ndim == 2 else 0.0):
        raise ValueError(
            f"diffusivity must not be negative (a backward heat equation, which grows without bound as dx → 0); its "
            f"smallest {'eigenvalue' if d.ndim == 2 else 'value'} is {lowest:.3g}."
        )


def check_commuting(d: np.ndarray, m: np.ndarray) -> None:
    if max(d.ndim, m.ndim) < 2 or min(d.ndim, m.ndim) < 1:
        return
    if np.iscomplexobj(d) or np.iscomplexobj(m):
        raise ValueError("a complex diffusivity or matrix of shape (d,) cannot be combined with a (d, d) one.")
    d, m = (np.diag(a) if a.ndim == 1 else a for a in (d, m))
    product = d @ m
    gap = float(np.abs(product - product.T).max())
    if gap > d.shape[0] * np.abs(d).max() * rounding(m):
        raise ValueError(
            f"diffusivity and matrix must commute to be diagonal together; DM − MD has an entry {gap:.3g}. "
            "A CoupledOperator takes any two."
        )


def common_eigenvectors(d: Array, m: Array | None) -> Array | None:
    """An orthogonal V (d, d) with VᵀDV and VᵀMV diagonal; None where nothing needs rotating, NaN where there is none."""
    basis = _eigenvectors(d, m)
    if basis is None or not any(isinstance(a, Tracer) for a in (d, m)):
        return basis
    good = jnp.asarray(True)
    for a in (d, m):
        if a is not None and a.ndim == 2:
            good = good & (jnp.max(jnp.abs(a - a.T)) <= _slack(a))
    if m is not None and min(d.ndim, m.ndim) > 0:
        kind = np.promote_types(d.dtype, m.dtype)
        one, two = (jnp.diag(a) if a.ndim == 1 else a for a in (d.astype(kind), m.astype(kind)))
        gap = jnp.max(jnp.abs(one @ two - (one @ two).T))
        good = good & (gap <= len(one) * jnp.max(jnp.abs(one)) * _slack(two))
    return jnp.where(good, basis, np.array(np.nan, basis.dtype))


def _slack(a: Array) -> Array:
    return 100.0 * float(jnp.finfo(a.dtype).eps) * a.shape[-1] * jnp.max(jnp.abs(a))


def _eigenvectors(d: Array, m: Array | None) -> Array | None:
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


def diagonal(a: Array, basis: Array | None) -> Array:
    """The eigenvalues of `a` in the order of the basis: a scalar, or (d,)."""
    if basis is None or a.ndim == 0:
        return a
    v = basis.astype(a.dtype)
    return jnp.sum(v * (a[:, None] * v if a.ndim == 1 else a @ v), axis=0)


def times_matrix(a: Array, u: Array) -> Array:
    """u Aᵀ for a scalar, (d,) or (d, d) A, in the precision of `u`."""
    return u @ like(a, u.dtype).T if a.ndim == 2 else times(a if a.ndim == 0 else a[None], u)


def check_shape(n: int, width: int | None, shape: tuple[int, ...]) -> None:
    allowed = f"({n}, {'d' if width is None else width})"
    if len(shape) != 2 or shape[0] != n or shape[1] < 1 or (width is not None and shape[1] != width):
        raise ValueError(f"the linear operator acts on states of shape {allowed}; got {tuple(shape)}.")
