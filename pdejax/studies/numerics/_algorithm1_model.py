"""The model of Algorithm 1, v1 (4) by explicit Euler between embedding and head, and lines 36–38: condition (21), orders (24)."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation, MultilayerEquation, unstack
from pdejax._simulate import simulate
from pdejax.analysis import field_lipschitz, fit_order, mesh_norm
from pdejax.analysis.stability import corrected_step_bound, predict_dt_max, v1_21
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


GRIDS = (6, 18, 54, 162)
REFINEMENTS = (8, 16, 32, 64)
WAVES = 3


def stability_rows(model: Algorithm1Model, values: Float[Array, "N f"]) -> list[dict[str, Any]]:
    r"""Per layer: the left side of v1 (21), which should be at most 1, and the largest Δt that the corrected bound certifies,

    $$\Delta t \le 2/\big(4D_l/\Delta x^2 + G\big),\quad G = G_l + \|W_{l-1,l}\|_2 + \|W_{l,l+1}\|_2,\quad\text{if } G \le c,$$

    with c = 0, for v1's model has no leak: 0, that is none, unless all of G is. G_l is the Lipschitz constant of attention and
    network on the ball of the largest token met on the way, in the token-max norm (the maximum over tokens and layers for the
    coupled system, in which the exchange adds its two norms: the row sum). The same for all layers: `dt_eigenvalues`, the limit
    from the eigenvalues of the Jacobian at the end of the trajectory of one image, which is sharp for small perturbations there.
    """
    equation, dt = model.equation, model.dt
    end = dt * model.time_steps
    run = simulate(
        Discretization(equation, "euler", t1=end, steps=model.time_steps), model.initial(values), save="steps"
    )
    met = run.us[: int(run.stats.steps) + 1]
    radius = float(jnp.max(jnp.linalg.norm(met, axis=-1)))
    sharp = predict_dt_max(equation, run.us[-1], "euler") if np.isfinite(radius) else None
    pulls = np.zeros(equation.size + 1)
    if equation.exchange is not None:
        pulls[1:-1] = np.linalg.norm(np.asarray(equation.exchange.w), 2, axis=(-2, -1))
    rows = []
    for l in range(equation.size):
        layer = unstack(equation.layers, l)
        attention, diffusion = layer.interaction, layer.diffusion
        d = 0.0 if diffusion is None else float(diffusion.diffusivity)
        dx = 1.0 / values.shape[0] if diffusion is None else float(jnp.asarray(diffusion.grid.spacing))
        output = float(jnp.linalg.norm(attention.wo.reshape(-1, attention.wo.shape[-1]), 2))
        bound, rest = 0.0, float("inf")
        if np.isfinite(radius):
            local = field_lipschitz(layer.only(("interaction", "reaction")), values.shape[0], radius)
            rest = local.rest + float(pulls[l] + pulls[l + 1])
            bound = float(corrected_step_bound(dx, diffusivity=d, lipschitz=rest))
        left = float(v1_21(dt, dx, diffusivity=d, strength=float(attention.strength), output_norm=output))
        rows.append(
            {
                "layer": l + 1,
                "v1_21": left,
                "v1_21_holds": left <= 1,
                "lipschitz": rest,
                "corrected_dt": bound,
                "corrected_holds": dt <= bound,
                "dt_eigenvalues": None if sharp is None else float(sharp.dt_max),
                "radius": radius,
            }
        )
    return rows


def measure_orders(config: Algorithm1Config, model: Algorithm1Model, values: Float[Array, "N f"]) -> dict[str, Any]:
    r"""p and q of v1 (24) from solutions on successive steps and grids.

    Time: $\|u_h - u_{h/2}\|$ at t = TΔt for steps h of Δt/8 and less, which falls like h^p. Space: $\|u_N - u_{3N}\|$ at the N
    points, which the finer grid of cell centres contains, falls like Δx^q; there the initial field is the smooth part of the
    image's, its first three cosines, and the steps are RK4's, the same number on every grid. ε_att is 0: the attention is
    v1 (2) itself.
    """
    u0 = model.initial(values)
    end = model.dt * model.time_steps
    coarse = [_end(model.equation, u0, end, model.time_steps * r, "euler") for r in REFINEMENTS]
    steps = [end / (model.time_steps * r) for r in REFINEMENTS]
    in_time = [_distance(a, b) for a, b in itertools.pairwise(coarse)]
    p = fit_order(steps[:-1], in_time, last=3)
    rate = 4 * config.diffusivity * GRIDS[-1] ** 2
    number = max(8 * model.time_steps, int(np.ceil(end * rate / 2.0)))
    solutions = []
    for n in GRIDS:
        equation, start = _on_grid(model.equation, u0, n)
        solutions.append(_end(equation, start, end, number, "rk4"))
    in_space = [_distance(a, b[:, 1::3]) for a, b in itertools.pairwise(solutions)]
    q = fit_order([1 / n for n in GRIDS[:-1]], in_space, last=3)
    return {
        "time": {"steps": steps[:-1], "differences": in_time, "order": p.order, "ci": p.ci, "expected": 1},
        "space": {"tokens": list(GRIDS[:-1]), "differences": in_space, "order": q.order, "ci": q.ci, "expected": 2},
    }


def _end(equation: MultilayerEquation, u0: Array, end: float, steps: int, solver: str) -> Array:
    return simulate(Discretization(equation, solver, t1=end, steps=steps), u0, save="end").us[-1]


def _distance(a: Array, b: Array) -> float:
    return float(jnp.sqrt(jnp.mean(mesh_norm(a - b) ** 2)))


def _on_grid(equation: MultilayerEquation, u0: Float[Array, "L N d"], n: int) -> tuple[MultilayerEquation, Array]:
    """The same equation and the first cosines of the same initial field on n tokens."""
    old = Grid(u0.shape[1]).points
    k = jnp.pi * jnp.arange(min(WAVES, u0.shape[1])).astype(u0.dtype)
    # Cosines at cell centres are orthogonal, with squares that sum to N/2, and to N for k = 0.
    waves = jnp.cos(k[:, None] * old[None].astype(u0.dtype))
    amplitudes = jnp.einsum("kn,lnd->lkd", waves, u0) / jnp.sum(waves**2, axis=1)[None, :, None]
    new = Grid(n)
    start = jnp.einsum("kn,lkd->lnd", jnp.cos(k[:, None] * new.points[None].astype(u0.dtype)), amplitudes)
    diffusion = equation.layers.diffusion
    if diffusion is None:
        return equation, start
    moved = eqx.tree_at(lambda e: e.layers.diffusion.grid, equation, new)
    return moved, start
