"""Transformers whose weights come from NumPy: to draw them with JAX compiles a program for every shape."""

import jax
import numpy as np
from flax import nnx

from pdejax.models import Architecture, Transformer


def drawn(architecture: Architecture, seed: int = 0, spread: float = 0.4) -> Transformer:
    """A model with every parameter random, biases and scales included, so that none can be forgotten."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: Transformer(architecture, rngs=nnx.Rngs(0)).parameters())
    parameters = {
        name: float(name.endswith("scale")) + spread * random.standard_normal(shape.shape)
        for name, shape in shapes.items()
    }
    return Transformer.from_parameters(architecture, parameters)
