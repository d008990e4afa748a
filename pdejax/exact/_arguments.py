"""Argument checks and the common floating type of the closed forms.

Values known while tracing (Python numbers, concrete arrays) are checked; traced ones cannot be, so under
`jit` an argument outside its range gives NaN or a value outside the formula's meaning.
"""

import functools
import numbers
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Real

from pdejax._arguments import checked
from pdejax._check import spoken_by

F = TypeVar("F", bound=Callable[..., Any])
Boundary = Literal["neumann", "dirichlet", "periodic"]
Values = Real[ArrayLike, "..."]


def closed_form(function: F) -> F:
    """Decorate a public function: its arguments are checked, and what it refuses begins with its name."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with spoken_by(function.__name__):
            return function(*args, **kwargs)

    return cast(F, checked(run))


def as_float(*values: Any) -> tuple[Array, ...]:
    """The arguments as arrays of one floating type: that of the floating arrays among them, else the
    default.

    Python numbers, also traced ones (weakly typed), have no say.
    """
    dtypes = [
        v.dtype
        for v in values
        if isinstance(v, jax.Array | np.ndarray)
        and jnp.issubdtype(v.dtype, jnp.floating)
        and not getattr(v, "weak_type", False)
    ]
    dtype = jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)
    return tuple(jnp.asarray(v, dtype) for v in values)


def require(name: str, value: Any, condition: Callable[[np.ndarray], Any], allowed: str) -> None:
    """`ValueError` unless all entries of a concrete `value` fulfil `condition`; NaN never does."""
    if isinstance(value, Tracer):
        return
    if not np.all(condition(np.asarray(value))):
        raise ValueError(f"{name} must be {allowed}; got {value}.")


def finite(name: str, value: Any) -> None:
    require(name, value, np.isfinite, "finite")


def positive(name: str, value: Any) -> None:
    require(name, value, lambda v: (v > 0) & np.isfinite(v), "positive and finite")


def nonnegative(name: str, value: Any) -> None:
    require(name, value, lambda v: (v >= 0) & np.isfinite(v), "finite and not negative")


def depth(t: Any) -> None:
    """Depth t ≥ 0: the closed forms run forward from the initial state at t = 0."""
    nonnegative("t (depth since the initial state)", t)


def count(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least {least}; got {value!r} ({type(value).__name__}).")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
    return int(value)


def known_boundary(boundary: Any) -> Boundary:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be one of {', '.join(map(repr, get_args(Boundary)))}; got {boundary!r}.")
    return boundary


def square(name: str, matrix: Array, size: int) -> None:
    if matrix.shape != (size, size):
        raise ValueError(
            f"{name} must have shape {(size, size)} to act on tokens of {size} features; got {matrix.shape}."
        )


def shares(weights: Any, n: int, dtype: Any) -> Array:
    """Quadrature weights divided by their sum, shape (n,); equal ones for None."""
    if weights is None:
        return jnp.full(n, 1.0 / n, dtype)
    w = jnp.asarray(weights, dtype)
    if w.shape != (n,):
        raise ValueError(f"weights must have shape {(n,)}, one per token; got {w.shape}.")
    positive("weights", w)
    return w / jnp.sum(w)
