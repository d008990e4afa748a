"""Checks of equations of v2 against NumPy, closed forms and refinement."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax._equation import MasterEquation
from pdejax.analysis import fit_order
from pdejax.analysis.growth import energy as energy_of
from pdejax.analysis.growth import energy_rates
from pdejax.analysis.numerics import fit_power
from pdejax.analysis.numerics._fit import OrderFit, order_over_seeds
from pdejax.models import Architecture, Transformer
from pdejax.runs._findings import Counterexample, Measured
from pdejax.solvers import Grid
from pdejax.studies.claims._claim import range_over
from pdejax.studies.claims._equations_v1 import (
    DIM,
    HEADS,
    HIDDEN,
    TOKENS,
    attention_by_numpy,
    curvature_by_numpy,
    every_seed,
    fields,
    network_by_numpy,
    relative,
)
from pdejax.terms import Attention, Diffusion, FeedForward, SpatialNorm

GAMMA, EPS = 0.8, 1e-6


def _equation(s: int) -> MasterEquation:
    k1, k2 = jax.random.split(jax.random.key(s))
    return MasterEquation(
        Attention(DIM, HEADS, key=k1, leak=True),
        FeedForward(DIM, HIDDEN, key=k2, activation="relu", leak=True),
        Diffusion(Grid(TOKENS), 0.02),
        SpatialNorm(GAMMA, eps=EPS),
    )


def _normalization_by_numpy(u: np.ndarray) -> np.ndarray:
    off = u - u.mean(axis=0)
    return -GAMMA * off / np.sqrt(np.mean(np.sum(off**2, axis=1)) + EPS)


def master(seed: int, seeds: int) -> Measured:
    """v2 (1), (4): A of (5), R of (6), diffusion and S of (9) by NumPy, added."""

    def error(s: int) -> float:
        equation, u = _equation(s), fields(s, TOKENS, DIM)
        expected = attention_by_numpy(equation.interaction, u) - u
        expected = expected + network_by_numpy(equation.reaction, u) - u
        expected = expected + 0.02 * curvature_by_numpy(u, 1 / TOKENS) + _normalization_by_numpy(u)
        return relative(equation(0.0, jnp.asarray(u), None), expected)

    return every_seed(error, seed, seeds)


def embedding(seed: int, seeds: int) -> Measured:
    """v2 (2): rows of the table plus sines and cosines."""

    def error(s: int) -> float:
        config = Architecture(
            vocab=7, dim=DIM, heads=HEADS, layers=1, ffn=HIDDEN, dtype="float64", param_dtype="float64"
        )
        model = Transformer(config, rngs=nnx.Rngs(s))
        tokens = np.random.default_rng(s).integers(0, 7, TOKENS)
        table = np.asarray(next(v for name, v in model.parameters().items() if name.startswith("embedding")))
        rate = np.arange(TOKENS)[:, None] / 10000.0 ** (np.arange(0, DIM, 2) / DIM)
        positions = np.stack([np.sin(rate), np.cos(rate)], axis=2).reshape(TOKENS, DIM)
        return relative(model.embed(jnp.asarray(tokens)), table[tokens] + positions)

    return every_seed(error, seed, seeds)


def interaction(seed: int, seeds: int) -> Measured:
    """v2 (5): attention on samples of a smooth field at N cell centres against NumPy's on 9 times as many, at the points that
    they share; and the sums of the rows of K."""
    orders, rows = [], []
    sizes = (16, 32, 64)
    for s in range(seeds):
        term = Attention(DIM, 1, key=jax.random.key(1000 * seed + s), leak=True)
        waves = fields(1000 * seed + s, 3, DIM)
        errors = []
        for n in sizes:
            coarse, fine = _smooth(n, waves), _smooth(9 * n, waves)
            exact = (attention_by_numpy(term, fine) - fine)[4::9]
            errors.append(relative(_applied(term, jnp.asarray(coarse)), exact))
        rows.append(float(np.max(np.abs(np.asarray(term.weights(jnp.asarray(coarse))).sum(-1) - 1))))
        orders.append(fit_order([1 / n for n in sizes], errors, last=3))
    return Measured({"order_in_dx": order_over_seeds(orders), "largest_row_sum_error": max(rows)}, {})


@eqx.filter_jit
def _applied(term: Attention, u: Array) -> Array:
    return term(jnp.zeros(()), u, None)


def _smooth(n: int, waves: np.ndarray) -> np.ndarray:
    # Powers: of cosines the midpoint rule would integrate far too well.
    x = (np.arange(n) + 0.5) / n
    return x[:, None] ** np.arange(len(waves)) @ waves


def reaction(seed: int, seeds: int) -> Measured:
    """v2 (6): the network minus u."""

    def error(s: int) -> float:
        term, u = _equation(s).reaction, fields(s, TOKENS, DIM)
        return relative(term(jnp.zeros(()), jnp.asarray(u), None), network_by_numpy(term, u) - u)

    return every_seed(error, seed, seeds)


def normalization(seed: int, seeds: int) -> Measured:
    """v2 (9) alone, from a field of mean 1 and deviation about 2, to a depth of twice σ₀/γ, by steps that resolve √ε/γ; and
    the term against NumPy."""
    ends, means, errors = [], [], []
    for s in range(seeds):
        u = fields(1000 * seed + s, TOKENS, DIM)
        u = u - u.mean(axis=0) + 1.0
        term = SpatialNorm(GAMMA, eps=EPS)
        errors.append(relative(term(jnp.zeros(()), jnp.asarray(u), None), _normalization_by_numpy(u)))
        deviation = np.sqrt(np.mean(np.sum((u - u.mean(axis=0)) ** 2, axis=1)))
        end = np.asarray(_flow(MasterEquation(stabilization=term), jnp.asarray(u), jnp.asarray(2 * deviation / GAMMA)))
        means.append(float(np.mean(end)))
        ends.append(float(np.sqrt(np.mean(np.sum((end - end.mean(axis=0)) ** 2, axis=1)))))
    still = np.array([[2.0], [0.0]])
    example = Counterexample(
        "two tokens (2, 0) of one feature: mean 1, variance 1. If S led to mean 0 and variance 1, the variance should stay and "
        "the mean fall; `rate` = −γ(u − μ)/σ with γ = 1 shrinks the variance and keeps the mean.",
        {"u": still, "rate": np.array([[-1.0], [1.0]])},
    )
    figures = {"mean_at_the_end": over_seeds(means), "deviation_at_the_end": over_seeds(ends)}
    return Measured(figures, {"largest_error_of_the_term": max(errors)}, example)


@eqx.filter_jit
def _flow(equation: MasterEquation, u: Array, depth: Array) -> Array:
    h = depth / 20_000

    def step(_, v):
        half = v + 0.5 * h * equation(0.0, v, None)
        return v + h * equation(0.0, half, None)

    return jax.lax.fori_loop(0, 20_000, step, u)


def interpolation(seed: int, seeds: int) -> Measured:
    """v2 (10) as printed and with ⌊τ⌋, just before and just after a layer, over the change of a layer."""
    printed, floor = [], []
    for s in range(seeds):
        states = np.cumsum(fields(1000 * seed + s, 6, TOKENS, DIM), axis=0)
        size = np.linalg.norm(states[3] - states[2])
        near = 1e-13
        for found, rounding in ((printed, np.ceil), (floor, np.floor)):
            ends = [_interpolated(states, tau, rounding) for tau in (2 - near, 2 + near)]
            found.append(float(np.linalg.norm(ends[1] - ends[0]) / size))
    example = Counterexample(
        "`layers` 0 … 4 of one number: between layers 1 and 2 the printed interpolant runs from 2 − (4 − 2) = 0 to 2, not from "
        "1 to 2.",
        {"layers": np.array([0.0, 1.0, 2.0, 4.0, 8.0])},
    )
    figures = {"jump_as_printed_over_step": range_over(printed), "jump_with_floor_over_step": range_over(floor)}
    return Measured(figures, {}, example)


def _interpolated(states: np.ndarray, tau: float, rounding) -> np.ndarray:
    k = int(rounding(tau))
    return states[k] + (tau - k) * (states[k + 1] - states[k])


def apriori(seed: int, seeds: int) -> Measured:
    """v2 (12) for linear fields u′ = uM with layers F_l = F + δ: error against (Tδ + ½T sup‖u″‖Δt)e^{‖M‖T}, T = 1."""
    worst = []
    for s in range(seeds):
        m = fields(1000 * seed + s, DIM, DIM) / 2
        u0, push = fields(1000 * seed + s + 1, 2, TOKENS, DIM)
        size = np.linalg.norm(m, 2)
        for count in (4, 16, 64):
            for delta in (0.0, 0.1):
                h, u, v = 1 / count, u0, u0
                errors, bend = [], 0.0
                for _ in range(count):
                    u = u + h * (u @ m + delta * push / np.linalg.norm(push))
                    bend = max(bend, np.linalg.norm(v @ m @ m))
                    v = v @ _exponential(h * m)
                    bend = max(bend, np.linalg.norm(v @ m @ m))
                    errors.append(np.linalg.norm(u - v))
                worst.append(max(errors) / ((delta + 0.5 * 1.1 * bend * h) * np.exp(size)))
    return Measured({"largest_error_over_bound": range_over(worst)}, {})


def _exponential(m: np.ndarray) -> np.ndarray:
    from scipy.linalg import expm

    return np.asarray(expm(m))


def energy(seed: int, seeds: int) -> Measured:
    """v2 (13), (14): ½ mean ‖u‖², and its derivative along the field against the sum of what each term adds."""

    def error(s: int) -> float:
        equation, u = _equation(s), jnp.asarray(fields(s, TOKENS, DIM))
        rate = jax.jvp(energy_of, (u,), (equation(0.0, u, None),))[1]
        own = relative(energy_of(u), 0.5 * np.mean(np.sum(np.asarray(u) ** 2, axis=1)))
        return max(own, relative(sum(energy_rates(equation, u).values()), rate))

    return every_seed(error, seed, seeds)


def integral(seed: int, seeds: int) -> Measured:
    """v2 (16): the integral of F along the way, as a further unknown of the same RK4 steps."""

    def error(s: int) -> float:
        u = jnp.asarray(fields(s, TOKENS, DIM))
        end, gained = _with_integral(_equation(s).only(("interaction", "reaction", "diffusion")), u)
        return relative(end, u + gained)

    return every_seed(error, seed, seeds)


@eqx.filter_jit
def _with_integral(equation: MasterEquation, u: Array) -> tuple[Array, Array]:
    h = 0.01

    def step(carry, _):
        v, gained = carry
        a = equation(0.0, v, None)
        b = equation(0.0, v + 0.5 * h * a, None)
        c = equation(0.0, v + 0.5 * h * b, None)
        d = equation(0.0, v + h * c, None)
        mean = (a + 2 * b + 2 * c + d) / 6
        return (v + h * mean, gained + h * mean), None

    return jax.lax.scan(step, (u, jnp.zeros_like(u)), length=100)[0]


def expansion(seed: int, seeds: int) -> Measured:
    """v2 (18): the remainder as ‖P‖ falls from 0.1 to 0.001; with ReLU at a token where every hidden unit bends."""
    sizes = [10.0**-e for e in (1.0, 1.5, 2.0, 2.5, 3.0)]
    found: dict[str, list[OrderFit]] = {"gelu": [], "relu": []}
    for s in range(seeds):
        u, push = fields(1000 * seed + s, 2, 1, DIM)
        for name, orders in found.items():
            term = FeedForward(DIM, HIDDEN, key=jax.random.key(1000 * seed + s), activation=name)
            if name == "relu":
                term = eqx.tree_at(lambda r: r.b1, term, -jnp.asarray(u)[0] @ term.w1)
            errors = [
                float(_remainder(term, jnp.asarray(u), jnp.asarray(e * push / np.linalg.norm(push)))) for e in sizes
            ]
            fit = fit_power if name == "relu" else fit_order
            orders.append(fit(sizes, errors))
    at_kink = over_seeds([fit.order for fit in found["relu"]])
    return Measured({"order_gelu": order_over_seeds(found["gelu"]), "order_relu_at_kink": at_kink}, {})


@eqx.filter_jit
def _remainder(term: FeedForward, u: Array, p: Array) -> Array:
    value, along = jax.jvp(term.network, (u,), (p,))
    return jnp.linalg.norm(term.network(u + p) - value - along)


def heads(seed: int, seeds: int) -> Measured:
    """v2 (19) with W_O = 1 and W_{V,h} the product of the head's own: against `Attention` with its leak, the −u of (5) taken out
    of the sum, and left in every head as (5) and (19) together print it."""
    outside, inside = [], []
    for s in range(seeds):
        u = fields(1000 * seed + s, TOKENS, DIM)
        term = Attention(DIM, HEADS, key=jax.random.key(1000 * seed + s), leak=True)
        total = np.zeros_like(u)
        weights = np.asarray(term.weights(jnp.asarray(u)))
        for h in range(HEADS):
            total += weights[h] @ u @ np.asarray(term.wv[:, h]) @ np.asarray(term.wo[h])
        found = np.asarray(term(jnp.zeros(()), jnp.asarray(u), None))
        outside.append(relative(found, total - u))
        inside.append(relative(found, total - HEADS * u))
    return Measured(
        {"error_with_leak_outside": range_over(outside), "distance_with_leak_in_every_head": range_over(inside)}, {}
    )
