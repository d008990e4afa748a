"""The two ends of a trainable simulator: tokens to a field, and the field to logits."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._types import Field, Mask
from pdejax.models._config import TransformerConfig
from pdejax.models._transformer import _check_ids, _check_values, _require_x64, _sinusoidal
from pdejax.terms import LayerNorm, RMSNorm


def lecun(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
    """Truncated normal of variance 1/fan_in, the initialization of the Transformer's kernels."""
    # The factor makes up for the tails beyond two standard deviations.
    scale = jnp.asarray(fan_in**-0.5 / 0.87962566103423978, dtype)
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * scale


def make_norm(config: TransformerConfig) -> LayerNorm | RMSNorm:
    """A fresh norm of the config's type and width, in its parameter type."""
    norm = LayerNorm if config.norm_type == "layernorm" else RMSNorm
    return cast(norm(config.dim, eps=config.norm_eps), config.param_dtype)


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
    config: TransformerConfig = eqx.field(static=True)

    def __init__(self, config: TransformerConfig, *, key: PRNGKeyArray):
        _require_x64(config)
        first, second = jax.random.split(key)
        if config.vocab is not None:
            self.table = jax.random.normal(first, (config.vocab, config.dim), config.param_dtype)
            self.bias = None
        else:
            assert config.inputs is not None
            self.table = lecun(first, (config.inputs, config.dim), config.inputs, config.param_dtype)
            self.bias = jnp.zeros(config.dim, config.param_dtype)
        self.positions = None
        if config.positions == "learned":
            shape = (config.max_length or 0, config.dim)
            self.positions = jax.random.normal(second, shape, config.param_dtype) * jnp.asarray(
                0.02, config.param_dtype
            )
        self.config = config

    def __call__(self, tokens: ArrayLike) -> Field:
        config, x = self.config, jnp.asarray(tokens)
        kind = config.dtype
        if config.vocab is not None:
            u = jnp.take(self.table.astype(kind), _check_ids(x, config), axis=0)
        else:
            assert self.bias is not None
            u = _check_values(x, config) @ self.table.astype(kind) + self.bias.astype(kind)[None]
        if self.positions is not None:
            return u + self.positions[: u.shape[0]].astype(kind)
        if config.positions == "sinusoidal":
            return u + jnp.asarray(_sinusoidal(*u.shape), dtype=u.dtype)
        return u


class Readout(eqx.Module):
    """From the last field to logits: normalization if `normed`, mean over tokens (classification), linear map
    `weight (d, out)`, `bias (out,)`; nothing without a head."""

    norm: LayerNorm | RMSNorm | None
    weight: Float[Array, "d out"] | None
    bias: Float[Array, " out"] | None
    config: TransformerConfig = eqx.field(static=True)

    def __init__(self, config: TransformerConfig, normed: bool, *, key: PRNGKeyArray):
        self.norm = self.weight = self.bias = None
        if config.head != "none":
            size = (config.classes if config.head == "classification" else config.vocab) or 0
            self.weight = lecun(key, (config.dim, size), config.dim, config.param_dtype)
            self.bias = jnp.zeros(size, config.param_dtype)
            if normed:
                self.norm = make_norm(config)
        self.config = config

    def __call__(self, u: Field, mask: Mask | None) -> Float[Array, "..."]:
        if self.norm is not None:
            u = self.norm(u)
        if self.weight is None or self.bias is None:
            return u
        weight, bias = self.weight.astype(u.dtype), self.bias.astype(u.dtype)
        if self.config.head == "classification":
            mean = u.mean(axis=0) if mask is None else u.mean(axis=0, where=mask[:, None])
            return mean @ weight + bias
        return u @ weight + bias[None]
