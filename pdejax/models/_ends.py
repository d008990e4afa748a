"""The two ends of a trainable simulator: tokens to a field, and the field to logits."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._types import Field, Mask
from pdejax.models._architecture import Architecture
from pdejax.models._inputs import require_x64, sinusoidal
from pdejax.terms import LayerNorm, RMSNorm


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
    """The initial field u(·, 0) = E + P of v2 (2).

    `table` is `(vocab, d)`, or the map `(inputs, d)` of continuous inputs with its `bias` `(d,)`; `positions` `(max_length,
    d)` if learned.
    """

    table: Float[Array, "rows d"]
    bias: Float[Array, " d"] | None
    positions: Float[Array, "places d"] | None
    architecture: Architecture = eqx.field(static=True)

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
