"""What a model is given, checked: tokens, initial fields and masks of one sequence."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from pdejax._check import concretely, finite, traced
from pdejax._types import Field
from pdejax.models._architecture import Architecture


def require_x64(architecture: Architecture) -> None:
    """Raise `ValueError` for a float64 model while JAX's 64-bit mode is off."""
    if "float64" in (architecture.dtype, architecture.param_dtype) and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "a float64 model needs JAX's 64-bit mode: jax.config.update('jax_enable_x64', True), or the "
            "context jax.enable_x64(True); or use dtype='float32'"
        )


@concretely
def checked_tokens(owner: str, architecture: Architecture, tokens: ArrayLike) -> Array:
    """Return ids `(n,)`, or values `(n, inputs)`; also from `(n,)` when `inputs` is 1."""
    x = jnp.asarray(tokens)
    ids = architecture.vocab is not None
    if not ids and x.ndim == 1 and architecture.inputs == 1:
        x = x[:, None]
    if x.ndim != (1 if ids else 2) or (not ids and x.shape[1] != architecture.inputs):
        wanted = "(n,)" if ids else f"(n, {architecture.inputs})"
        raise ValueError(
            f"{owner}: tokens has shape {x.shape}; it must be {wanted}, one sequence. For a batch use pdejax.observe or jax.vmap."
        )
    _check_length(owner, "tokens", x.shape[0], architecture)
    kind = jnp.integer if ids else jnp.floating
    if not jnp.issubdtype(x.dtype, kind):
        wanted = (
            f"integer ids for vocab={architecture.vocab}"
            if ids
            else f"floating values for inputs={architecture.inputs}"
        )
        raise TypeError(f"{owner}: tokens has type {x.dtype}; it must be {wanted}.")
    if not ids:
        finite(owner, "tokens", x)
        return x
    check_range(owner, architecture, tokens)
    return x


def check_range(owner: str, architecture: Architecture, ids: ArrayLike) -> None:
    """Raise `ValueError` for concrete ids outside the vocabulary; looked at in NumPy, before JAX makes them int32."""
    if traced(ids) or architecture.vocab is None:
        return
    known = np.asarray(ids)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= architecture.vocab:
        raise ValueError(
            f"{owner}: tokens has ids from {low} to {high}; they must lie in [0, {architecture.vocab - 1}], see vocab."
        )


@concretely
def checked_field(owner: str, architecture: Architecture, u0: ArrayLike, dtype: Any) -> Field:
    """Return an initial field `(n, d)` in this type."""
    u = jnp.asarray(u0)
    if u.ndim != 2 or u.shape[1] != architecture.dim:
        raise ValueError(
            f"{owner}: u0 has shape {u.shape}; it must be (n, {architecture.dim}), one sequence. For a batch use jax.vmap."
        )
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise TypeError(f"{owner}: u0 has type {u.dtype}; it must be real and floating.")
    _check_length(owner, "u0", u.shape[0], architecture)
    finite(owner, "u0", u)
    return u.astype(dtype)


def _check_length(owner: str, name: str, n: int, architecture: Architecture) -> None:
    if n == 0:
        raise ValueError(f"{owner}: {name} is empty; give at least one token.")
    if architecture.max_length is not None and n > architecture.max_length:
        raise ValueError(f"{owner}: {name} has {n} tokens, more than max_length={architecture.max_length}.")


@functools.cache
def sinusoidal(n: int, d: int) -> np.ndarray:
    """Sines and cosines of the positions, `(n, d)`; arXiv:1706.03762 §3.5."""
    features = np.arange(d)
    angles = np.arange(n)[:, None] / 10000.0 ** (2 * (features // 2) / d)
    return np.where(features % 2 == 0, np.sin(angles), np.cos(angles))
