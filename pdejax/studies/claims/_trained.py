"""Small Transformers trained for a moment on the digits bundled with scikit-learn, all seeds at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from pdejax.data import Dataset, load
from pdejax.models import Architecture, Transformer
from pdejax.training import merge_model, split_model

BATCH = 32
RATE = 1e-3
# Runs are so short that compiling takes longest.
QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters of all seeds, stacked, `start` and `end`; gradient norms and losses `(seeds, steps)` by training step; and
    `images (m, n, f)` not trained on with their `labels (m,)`."""

    start: PyTree[Array]
    end: PyTree[Array]
    static: Any
    norms: np.ndarray
    losses: np.ndarray
    images: Array
    labels: Array

    def model(self, parameters: PyTree[Array], i: int) -> Any:
        """The model of seed i."""
        return merge_model(jax.tree.map(lambda leaf: leaf[i], parameters), self.static)


def train(options: dict[str, Any], seed: int, seeds: int, steps: int, kept: int = 240) -> Trained:
    """Adam on 2 × 2 patches of 8 × 8 images, in float32, other weights and batches for each seed."""
    data = load("digits", "train", form="patches", patch=2)
    test = load("digits", "test", form="patches", patch=2, limit=kept)
    inputs, labels = _arrays(data)
    images, answers = _arrays(test)
    config = Architecture(**{"inputs": inputs.shape[-1], "head": "classification", "classes": 10, **options})
    models = [split_model(Transformer(config, rngs=nnx.Rngs(1000 * seed + s))) for s in range(seeds)]
    static = models[0][1]
    unravel = ravel_pytree(models[0][0])[1]
    # One vector for all parameters: an optimizer of one array, which compiles in a fraction of the time.
    start = jnp.stack([ravel_pytree(parameters)[0] for parameters, _ in models])
    optimizer = optax.adam(RATE)

    def outputs(vector, x):
        return jax.vmap(merge_model(unravel(vector), static))(x)

    def loss(vector, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs(vector, x), y))

    def one(vector, key):
        def step(carry, key):
            vector, state = carry
            chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
            found, gradient = jax.value_and_grad(loss)(vector, inputs[chosen], labels[chosen])
            updates, state = optimizer.update(gradient, state, vector)
            return (vector + updates, state), (jnp.linalg.norm(gradient), found)

        (end, _), traces = jax.lax.scan(step, (vector, optimizer.init(vector)), jax.random.split(key, steps))
        return end, traces

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        keys = jax.random.split(jax.random.key(seed), seeds)
        end, (norms, losses) = jax.jit(jax.vmap(one), compiler_options=QUICK)(start, keys)
    trees = [jax.vmap(unravel)(vectors) for vectors in (start, end)]
    return Trained(trees[0], trees[1], static, np.asarray(norms), np.asarray(losses), images, answers)


def _arrays(data: Dataset) -> tuple[Array, Array]:
    assert data.values is not None
    return jnp.asarray(data.values.astype(np.float32) / data.divisor), jnp.asarray(data.labels)
