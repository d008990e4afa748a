"""The interface every term of the master equation keeps, and what is passed along with the field."""

import abc
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._check import traced
from pdejax._types import Depth, Field, Mask


class FieldArgs(eqx.Module):
    """What a vector field needs beside `(t, u)`.

    - `mask`: `(n,)` booleans, True at real tokens and False at padding, or None for no padding. Attention
      ignores padded keys, averages over tokens leave them out, and diffusion lets no flux across their faces.
    """

    mask: Mask | None = None


class AbstractTerm(eqx.Module):
    """One right-hand-side term of v2 (4): a pure function `(t, u, args) -> du` on fields of shape `(n, d)`."""

    @abc.abstractmethod
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        """The term's contribution to `∂u/∂t` at depth `t`, shape `(n, d)`."""

    @abc.abstractmethod
    def damping(self) -> Float[Array, ""]:
        """Largest linear decay rate the term imposes (per unit depth): 4·D/Δx² for diffusion, the leak, γ.

        It limits explicit steps (v1 (21) knows only part of it) and rules out integrating backwards.
        """

    @abc.abstractmethod
    def check(self, n: int, d: int) -> None:
        """Raise `ValueError` if the term cannot act on a field of `n` tokens and `d` features."""


def mask_of(args: FieldArgs | None) -> Mask | None:
    return None if args is None else args.mask


def constant(value: ArrayLike) -> Array:
    """A coefficient as an inexact array leaf, so that changing its value never recompiles."""
    array = jnp.asarray(value)
    inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    # A type of its own: a weak one would change, and recompile, as soon as the number is updated.
    return jnp.asarray(array, array.dtype if inexact else jnp.result_type(float))


def check_norms(owner: str, d: int, *norms) -> None:
    """Raise `ValueError` unless every norm that is there has the width of the field."""
    for norm in norms:
        if norm is not None:
            check_features(f"{owner} (its norm)", norm.scale.shape[-1], d)


def scalar(owner: str, name: str, value: ArrayLike) -> Array:
    """A coefficient that is one number."""
    if jnp.ndim(value) or (concrete(value) and not np.isfinite(value)):
        raise ValueError(f"{owner}: {name}={value} must be one finite number.")
    return constant(value)


def at_least_float32(dtype):
    """The type to accumulate in: float32 for half precisions, else `dtype` itself (also under strict promotion)."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def gaussian(key: PRNGKeyArray, *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays of these shapes, from a single draw.

    One draw, because XLA compiles a random generator anew for every array: six of them under `vmap` took 4× as long.
    """
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.normal(key, (sum(sizes),))
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def token_average(values: Float[Array, "n d"], weights: Float[Array, " n"] | None, mask: Mask | None) -> Array:
    """Quadrature mean over real tokens, `Σ w_i v_i / Σ w_i`, of shape `(d,)`."""
    if weights is None and mask is None:
        return jnp.mean(values, axis=0)
    w = jnp.ones(values.shape[0], values.dtype) if weights is None else weights.astype(values.dtype)
    if mask is not None:
        w = jnp.where(mask, w, 0)
    return w @ values / jnp.sum(w)


def concrete(x) -> bool:
    """Whether a value can be looked at, i.e. is not traced."""
    return not traced(x)


def check_features(owner: str, expected: int, d: int) -> None:
    if d != expected:
        raise ValueError(
            f"{owner} was built for fields of width dim={expected}, but the field has {d} features. "
            f"Pass a field of shape (n, {expected}) or build the term with dim={d}."
        )


def check_grid(owner: str, grid_n: int, n: int) -> None:
    if n != grid_n:
        raise ValueError(
            f"{owner} was built on a grid of {grid_n} tokens, but the field has {n}. "
            f"Use Grid({n}, ...) or a field of shape ({grid_n}, d)."
        )
