"""Uniform grids on [0, length]: token positions, quadrature weights and mesh-consistent norms."""

import math
import numbers
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Inexact, Real

from pdejax.solvers._written import one_line

Boundary = Literal["neumann", "dirichlet", "periodic"]

_REAL = (int, float, np.integer, np.floating, np.ndarray, jax.Array)


def _to_count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise TypeError(f"Grid: n={n!r} must be an integer of at least 1, the number of tokens.")
    if n < 1:
        raise ValueError(f"Grid: n={int(n)} must be an integer of at least 1, the number of tokens.")
    return int(n)


def _to_boundary(boundary: Any) -> Boundary:
    if boundary not in get_args(Boundary):
        allowed = ", ".join(repr(name) for name in get_args(Boundary))
        raise ValueError(f"boundary must be one of {allowed}; got {boundary!r}.")
    return boundary


def _to_length(length: Any) -> Any:
    if isinstance(length, bool) or not isinstance(length, _REAL):
        raise TypeError(f"length must be a positive real number; got {length!r} ({type(length).__name__}).")
    if jnp.shape(length) != ():
        raise ValueError(f"length must be a scalar; got an array of shape {jnp.shape(length)}.")
    if isinstance(length, Tracer):  # its value is unknown here
        return length
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length must be positive and finite; got {float(length)}.")
    if isinstance(length, jax.Array) and jnp.issubdtype(length.dtype, jnp.floating):
        return length
    # A Python float is weakly typed: float32 fields stay float32.
    return float(length)


class Grid(eqx.Module):
    """Uniform grid of `n` points on [0, length].

    | boundary | points | spacing dx | weights w |
    |---|---|---|---|
    | `"neumann"` | cell centres x_i = (i + 1/2) dx | length / n | dx |
    | `"periodic"` | x_i = i dx | length / n | dx |
    | `"dirichlet"` | interior points x_i = (i + 1) dx | length / (n + 1) | dx (3/2, 1, …, 1, 3/2) |

    i = 0 … n−1. The weights are positive, sum to `length` and integrate smooth functions with error O(dx²)
    (all orders for periodic ones). On the Dirichlet grid the two outer weights carry the end panels [0, dx]
    and [length − dx, length], so that functions which do not vanish at the ends are integrated correctly too;
    one interior point alone has weight `length`.

    **Arguments:**

    - `n`: number of tokens, at least 1. Static.
    - `boundary`: `"neumann"`, `"dirichlet"` or `"periodic"`. Static.
    - `length`: length of the domain, positive; a float, or a scalar array that may be traced or
        differentiated.

    **Raises:** `TypeError` or `ValueError` if an argument is not as above.

    The domain is Ω of v1 (1) and v2 (4) with `length` = 1 as default; the papers leave the grid open. Cell
    centres are the default because equal weights are then second order with no condition at the ends.
    """

    n: int = eqx.field(static=True, converter=_to_count)
    boundary: Boundary = eqx.field(static=True, converter=_to_boundary, default="neumann")
    length: Real[ArrayLike, ""] = eqx.field(converter=_to_length, default=1.0)

    __repr__ = one_line

    @property
    def spacing(self) -> Real[ArrayLike, ""]:
        """Distance dx between neighbouring points, in units of `length`."""
        return self.length / (self.n + 1 if self.boundary == "dirichlet" else self.n)

    @property
    def points(self) -> Float[Array, " n"]:
        """Positions x_i, shape (n,), in the default float type (that of `length` if it is an array)."""
        first = {"neumann": 0.5, "dirichlet": 1.0, "periodic": 0.0}[self.boundary]
        dx = jnp.asarray(self.spacing)
        return (jnp.arange(self.n, dtype=dx.dtype) + first) * dx

    @property
    def weights(self) -> Float[Array, " n"]:
        """Quadrature weights w_i, shape (n,), positive, Σ w_i = length."""
        pattern = np.ones(self.n)
        if self.boundary == "dirichlet":
            pattern[0] += 0.5
            pattern[-1] += 0.5
        dx = jnp.asarray(self.spacing)
        return jnp.asarray(pattern, dx.dtype) * dx

    def mean(self, u: Inexact[Array, "n *features"]) -> Inexact[Array, " *features"]:
        """Spatial mean (1/length) Σ_i w_i u_i, shape (d,) for a field (n, d)."""
        self.check(u)
        return jnp.sum(self._column(self.weights / self.length, u) * u, axis=0)

    def norm(self, u: Inexact[Array, "n *features"]) -> Float[Array, ""]:
        """Mesh-consistent L² norm sqrt(Σ_i w_i |u_i|²), which tends to (∫|u|² dx)^(1/2) as n grows."""
        self.check(u)
        return jnp.sqrt(jnp.sum(self._column(self.weights, u) * jnp.abs(u) ** 2))

    def max_norm(self, u: Inexact[Array, "n *features"]) -> Float[Array, ""]:
        """Largest Euclidean length of a token, max_i |u_i|."""
        self.check(u)
        return jnp.sqrt(jnp.max(jnp.sum(jnp.abs(u.reshape(self.n, -1)) ** 2, axis=1)))

    def check(self, u: Array, name: str = "u") -> None:
        """Raise `ValueError` unless the first axis of `u` runs over the grid's tokens."""
        if u.ndim == 0 or u.shape[0] != self.n:
            raise ValueError(
                f"{name} has shape {u.shape}, but the grid has n={self.n} tokens: "
                f"the first axis must have length {self.n}."
            )

    def _column(self, values: Float[Array, " n"], u: Array) -> Array:
        """`values` (n,) in the real type of `u`, shaped to multiply it."""
        return values.astype(jnp.finfo(u.dtype).dtype).reshape((self.n,) + (1,) * (u.ndim - 1))
