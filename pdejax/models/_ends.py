"""What a model is given, checked, and the two ends of a trainable simulator: tokens to a field, and the field to logits."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._check import concretely, finite, traced
from pdejax._types import Field, Mask
from pdejax.models._architecture import Architecture
from pdejax.solvers._written import one_line
from pdejax.terms import LayerNorm, RMSNorm


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


def lecun(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
    """Truncated normal of variance 1/fan_in, the initialization of the Transformer's kernels."""
    # The factor makes up for the tails beyond two standard deviations.
    scale = jnp.asarray(fan_in**-0.5 / 0.87962566103423978, dtype)
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * scale


def make_norm(architecture: Architecture) -> LayerNorm | RMSNorm:
    """A fresh norm of the architecture's type and width, in its parameter type."""
    norm = LayerNorm if architecture.norm_type == "layernorm" else RMSNorm
    return cast(norm(architecture.dim, eps=architecture.norm_eps), architecture.param_dtype)


def cast(module: Any, dtype: Any) -> Any:
    """The module with every float array of it in this type."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, module)


class Embedding(eqx.Module):
    """The initial field u(·, 0) = s E + P of v2 (2), s the architecture's `embedding_scale`.

    `table` is `(vocab, d)`, or the map `(inputs, d)` of continuous inputs with its `bias` `(d,)`; `positions` `(max_length,
    d)` if learned.
    """

    table: Float[Array, "rows d"]
    bias: Float[Array, " d"] | None
    positions: Float[Array, "places d"] | None
    architecture: Architecture = eqx.field(static=True)

    __repr__ = one_line

    def __init__(self, architecture: Architecture, *, key: PRNGKeyArray):
        require_x64(architecture)
        first, second = jax.random.split(key)
        if architecture.vocab is not None:
            self.table = jax.random.normal(first, (architecture.vocab, architecture.dim), architecture.param_dtype)
            self.bias = None
        else:
            assert architecture.inputs is not None
            self.table = lecun(
                first, (architecture.inputs, architecture.dim), architecture.inputs, architecture.param_dtype
            )
            self.bias = jnp.zeros(architecture.dim, architecture.param_dtype)
        self.positions = None
        if architecture.positions == "learned":
            shape = (architecture.max_length or 0, architecture.dim)
            self.positions = jax.random.normal(second, shape, architecture.param_dtype) * jnp.asarray(
                0.02, architecture.param_dtype
            )
        self.architecture = architecture

    def __call__(self, x: Array) -> Field:
        """The field of ids `(n,)` or values `(n, inputs)`, which the model has checked."""
        architecture, kind = self.architecture, self.architecture.state_dtype
        if architecture.vocab is not None:
            u = jnp.take(self.table.astype(kind), x, axis=0)
        else:
            assert self.bias is not None
            u = x.astype(kind) @ self.table.astype(kind) + self.bias.astype(kind)[None]
        if architecture.embedding_scale != 1:
            u = architecture.embedding_scale * u
        if self.positions is not None:
            return u + self.positions[: u.shape[0]].astype(kind)
        if architecture.positions == "sinusoidal":
            return u + jnp.asarray(sinusoidal(*u.shape), dtype=u.dtype)
        return u


class Readout(eqx.Module):
    """From the last field to logits: normalization if `normed`, mean over tokens (classification), linear map
    `weight (d, out)`, `bias (out,)`; nothing without a head."""

    norm: LayerNorm | RMSNorm | None
    weight: Float[Array, "d out"] | None
    bias: Float[Array, " out"] | None
    architecture: Architecture = eqx.field(static=True)

    __repr__ = one_line

    def __init__(self, architecture: Architecture, normed: bool, *, key: PRNGKeyArray):
        self.norm = self.weight = self.bias = None
        if architecture.head != "none":
            size = (architecture.classes if architecture.head == "classification" else architecture.vocab) or 0
            self.weight = lecun(key, (architecture.dim, size), architecture.dim, architecture.param_dtype)
            self.bias = jnp.zeros(size, architecture.param_dtype)
            if normed:
                self.norm = make_norm(architecture)
        self.architecture = architecture

    def __call__(self, u: Field, mask: Mask | None) -> Float[Array, "..."]:
        if self.norm is not None:
            u = self.norm(u)
        if self.weight is None or self.bias is None:
            return u
        weight, bias = self.weight.astype(u.dtype), self.bias.astype(u.dtype)
        if self.architecture.head == "classification":
            mean = u.mean(axis=0) if mask is None else u.mean(axis=0, where=mask[:, None])
            return mean @ weight + bias
        return u @ weight + bias[None]
