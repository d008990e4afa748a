"""Padding of states, and `lax.map` in batches: what every analysis of derivatives needs of a state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._check import traced
from pdejax._types import Mask


def in_batches(function: Callable[[Array], Any], x: Array, size: int) -> Any:
    """`jax.lax.map` with `size` entries at once, the last ones repeated to fill a batch: a remainder would compile anew."""
    count = x.shape[0]
    size = min(size, count)
    index = np.minimum(np.arange(-(-count // size) * size), count - 1)
    found = jax.lax.map(function, x[index], batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)


def without_padding(u: Array, mask: Mask | None) -> Array:
    """Zeros at padded tokens, whatever was there."""
    return u if mask is None else jnp.where(real_entries(u.shape, mask), u, jnp.zeros((), u.dtype))


def real_entries(shape: tuple[int, ...], mask: Mask | None) -> Array:
    """Which entries of a field `(..., n, d)` belong to real tokens."""
    return jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(mask[:, None], shape)


def real_count(shape: tuple[int, ...], mask: Mask | None) -> int:
    """How many entries are real; all of them where the mask is traced."""
    known = mask is not None and not traced(mask)
    return int(np.prod(shape)) * (int(np.sum(np.asarray(mask))) if known else 1) // (shape[-2] if known else 1)


def length(x: Array) -> Array:
    """Euclidean length of a state."""
    return jnp.sqrt(jnp.sum(x**2))


def unit(x: Array) -> Array:
    """A state of length 1 in the same direction; 0 stays 0."""
    size = length(x)
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)
