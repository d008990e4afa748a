"""Checks of equations of v1 against NumPy, differences and refinement."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation, MultilayerEquation
from pdejax._simulate import simulate
from pdejax.analysis import fit_order
from pdejax.analysis.numerics._fit import order_over_seeds
from pdejax.data import Batch
from pdejax.runs._findings import Measured
from pdejax.solvers import Euler, Grid, Laplacian
from pdejax.solvers._base import fresh_step
from pdejax.studies.claims._claim import range_over
from pdejax.studies.numerics._verify_cases import relative
from pdejax.terms import Attention, Diffusion, Exchange, FeedForward
from pdejax.training import Classification

TOKENS, DIM, HEADS, HIDDEN, DIFFUSIVITY, STRENGTH = 5, 4, 2, 6, 0.02, 0.7


def every_seed(error: Callable[[int], float], seed: int, seeds: int) -> Measured:
    """The error of an identity for every seed."""
    return Measured({"largest_relative_error": range_over([error(1000 * seed + s) for s in range(seeds)])}, {})


def fields(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, 2408]).standard_normal(shape)


def attention_by_numpy(term: Attention, u: np.ndarray) -> np.ndarray:
    """Concat(heads)W^O, head by head."""
    found = []
    for h in range(term.wq.shape[1]):
        q, k, v = (u @ np.asarray(w[:, h]) for w in (term.wq, term.wk, term.wv))
        logits = q @ k.T / np.sqrt(k.shape[1])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    joined = np.concatenate(found, axis=1)
    return joined @ np.asarray(term.wo).reshape(joined.shape[1], -1)


def network_by_numpy(term: FeedForward, u: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = (np.asarray(w) for w in (term.w1, term.b1, term.w2, term.b2))
    return np.maximum(0, u @ w1 + b1) @ w2 + b2


def curvature_by_numpy(u: np.ndarray, spacing: float) -> np.ndarray:
    """The three-point stencil with Neumann ends."""
    padded = np.concatenate([u[:1], u, u[-1:]])
    return (padded[2:] - 2 * padded[1:-1] + padded[:-2]) / spacing**2


def terms(seed: int) -> tuple[Attention, FeedForward, Diffusion]:
    k1, k2, k3, k4 = jax.random.split(jax.random.key(seed), 4)
    network = FeedForward(DIM, HIDDEN, key=k2, activation="relu")
    biases = jax.random.normal(k3, (HIDDEN,)), jax.random.normal(k4, (DIM,))
    network = eqx.tree_at(lambda r: (r.b1, r.b2), network, biases)
    return Attention(DIM, HEADS, key=k1, strength=STRENGTH), network, Diffusion(Grid(TOKENS), DIFFUSIVITY)


def _right_side(parts, u: np.ndarray) -> np.ndarray:
    attention, network, _ = parts
    found = DIFFUSIVITY * curvature_by_numpy(u, 1 / TOKENS)
    return found + STRENGTH * attention_by_numpy(attention, u) + network_by_numpy(network, u)


def master(seed: int, seeds: int) -> Measured:
    """v1 (1): the field of `MasterEquation` against its terms by NumPy."""

    def error(s: int) -> float:
        parts = terms(s)
        u = fields(s, TOKENS, DIM)
        equation = MasterEquation(interaction=parts[0], reaction=parts[1], diffusion=parts[2])
        return relative(equation(0.0, jnp.asarray(u), None), _right_side(parts, u))

    return every_seed(error, seed, seeds)


def attention(seed: int, seeds: int) -> Measured:
    """v1 (2), (9)–(11): `Attention` against NumPy, one head and two."""

    def error(s: int) -> float:
        u = fields(s, TOKENS, DIM)
        found = [Attention(DIM, h, key=jax.random.key(s)) for h in (1, HEADS)]
        return max(relative(a(jnp.zeros(()), jnp.asarray(u), None), attention_by_numpy(a, u)) for a in found)

    return every_seed(error, seed, seeds)


def initial(seed: int, seeds: int) -> Measured:
    """v1 (6): the first state of a trajectory."""

    def error(s: int) -> float:
        u = jnp.asarray(fields(s, TOKENS, DIM))
        parts = terms(s)
        run = simulate(Discretization(MasterEquation(reaction=parts[1]), "euler", t1=0.2, steps=2), u, save="steps")
        return relative(run.us[0], u)

    return every_seed(error, seed, seeds)


def laplacian(seed: int, seeds: int) -> Measured:
    """v1 (8): the order of the stencil, at the third cosine mode and at a random mixture of four."""
    found = []
    for s in range(seeds):
        weights = fields(1000 * seed + s, 4)
        k = np.arange(1, 5)
        errors = []
        for n in (32, 64, 128):
            x = (np.arange(n) + 0.5) / n
            modes = np.cos(np.pi * k * x[:, None])
            exact = -(modes * (np.pi * k) ** 2) @ weights
            errors.append(relative(Laplacian(Grid(n))(jnp.asarray(modes @ weights)), exact))
        found.append(fit_order([1 / n for n in (32, 64, 128)], errors, last=3))
    return Measured({"order_in_dx": order_over_seeds(found)}, {})


def reaction(seed: int, seeds: int) -> Measured:
    """v1 (12), (13): the network and an external input."""

    def error(s: int) -> float:
        u = fields(s, TOKENS, DIM)
        network = terms(s)[1]
        amplitude = jnp.asarray(fields(s, DIM))

        def source(x, t):
            return jnp.sin(x)[:, None] * amplitude[None] * t

        driven = eqx.tree_at(lambda r: r.source, network, source, is_leaf=lambda leaf: leaf is None)
        x = (np.arange(TOKENS) + 0.5) / TOKENS
        expected = network_by_numpy(network, u) + np.sin(x)[:, None] * np.asarray(amplitude) * 0.3
        return relative(driven(jnp.asarray(0.3), jnp.asarray(u), None), expected)

    return every_seed(error, seed, seeds)


def loss(seed: int, seeds: int) -> Measured:
    """v1 (15): the loss of a batch is the mean over its halves."""

    def error(s: int) -> float:
        x = jnp.asarray(fields(s, 8, TOKENS, DIM))
        labels = jnp.arange(8) % 3
        weight = jnp.asarray(fields(s + 1, DIM, 3))
        task, mask = Classification(), jnp.ones((8, TOKENS), bool)

        def of(rows):
            batch = Batch(inputs=x[rows], mask=mask[rows], labels=labels[rows])
            return float(task.loss(lambda u, m: jnp.mean(u, axis=0) @ weight, batch, jax.random.key(0))[0])

        parts = 0.5 * (of(slice(0, 4)) + of(slice(4, 8)))
        return abs(of(slice(0, 8)) - parts) / abs(parts)

    return every_seed(error, seed, seeds)


def _layered(s: int):
    parts = [terms(3 * s + l) for l in range(3)]
    layers = [MasterEquation(interaction=a, reaction=r, diffusion=d) for a, r, d in parts]
    exchanges = []
    for l in range(2):
        made = Exchange(DIM, scale=0.5, key=jax.random.key(7 * s + l))
        exchanges.append(eqx.tree_at(lambda c: c.b, made, jnp.asarray(fields(s + l, DIM))))
    return parts, exchanges, MultilayerEquation(layers, exchanges)


def _coupled_by_numpy(parts, exchanges, u: np.ndarray) -> np.ndarray:
    found = np.stack([_right_side(p, v) for p, v in zip(parts, u, strict=True)])
    for l, c in enumerate(exchanges):
        flow = u[l] @ np.asarray(c.w).T + np.asarray(c.b)
        found[l + 1] += flow
        found[l] -= flow
    return found


def coupled(seed: int, seeds: int) -> Measured:
    """v1 (4), (17)–(19): three coupled layers against NumPy."""

    def error(s: int) -> float:
        parts, exchanges, equation = _layered(s)
        u = fields(s, 3, TOKENS, DIM)
        return relative(equation(0.0, jnp.asarray(u), None), _coupled_by_numpy(parts, exchanges, u))

    return every_seed(error, seed, seeds)


def discrete(seed: int, seeds: int) -> Measured:
    """v1 (20): a step of `simulate` with Euler against u + Δt·(right side) by NumPy."""

    def error(s: int) -> float:
        parts, exchanges, equation = _layered(s)
        u = fields(s, 3, TOKENS, DIM)
        run = simulate(Discretization(equation, "euler", t1=0.05, steps=1), jnp.asarray(u), save="end")
        return relative(run.us[-1], u + 0.05 * _coupled_by_numpy(parts, exchanges, u))

    return every_seed(error, seed, seeds)


def chain(seed: int, seeds: int) -> Measured:
    """v1 (22): the gradient of a sum by the input against the product of the Jacobians of four steps."""

    def error(s: int) -> float:
        return float(_chain(MasterEquation(*terms(s)), jnp.asarray(fields(s, TOKENS, DIM))))

    return every_seed(error, seed, seeds)


@eqx.filter_jit
def _chain(equation: MasterEquation, u: Array) -> Array:
    def step(v):
        return v + 0.1 * equation(0.0, v, None)

    def total(v):
        for _ in range(4):
            v = step(v)
        return jnp.sum(jnp.sin(v))

    states = [u]
    for _ in range(4):
        states.append(step(states[-1]))
    row = jnp.cos(states[-1]).ravel()
    for v in reversed(states[:-1]):
        row = row @ jax.jacfwd(step)(v).reshape(u.size, u.size)
    whole = jax.grad(total)(u).ravel()
    return jnp.linalg.norm(row - whole) / jnp.linalg.norm(whole)


def jacobian(seed: int, seeds: int) -> Measured:
    """v1 (23): its right side, column by column from its parts, against the derivative of one step of layer 1 in itself, and
    against that of layer 2 in layer 1, which is what ∂u_{l+1}/∂u_l would be in the coupled system."""
    h = 0.05
    step_errors, layer_errors = [], []
    for s in range(seeds):
        parts, exchanges, equation = _layered(1000 * seed + s)
        u = jnp.asarray(fields(1000 * seed + s, 3, TOKENS, DIM))
        whole = np.asarray(_step_jacobian(equation, u, jnp.asarray(h)))
        size = TOKENS * DIM
        attention, network, _ = parts[1]
        inside = _term_jacobian(attention, u[1]) + _term_jacobian(network, u[1])
        stencil = np.kron(curvature_by_numpy(np.eye(TOKENS), 1 / TOKENS), np.eye(DIM)) * DIFFUSIVITY
        given = np.kron(np.eye(TOKENS), np.asarray(exchanges[1].w))
        printed = np.eye(size) + h * (stencil + np.asarray(inside) - given)
        blocks = whole.reshape(3, size, 3, size)
        step_errors.append(relative(printed, blocks[1, :, 1]))
        layer_errors.append(relative(printed, blocks[2, :, 1]))
    return Measured(
        {"largest_relative_error_as_a_step": range_over(step_errors), "distance_as_a_layer": range_over(layer_errors)},
        {},
    )


@eqx.filter_jit
def _step_jacobian(equation: MultilayerEquation, u: Array, h: Array) -> Array:
    return jax.jacrev(lambda v: v + h * equation(0.0, v, None))(u).reshape(u.size, u.size)


@eqx.filter_jit
def _term_jacobian(term, u: Array) -> Array:
    return jax.jacrev(lambda v: term(jnp.zeros(()), v, None))(u).reshape(u.size, u.size)


def errors(seed: int, seeds: int) -> Measured:
    """v1 (24): how the error grows with the step, the spacing and a disturbance of attention, one at a time."""
    counts = jnp.asarray([32, 64, 128])
    strengths = [1e-2, 1e-3, 1e-4]
    in_time, in_attention = [], []
    for s in range(seeds):
        k1, k2, k3 = jax.random.split(jax.random.key(1000 * seed + s), 3)
        attention, network = Attention(DIM, HEADS, key=k1), FeedForward(DIM, HIDDEN, key=k2)
        equation = MasterEquation(interaction=attention, reaction=network)
        u = jnp.asarray(fields(1000 * seed + s, TOKENS, DIM))
        exact = _end(equation, u, jnp.asarray(4096))
        # Euler's own error at 4096 steps is a fraction of the others: its leading part is taken out.
        exact = 2 * exact - _end(equation, u, jnp.asarray(2048))
        found = [relative(_end(equation, u, n), exact) for n in counts]
        in_time.append(fit_order([1 / int(n) for n in counts], found, last=3))
        noise = jax.random.normal(k3, attention.wq.shape)
        base = _end(equation, u, counts[0])
        moved = [
            relative(
                _end(eqx.tree_at(lambda e: e.interaction.wq, equation, attention.wq + e * noise), u, counts[0]), base
            )
            for e in strengths
        ]
        in_attention.append(fit_order(strengths, moved, last=3))
    in_space = laplacian(seed, seeds).figures["order_in_dx"]
    return Measured(
        {
            "order_in_dt": order_over_seeds(in_time),
            "order_in_dx": in_space,
            "order_in_attention_error": order_over_seeds(in_attention),
        },
        {},
    )


@eqx.filter_jit
def _end(equation: MasterEquation, u: Array, steps: Array) -> Array:
    h = 1.0 / steps.astype(float)

    def step(_, v):
        return fresh_step(Euler(), diffrax.ODETerm(equation), jnp.zeros_like(h), h, v, None)[0]

    return jax.lax.fori_loop(0, steps, step, u)
