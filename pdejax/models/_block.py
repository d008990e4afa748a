"""One Transformer layer, written with Flax alone.

It shares no code with `pdejax.terms`, so that comparing the two tests both.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array, Bool, Float

from pdejax._products import dot_general
from pdejax._types import Activation, Field, Mask
from pdejax.models._architecture import Architecture

HeadField = Float[Array, "n H dk"]
AttentionMaps = Float[Array, "H n n"]
Allowed = Bool[Array, "1 m n"]

_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    # The same by erf: jax.nn.gelu takes erfc, which costs three times as much on a CPU.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def make_norm(architecture: Architecture, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    """LayerNorm or RMSNorm of one token over its d features, with the two-pass variance."""
    norm = nnx.LayerNorm if architecture.norm_type == "layernorm" else nnx.RMSNorm
    # The one-pass variance E[x²] − E[x]² loses digits when the mean is large.
    return norm(
        architecture.dim,
        epsilon=architecture.norm_eps,
        use_fast_variance=False,
        dtype=architecture.dtype,
        param_dtype=architecture.param_dtype,
        rngs=rngs,
    )


def apply_norm(norm: nnx.LayerNorm | nnx.RMSNorm, u: Field) -> Field:
    """`norm(u)`, also under JAX's strict dtype promotion, which Flax's statistics do not allow for."""
    with jax.named_scope("normalization"), jax.numpy_dtype_promotion("standard"):
        return norm(u)


def attention_mask(mask: Mask | None, n: int, causal: bool) -> Allowed | None:
    """Which keys each query may see, `(1, n, n)`, or `(1, 1, n)` when it is the same for all queries."""
    allowed = jnp.tril(jnp.ones((n, n), dtype=bool))[None] if causal else None
    if mask is None:
        return allowed
    keys = mask[None, None, :]
    return keys if allowed is None else allowed & keys


def rotate(x: HeadField, theta: float) -> HeadField:
    """Rotary position embedding (arXiv:2104.09864) in the half-split convention.

    Features j and j + d_k/2 of the token at position p turn by the angle p θ^(−2j/d_k); the paper pairs
    2j and 2j + 1 instead, which is the same up to a permutation of features.
    """
    n, _, size = x.shape
    # In float64 and cast afterwards: in float32 an angle near 1000 already has an error of 1e-4.
    angles = np.arange(n)[:, None] * theta ** (-2.0 * np.arange(size // 2) / size)
    cos = jnp.asarray(np.cos(angles)[:, None, :], dtype=x.dtype)
    sin = jnp.asarray(np.sin(angles)[:, None, :], dtype=x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
    """Multi-head softmax attention of one sequence, `out(Σ_j softmax_j(⟨q_i, k_j⟩/√d_k) v_j)`.

    Kernels: `q`, `k`, `v` `(d, H, dk)` and `out` `(H, dk, d)`.
    """

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        heads = (architecture.heads, architecture.head_dim)
        options = {
            "use_bias": architecture.bias,
            "dot_general": dot_general,
            "dtype": architecture.dtype,
            "param_dtype": architecture.param_dtype,
            "rngs": rngs,
        }
        self.architecture = architecture
        self.q = nnx.LinearGeneral(architecture.dim, heads, **options)
        self.k = nnx.LinearGeneral(architecture.dim, heads, **options)
        self.v = nnx.LinearGeneral(architecture.dim, heads, **options)
        self.out = nnx.LinearGeneral(heads, architecture.dim, axis=(-2, -1), **options)

    def __call__(self, u: Field, allowed: Allowed | None, maps: bool) -> tuple[Field, AttentionMaps | None]:
        q, k, v = self.q(u), self.k(u), self.v(u)
        if self.architecture.positions == "rotary":
            q, k = rotate(q, self.architecture.rotary_theta), rotate(k, self.architecture.rotary_theta)
        # Not nnx.dot_product_attention: it takes the softmax in float32 whatever the input, which caps
        # float64 at 1e-8, and it was 1.5 times slower on a CPU (n = 1000, 4 heads, float32).
        wide = jnp.float64 if v.dtype == jnp.float64 else jnp.float32
        weights = linen.dot_product_attention_weights(q.astype(wide), k.astype(wide), mask=allowed)
        mixed = jnp.einsum("hij,jhk->ihk", weights.astype(v.dtype), v)
        return self.out(mixed), weights if maps else None


class FeedForward(nnx.Module):
    """`σ(u W1 + b1) W2 + b2` per token, W1 `(d, ffn)`, W2 `(ffn, d)`."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        self.architecture = architecture
        self.first = nnx.Linear(
            architecture.dim,
            architecture.ffn,
            dtype=architecture.dtype,
            param_dtype=architecture.param_dtype,
            dot_general=dot_general,
            rngs=rngs,
        )
        self.second = nnx.Linear(
            architecture.ffn,
            architecture.dim,
            dtype=architecture.dtype,
            param_dtype=architecture.param_dtype,
            dot_general=dot_general,
            rngs=rngs,
        )

    def __call__(self, u: Field) -> Field:
        return self.second(_ACTIVATIONS[self.architecture.activation](self.first(u)))


