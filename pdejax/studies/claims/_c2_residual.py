"""C2: v2 §3.1, a residual layer "is forward Euler"."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.models import Architecture, Transformer, lift
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, range_over

TOKENS, LAYERS = 6, 3
BLOCKS: dict[str, dict[str, Any]] = {
    "parallel": {"block": "parallel", "norm": "pre"},
    "sequential": {"block": "sequential", "norm": "pre"},
    "post": {"block": "sequential", "norm": "post"},
    "macaron": {"block": "macaron", "norm": "pre"},
}
ROUNDING = 1e-12


def measure(seed: int, seeds: int) -> Measured:
    """Relative distance, over all layers, between a Transformer's states and one step per layer on the master equation with
    its weights: by Euler, as the claim has it, and by the solver that belongs to the block."""
    euler: dict[str, list[float]] = {name: [] for name in BLOCKS}
    native: dict[str, list[float]] = {name: [] for name in BLOCKS}
    for name, options in BLOCKS.items():
        for s in range(seeds):
            model = Transformer(_config(**options), rngs=nnx.Rngs(seed * 1000 + s))
            values = jax.random.normal(jax.random.key(seed * 1000 + s), (TOKENS, 4))
            states = model.hidden_states(values)
            lifted, size = lift(model), jnp.linalg.norm(states)
            layers: Any = lifted.field
            euler[name].append(float(jnp.linalg.norm(_euler(layers.stacked, states[0]) - states) / size))
            run = simulate(lifted, states[0], save="steps")
            native[name].append(float(jnp.linalg.norm(run.us[: LAYERS + 1] - states) / size))
    figures = {f"distance_to_euler_{name}": range_over(found) for name, found in euler.items()}
    corrected = {f"distance_to_native_{name}": range_over(found) for name, found in native.items()}
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """Exact for every block: holds; for the parallel one alone, the others being their own solvers': conditional."""
    exact = [name for name in BLOCKS if high(evidence[f"distance_to_euler_{name}"]) <= ROUNDING]
    if len(exact) == len(BLOCKS):
        return HOLDS
    explained = all(high(evidence[f"distance_to_native_{name}"]) <= ROUNDING for name in BLOCKS)
    return CONDITIONAL if "parallel" in exact and explained else FAILS


def bears_out(evidence: Evidence) -> bool:
    """Every block is one step of its own solver, to rounding."""
    return bool(all(high(evidence[f"distance_to_native_{name}"]) <= ROUNDING for name in BLOCKS))


def update_rule(evidence: Evidence) -> Verdict:
    """(11) follows from H⁺ = H + Δt F, and is met to rounding where F is what is added."""
    return HOLDS if high(evidence["distance_to_euler_parallel"]) <= ROUNDING else FAILS


def smallest() -> Counterexample:
    """(1 + a)(1 + b) is not 1 + a + b."""
    one = np.array(1.0)
    return Counterexample(
        "one token, one feature, attention A(u) = a·u and network R(u) = b·u: the sequential block gives (1 + a)(1 + b)u = 4, "
        "one Euler step of A + R gives (1 + a + b)u = 3.",
        {"u": one, "a": one, "b": one, "block": np.array(4.0), "euler": np.array(3.0)},
    )


@functools.cache
def _config(**options: Any) -> Architecture:
    sizes: dict[str, Any] = {"inputs": 4, "dim": 8, "heads": 2, "layers": LAYERS, "ffn": 16}
    return Architecture(**sizes, dtype="float64", param_dtype="float64", **options)


@eqx.filter_jit
def _euler(layers: MasterEquation, u0: Array) -> Array:
    """u_{l+1} = u_l + F_l(u_l), all states `(layers + 1, n, d)`."""
    arrays, rest = eqx.partition(layers, eqx.is_array)

    def step(u, layer):
        u = u + eqx.combine(layer, rest)(jnp.zeros(()), u, None)
        return u, u

    return jnp.concatenate([u0[None], jax.lax.scan(step, u0, arrays)[1]])


C2 = Claim(
    id="C2",
    statement="a residual layer H + F(H) is formally a forward Euler step of the master equation",
    source="v2 §3.1",
    quote="A standard L-layer Transformer employs a residual update rule: H^(ℓ+1) = H^(ℓ) + F_ℓ(H^(ℓ)) … This discrete "
    "process is formally equivalent to a forward Euler discretization of a continuous evolution equation with a time step of "
    "Δt = T/L. (v2 §3.1)",
    bears_out=bears_out,
    condition="of A + R for parallel blocks. Sequential blocks are Lie–Trotter steps with Euler substeps, Macaron blocks "
    "Strang steps, post-LN blocks Lie–Trotter steps with LayerNorm as a retraction after each substep: each exact to rounding",
    headline=("distance_to_euler_parallel", "distance_to_euler_sequential", "distance_to_native_sequential"),
    measure=measure,
    judge=judge,
)
