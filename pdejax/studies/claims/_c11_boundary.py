"""C11: v1 (7), a field that is 0 at both ends of the sequence."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax._equation import MasterEquation
from pdejax.analysis import fit_order
from pdejax.analysis.growth import energy_rates
from pdejax.analysis.numerics._fit import OrderFit, order_over_seeds
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.solvers import Grid, Laplacian
from pdejax.studies.claims._claim import Claim, high, near
from pdejax.terms import Diffusion, LayerNorm

SIZES = (16, 32, 64, 128)
MODES = 3000
TIMES = 12
FIXED = 0.01  # a depth that does not shrink with the grid
CASES = ("incompatible", "compatible", "neumann")


def measure(seed: int, seeds: int) -> Measured:
    """u_t = u_xx on N tokens, exact in depth, against the series of the field: the largest error over tokens and depths from
    Δx²/10 to 1/10, and its order in Δx. Initial fields a + b cos πx, not 0 at the ends, with (7) and with Neumann ends; and
    a sin πx + b sin 2πx with (7); and the first kind from a fixed depth on. Then the rate of energy at t = 0, and LayerNorm near
    0."""
    orders: dict[str, list[OrderFit]] = {case: [] for case in CASES}
    sizes, at_depth = [], []
    for s in range(seeds):
        a, b = np.random.default_rng([seed, s]).standard_normal(2)
        a += math.copysign(0.5, a)
        for case in CASES:
            errors = [worst_error(n, a, b, case)[0] for n in SIZES]
            orders[case].append(fit_order([1 / n for n in SIZES], errors, last=len(SIZES)))
            if case == "incompatible":
                fixed = [worst_error(n, a, b, case, FIXED)[0] for n in SIZES]
                at_depth.append(fit_order([1 / n for n in SIZES], fixed, last=len(SIZES)))
                sizes.append(errors[-1] / max(abs(a + b), abs(a - b)))
    loss = {boundary: [_energy_loss(n, boundary) for n in SIZES] for boundary in ("dirichlet", "neumann")}
    norm = LayerNorm(8)
    direction = jax.random.normal(jax.random.key(seed), (1, 8))
    near = norm(0.01 * direction / jnp.linalg.norm(direction))
    slope = jax.jvp(norm, (jnp.zeros((1, 8)),), (direction - jnp.mean(direction),))[1]
    figures = {
        "order_uniform_incompatible": order_over_seeds(orders["incompatible"]),
        "worst_error_at_128_tokens_over_end_value": over_seeds(sizes),
        "energy_loss_growth_with_tokens": float(np.polyfit(np.log(SIZES), np.log(loss["dirichlet"]), 1)[0]),
        "layernorm_size_of_token_of_size_0.01": float(jnp.linalg.norm(near)),
        "layernorm_slope_at_zero": float(jnp.linalg.norm(slope) / jnp.linalg.norm(direction - jnp.mean(direction))),
    }
    corrected = {
        "order_uniform_compatible": order_over_seeds(orders["compatible"]),
        "order_uniform_neumann": order_over_seeds(orders["neumann"]),
        "order_incompatible_from_depth_0.01": order_over_seeds(at_depth),
        "energy_loss_neumann_of_constant_field": max(loss["neumann"]),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """With (7) the largest error over depths, of an initial field that is not 0 at the ends, does not fall: conditional on
    E + P = 0 there, where order 2 is met; holds if it never suffers. Ends of intervals count."""
    if near(evidence["order_uniform_incompatible"], 2):
        return HOLDS
    full = near(evidence["order_uniform_compatible"], 2)
    return CONDITIONAL if full and high(evidence["order_uniform_incompatible"]) < 0.5 else FAILS


def bears_out(evidence: Evidence) -> bool:
    """Full order at a fixed depth, with compatible fields and with Neumann ends; LayerNorm does not keep tokens near 0."""
    names = ("order_uniform_compatible", "order_uniform_neumann", "order_incompatible_from_depth_0.01")
    away = evidence["layernorm_size_of_token_of_size_0.01"] > 1
    return bool(away and all(near(evidence[name], 2) for name in names))


def worst_error(
    n: int, a: float, b: float, case: str, start: float | None = None
) -> tuple[float, dict[str, np.ndarray]]:
    """The largest error over tokens and depths from `start` (Δx²/10), and the two solutions where it occurs."""
    grid = Grid(n, "neumann" if case == "neumann" else "dirichlet")
    x = np.asarray(grid.points)
    k = np.arange(1, MODES + 1)
    dx = 1 / n if case == "neumann" else 1 / (n + 1)
    depths = np.geomspace(0.1 * dx**2 if start is None else start, 0.1, TIMES)
    if case == "compatible":
        u0 = a * np.sin(np.pi * x) + b * np.sin(2 * np.pi * x)
        coefficients = np.where(k == 1, a, np.where(k == 2, b, 0.0))
    else:
        u0 = a + b * np.cos(np.pi * x)
        even = 1 + np.cos(np.pi * k)
        # Sine coefficients of 1 and of cos πx.
        cosine = np.where(k == 1, 0.0, 2 * k * even / (np.pi * np.maximum(k**2 - 1, 1)))
        coefficients = a * 2 * (2 - even) / (np.pi * k) + b * cosine
    found = np.asarray(_evolved(grid, jnp.asarray(u0), jnp.asarray(depths))).T
    decay = np.exp(-(np.pi**2) * k**2 * depths[:, None])
    if case == "neumann":
        exact = a + b * np.exp(-(np.pi**2) * depths)[:, None] * np.cos(np.pi * x)
    else:
        exact = (coefficients * decay) @ np.sin(np.pi * k[:, None] * x)
    at = int(np.argmax(np.max(np.abs(found - exact), axis=1)))
    arrays = {"u0": u0, "depth": depths[at], "numerical": found[at], "exact": exact[at]}
    return float(np.max(np.abs(found - exact))), {name: np.asarray(v) for name, v in arrays.items()}


@eqx.filter_jit
def _evolved(grid: Grid, u0: Array, depths: Array) -> Array:
    """exp(tL) u₀ `(n, k)`, exact for the grid."""
    laplacian = Laplacian(grid)
    amplitudes = laplacian.transform(u0)
    return laplacian.inverse(amplitudes[:, None] * jnp.exp(laplacian.eigenvalues()[:, None] * depths[None]))


def _energy_loss(n: int, boundary: str) -> float:
    """−dE/dt of the field 1 at t = 0."""
    equation = MasterEquation(diffusion=Diffusion(Grid(n, boundary), 1.0))
    return -float(energy_rates(equation, jnp.ones((n, 1)))["diffusion"])


def smallest() -> Counterexample:
    coarse, arrays = worst_error(4, 1.0, 0.0, "incompatible")
    fine, last = worst_error(64, 1.0, 0.0, "incompatible")
    arrays |= {f"{name}_64": item for name, item in last.items()}
    return Counterexample(
        "u₀ = 1 on 4 tokens and on 64, u_t = u_xx with (7): `numerical` against the field's own `exact` values at one shallow "
        f"`depth`. The largest error is {coarse:.3f} and {fine:.3f}: refining only moves it to a shallower depth.",
        arrays,
    )


C11 = Claim(
    id="C11",
    statement="u(0, t) = u(L, t) = 0, the ends being start and end tokens, goes with u(x, 0) = E + P",
    source="v1 (6), (7)",
    quote="u(0, t) = u(L, t) = 0 (boundary condition, L being the sequence length) … In Transformer models like BERT, the "
    "initial condition corresponds to the input embeddings, while the boundary conditions can be interpreted as the start "
    "and end tokens of the sequence. (v1 A.1)",
    bears_out=bears_out,
    condition="only for embeddings that are 0 at both ends, and without LayerNorm, which maps tokens near 0 to size √d. "
    "Otherwise the field jumps at t = 0: the error falls with Δx² at every fixed depth, near the ends too, but not uniformly "
    "down to t = 0; Neumann ends need no condition",
    headline=("order_uniform_incompatible", "order_uniform_compatible", "order_uniform_neumann"),
    measure=measure,
    judge=judge,
)