class Block(nnx.Module):
    """One layer in every form of the table of `Architecture`."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        self.architecture = architecture
        self.attention = Attention(architecture, rngs=rngs)
        self.feed_forward = FeedForward(architecture, rngs=rngs)
        normed, peri = architecture.norm != "none", architecture.norm == "peri"
        self.norm1 = make_norm(architecture, rngs) if normed else None
        self.norm2 = make_norm(architecture, rngs) if normed and architecture.block != "parallel" else None
        self.norm1_out = make_norm(architecture, rngs) if peri else None
        self.norm2_out = make_norm(architecture, rngs) if peri else None

    def __call__(self, u: Field, allowed: Allowed | None, maps: bool) -> tuple[Field, AttentionMaps | None]:
        scale = self.architecture.residual_scale
        if self.architecture.block == "parallel":
            mixed, weights = self._interaction(u, allowed, maps)
            return self._substep(u, mixed + self._reaction(u), scale, "norm1"), weights
        if self.architecture.block == "macaron":
            u = self._substep(u, self._reaction(u), 0.5 * scale, "norm2")
            mixed, weights = self._interaction(u, allowed, maps)
            u = self._substep(u, mixed, scale, "norm1")
            return self._substep(u, self._reaction(u), 0.5 * scale, "norm2"), weights
        mixed, weights = self._interaction(u, allowed, maps)
        u = self._substep(u, mixed, scale, "norm1")
        return self._substep(u, self._reaction(u), scale, "norm2"), weights

    def _interaction(self, u: Field, allowed: Allowed | None, maps: bool) -> tuple[Field, AttentionMaps | None]:
        with jax.named_scope("attention"):
            if self.norm1 is not None and self.architecture.norm != "post":
                u = apply_norm(self.norm1, u)
            mixed, weights = self.attention(u, allowed, maps)
            return mixed if self.norm1_out is None else apply_norm(self.norm1_out, mixed), weights

    def _reaction(self, u: Field) -> Field:
        norm = self.norm1 if self.architecture.block == "parallel" else self.norm2
        with jax.named_scope("feed_forward"):
            if norm is not None and self.architecture.norm != "post":
                u = apply_norm(norm, u)
            change = self.feed_forward(u)
            return change if self.norm2_out is None else apply_norm(self.norm2_out, change)

    def _substep(self, u: Field, change: Field, scale: float, name: Literal["norm1", "norm2"]) -> Field:
        if self.architecture.residual == "add":
            u = u + scale * change
        elif self.architecture.residual == "gated":
            u = (1.0 - scale) * u + scale * change
        else:
            u = change
        return apply_norm(getattr(self, name), u) if self.architecture.norm == "post" else u
