"""The model of Algorithm 1: an embedding, the coupled system v1 (4) by explicit Euler, and a linear head."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation, MultilayerEquation
from pdejax._simulate import simulate
from pdejax.solvers import Grid
from pdejax.studies.numerics._algorithm1_config import Algorithm1Config
from pdejax.terms import Attention, Diffusion, Exchange, FeedForward
from pdejax.terms._base import gaussian


class Algorithm1Model(eqx.Module):
    r"""$u_l(x, 0) = u_0(x) = W_{in}z(x) + P(x)$, then T Euler steps of v1 (20), lines 7–29, then class logits
    $\bar u_L W_{out} + b$ of the mean token of the last layer.

    `model(values (N, f), mask)` gives logits `(classes,)`; masks are not looked at: every patch is real.
    """

    equation: MultilayerEquation
    inputs: Float[Array, "f d"]
    positions: Float[Array, "N d"]
    head: Float[Array, "d classes"]
    bias: Float[Array, " classes"]
    dt: float = eqx.field(static=True)
    time_steps: int = eqx.field(static=True)
    start: str = eqx.field(static=True)

    def __init__(self, config: Algorithm1Config, *, features: int, classes: int, key: PRNGKeyArray):
        field_key, end_key = jax.random.split(key)
        self.equation = build_equation(config, Grid(config.tokens), key=field_key)
        shapes = ((features, config.dim), (config.tokens, config.dim), (config.dim, classes))
        inputs, positions, head = gaussian(end_key, *shapes)
        self.inputs, self.positions = inputs / features**0.5, 0.5 * positions
        self.head, self.bias = head / config.dim**0.5, jnp.zeros(classes)
        self.dt, self.time_steps, self.start = config.dt, config.time_steps, config.start

    def initial(self, values: Float[Array, "N f"]) -> Float[Array, "L N d"]:
        """The state at t = 0, all layers."""
        u0 = values.astype(self.inputs.dtype) @ self.inputs + self.positions
        layers = self.equation.size
        if self.start == "all":
            return jnp.broadcast_to(u0[None], (layers, *u0.shape))
        return jnp.zeros((layers, *u0.shape), u0.dtype).at[0].set(u0)

    def final(self, values: Float[Array, "N f"]) -> Float[Array, "L N d"]:
        """The state after T steps, all layers."""
        end = self.dt * self.time_steps
        u0 = self.initial(values)
        return simulate(Discretization(self.equation, "euler", t1=end, steps=self.time_steps), u0, save="end").us[-1]

    def hidden_states(self, values: Float[Array, "N f"], mask: Array | None = None) -> Float[Array, "K N d"]:
        """u₀, then every layer's state after T steps."""
        del mask
        return jnp.concatenate([self.initial(values)[:1], self.final(values)])

    def __call__(self, values: Float[Array, "N f"], mask: Array | None = None) -> Float[Array, " classes"]:
        return jnp.mean(self.hidden_states(values, mask)[-1], axis=0) @ self.head + self.bias

    def trainable(self) -> PyTree[bool]:
        """θ: all weights, but neither D nor α, which Algorithm 1 requires as inputs."""
        marked = jax.tree.map(eqx.is_inexact_array, self)

        def fixed(model):
            layers = model.equation.layers
            held = [layers.interaction.strength, layers.reaction.strength]
            return held if layers.diffusion is None else [*held, layers.diffusion.diffusivity]

        return eqx.tree_at(fixed, marked, replace_fn=lambda _: False)


def build_equation(config: Algorithm1Config, grid: Grid, *, key: PRNGKeyArray) -> MultilayerEquation:
    """v1 (4) with random weights: attention (9)–(11) with W^O, the ReLU network (13), exchange (18)–(19) with one W per pair
    of neighbours, since line 26 and line 27 name the same matrix from both sides."""
    keys = jax.random.split(key, 3 * config.layers)
    layers, exchange = [], []
    for l in range(config.layers):
        attention = Attention(config.dim, config.heads, strength=config.strength, key=keys[3 * l])
        reaction = FeedForward(config.dim, config.ffn, activation="relu", key=keys[3 * l + 1])
        diffusion = Diffusion(grid, config.diffusivity) if config.diffusivity > 0 else None
        layers.append(MasterEquation(interaction=attention, reaction=reaction, diffusion=diffusion))
        if l > 0:
            exchange.append(Exchange(config.dim, scale=config.exchange, key=keys[3 * l + 2]))
    return MultilayerEquation(layers, exchange)
