"""The field of the cost study."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._equation import MasterEquation
from pdejax.solvers import Grid
from pdejax.studies.numerics._stiff_config import StiffConfig
from pdejax.terms import Attention, Diffusion, FeedForward


def build_field(config: StiffConfig) -> tuple[Any, Array]:
    """`make(D)`, the equation, and the initial field: ten cosines with amplitudes falling like 1/k, `(N, d)`."""
    ka, kr, ku = jax.random.split(jax.random.key(config.seed), 3)
    grid = Grid(config.tokens)
    attention = Attention(config.dim, config.heads, key=ka)
    reaction = FeedForward(config.dim, config.ffn, activation="gelu", key=kr)
    k = jnp.arange(1, 11)
    waves = jnp.cos(jnp.pi * k[None].astype(float) * grid.points[:, None])
    u0 = waves @ (jax.random.normal(ku, (10, config.dim)) / k[:, None].astype(float))

    def make(diffusivity: float) -> MasterEquation:
        return MasterEquation(interaction=attention, reaction=reaction, diffusion=Diffusion(grid, diffusivity))

    return make, u0
