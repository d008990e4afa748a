"""C1: v2 Thm 3.2, the continuum limit and its rate."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax._depth import DepthVarying, smooth_random
from pdejax._equation import MasterEquation
from pdejax._figure import Figure
from pdejax.analysis import fit_order, mesh_norm
from pdejax.analysis.numerics import fit_power
from pdejax.analysis.numerics._fit import order_over_seeds
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.solvers import RK4, Euler, Heun, LieTrotter, Strang
from pdejax.solvers._base import fresh_step
from pdejax.studies.claims._claim import Claim, low, near
from pdejax.studies.numerics._limits import iid_spreads
from pdejax.terms import Attention, FeedForward

TOKENS, DIM, DEPTHS = 6, 4, 4
COUNTS = (16, 32, 64, 128)
REFERENCE = {"gelu": 512, "relu": 2048}  # RK4 steps: a 250th of the finest error
LAYERS, DRAWS, SCALINGS = (4, 16, 64), 16, ("1/L", "1/sqrt(L)")
SCHEMES = {
    "euler": Euler,
    "lie": lambda: LieTrotter((Euler(), Euler())),
    "heun": Heun,
    "rk4": RK4,
    "strang_euler": lambda: Strang((Euler(), Euler())),
    "strang_heun": lambda: Strang((Heun(), Heun())),
}


def measure(seed: int, seeds: int) -> Measured:
    """Orders of the error, the largest over depths, of networks of 16 to 128 layers with weights smooth in depth; and
    how the spread between networks of independent layers changes with their number."""
    keys = jax.random.split(jax.random.key(seed), seeds)
    orders = smooth_orders(keys)
    spreads = zip(*(_exponents(jax.random.fold_in(key, 1)) for key in keys), strict=True)
    spread = {scaling: over_seeds(list(found)) for scaling, found in zip(SCALINGS, spreads, strict=True)}
    figures = {
        "order_euler": orders["euler"],
        "order_lie": orders["lie"],
        "iid_spread_exponent_at_scale_1_by_sqrt_L": spread["1/sqrt(L)"],
        "iid_spread_exponent_at_scale_1_by_L": spread["1/L"],
    }
    corrected = {f"order_{name}": found for name, found in orders.items() if name not in ("euler", "lie")}
    return Measured(figures, corrected, smallest(seed))


def judge(evidence: Evidence) -> Verdict:
    """With weights smooth in depth, as the theorem assumes, F_ℓ = F(·, ℓΔt), so that the layers are consistent with the equation,
    and Lipschitz where the states stay, parallel layers (Euler) and sequential ones (Lie–Trotter) tend to the equation at order
    1, which the interval of each must hold: both, one of them, or neither."""
    found = [near(evidence[name], 1) for name in ("order_euler", "order_lie")]
    return HOLDS if all(found) else CONDITIONAL if any(found) else FAILS


def bears_out(evidence: Evidence) -> bool:
    """Independent layers keep their spread at scale 1/√L and lose it like L^(−1/2) at 1/L; schemes have their orders, and RK4
    with ReLU none that is surely above 2."""
    exponents = {"1_by_sqrt_L": 0, "1_by_L": -0.5}
    limits = all(near(evidence[f"iid_spread_exponent_at_scale_{scale}"], e) for scale, e in exponents.items())
    orders = {"order_heun": 2, "order_rk4": 4, "order_strang_euler": 1, "order_strang_heun": 2}
    kept = all(near(evidence[name], order) for name, order in orders.items())
    return bool(limits and kept and low(evidence["order_rk4_relu"]) <= 2)


def smooth_orders(keys: Array) -> dict[str, Figure]:
    """By scheme, the fitted order over seeds; `rk4_relu`: with ReLU in place of GELU."""
    found: dict[str, Figure] = {}
    for activation, names in (("gelu", tuple(SCHEMES)), ("relu", ("rk4",))):
        equations, starts = draw(keys, activation)
        exact = trajectories(equations, starts, "rk4", jnp.asarray(REFERENCE[activation]))
        for name in names:
            errors = []
            for count in COUNTS:
                us = trajectories(equations, starts, name, jnp.asarray(count))
                errors.append(np.asarray(jnp.max(mesh_norm(us - exact), axis=1)))
            label = name if activation == "gelu" else f"{name}_{activation}"
            steps, by_seed = [1 / count for count in COUNTS], np.stack(errors, axis=1)
            # With ReLU errors depend on where in a step its kinks lie, as if at random: a regression, no extrapolation.
            found[label] = (
                over_seeds([fit_power(steps, e).order for e in by_seed])
                if activation == "relu"
                else order_over_seeds([fit_order(steps, e) for e in by_seed])
            )
    return found


@eqx.filter_jit
def draw(keys: Array, activation: str) -> tuple[DepthVarying, Array]:
    """A random equation, smooth in depth, and an initial field for each key."""

    def one(key):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        network = FeedForward(DIM, 8, key=k2, activation=activation)
        base = MasterEquation(interaction=Attention(DIM, key=k1), reaction=network)
        return smooth_random(base, 1.0, key=k3, modes=2), jax.random.normal(k4, (TOKENS, DIM))

    return eqx.filter_vmap(one)(keys)


@eqx.filter_jit
def trajectories(equations: DepthVarying, starts: Array, scheme: str, steps: Array) -> Array:
    """States `(seeds, depths, n, d)` at equal depths of [0, 1], with that many steps in all."""
    solver: Any = SCHEMES[scheme]()
    split = isinstance(solver, LieTrotter | Strang)
    h = 1.0 / steps.astype(float)
    inner = steps // DEPTHS

    def one(equation, u0):
        terms = equation.multiterm() if split else diffrax.ODETerm(equation)

        def step(i, carry):
            first, u = carry
            t = (first + i).astype(float) * h
            return first, fresh_step(solver, terms, t, t + h, u, None)[0]

        def block(u, k):
            u = jax.lax.fori_loop(0, inner, step, (k * inner, u))[1]
            return u, u

        return jax.lax.scan(block, u0, jnp.arange(DEPTHS))[1]

    return eqx.filter_vmap(one)(equations, starts)


def _exponents(key: Array) -> list[float]:
    """e of spread ∝ L^e between networks of independent layers, at each residual scale."""
    k1, k2, k3 = jax.random.split(key, 3)
    base = MasterEquation(interaction=Attention(DIM, key=jax.random.key(0)), reaction=FeedForward(DIM, 8, key=k1))
    u0 = jax.random.normal(k2, (TOKENS, DIM))
    return [r.exponent for r in iid_spreads(base, u0, layers=LAYERS, scalings=SCALINGS, draws=DRAWS, key=k3)]


def smallest(seed: int) -> Counterexample:
    """A product of independent factors 1 ± 1/√L."""
    signs = np.random.default_rng([seed, 1]).choice(np.array([-1, 1], np.int8), (64, 256))
    layers = np.array([16, 64, 256])
    ends = np.stack([np.prod(1 + signs[:, :count] / np.sqrt(count), axis=1) for count in layers])
    return Counterexample(
        "one token, one feature: u ← u(1 + s_l/√L) with independent signs s_l, the first L of each row of `signs`; `ends` at "
        "each number of `layers`. They spread as widely at each L, so no network tends to an ODE's solution.",
        {"signs": signs, "layers": layers, "ends": ends},
    )


C1 = Claim(
    id="C1",
    statement="with layers uniformly Lipschitz, smooth in ℓ and consistent with a field F, the trajectory converges uniformly, "
    "at rate O(Δt), to the solution of an ODE",
    source="v2 Thm 3.2, (3), (12)",
    quote="Assuming the family of discrete operators {F_ℓ} satisfies uniform regularity conditions (e.g., Lipschitz continuity "
    "and smoothness with respect to ℓ, see Appendix A.1), then as the number of layers L → ∞ (and thus Δt → 0), the discrete "
    "trajectory, when properly interpolated, converges uniformly to the solution u(x, t) of the continuous system. (v2 §3.1, "
    "Thm 3.2) 1. Uniform Lipschitz Continuity: There exists a constant L_F > 0 such that for all layers ℓ and all hidden states "
    "U, V, ‖F_ℓ(U) − F_ℓ(V)‖ ≤ L_F‖U − V‖. 2. Temporal Consistency: The discrete operator F_ℓ converges to its continuous "
    "counterpart F as L → ∞, i.e., sup_ℓ‖F_ℓ(U) − F(U, ℓΔt)‖ → 0. (v2 App. B.1)",
    condition="smooth weights and residual scale 1/L are sufficient for the rate, not necessary for a limit: weights drawn "
    "anew in each layer converge at scale 1/L too, in the mean and at rate L^(-1/2), to the mean field's ODE; at scale 1/√L "
    "they have no limit along a path. Orders above 1 need a scheme and subflows of that order (Strang with Euler subflows "
    "has 1) and a smooth activation (with ReLU no more than 2 can be relied on)",
    bears_out=bears_out,
    headline=("order_euler", "order_lie", "iid_spread_exponent_at_scale_1_by_sqrt_L", "order_rk4", "order_rk4_relu"),
    measure=measure,
    judge=judge,
)
