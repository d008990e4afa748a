"""A Transformer classifier and its training step as one would write them with Flax and optax alone, batch first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Block(nnx.Module):
    """Pre-LN: u += attention(LN u), then u += FFN(LN u)."""

    def __init__(self, dim: int, heads: int, ffn: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, use_bias=False, rngs=rngs)
        self.first, self.second = nnx.Linear(dim, ffn, rngs=rngs), nnx.Linear(ffn, dim, rngs=rngs)

    def __call__(self, u, mask):
        u = u + self.attention(self.norm1(u), mask=mask)
        return u + self.second(nnx.gelu(self.first(self.norm2(u)), approximate=False))


class Classifier(nnx.Module):
    """Token embedding, sinusoidal positions, blocks, mean over tokens, linear head."""

    def __init__(self, vocab: int, dim: int, heads: int, layers: int, ffn: int, classes: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(vocab, dim, rngs=rngs)
        self.blocks = nnx.List([Block(dim, heads, ffn, rngs) for _ in range(layers)])
        self.norm, self.head = nnx.LayerNorm(dim, rngs=rngs), nnx.Linear(dim, classes, rngs=rngs)
        self.dim = dim

    def __call__(self, tokens, mask):
        angles = np.arange(tokens.shape[1])[:, None] / 10000.0 ** (2 * (np.arange(self.dim) // 2) / self.dim)
        positions = np.where(np.arange(self.dim) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
        u = self.embedding(tokens) + positions
        allowed = mask[:, None, None, :]
        for block in self.blocks:
            u = block(u, allowed)
        u = self.norm(u)
        return self.head(jnp.sum(u * mask[..., None], axis=1) / jnp.sum(mask, axis=1)[:, None])


def training_step(model: Classifier, optimizer: optax.GradientTransformation):
    """(first carry, step): `step(carry, batch) -> (carry, loss)`, compiled, the carry donated."""
    graph, params = nnx.split(model)

    def loss(params, batch):
        logits = nnx.merge(graph, params)(batch.inputs, batch.mask)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))

    def step(carry, batch):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    return (params, optimizer.init(params)), jax.jit(step, donate_argnums=0)
