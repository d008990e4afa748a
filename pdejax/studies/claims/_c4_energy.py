"""C4: v2 Thm 3.3, exponential decay of the energy."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdejax._equation import MasterEquation
from pdejax.analysis.growth._energy import claimed_energy, energy, energy_rates, growth_bound
from pdejax.analysis.numerics._norms import mesh_norm
from pdejax.exact import spatial_norm_basin_radius, spatial_norm_growth_radius
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, flow, high, range_over, ratio_over_seeds
from pdejax.studies.numerics._verify_cases import normal, reaction
from pdejax.terms import Attention, FeedForward, LayerNormRelaxation, LinearDamping, SpatialNorm, SphereProjection

GAMMA, GROWTH, DEPTH = 3.0, 1.0, 1.0
SIGMAS = (0.5, 2.9, 3.1, 10.0)
ROUNDING = 1e-6
EPS = 1e-6  # ε of v2 (9)


def measure(seed: int, seeds: int) -> Measured:
    """Two tokens (σ, −σ) with A + R = λu on both sides of the basin's edge; a constant field; and E(1)/E(0) over what is
    claimed, for attention with a network and γ = L + 2, under v2 (9) and under S = −γu."""
    ratios: dict[str, list[float]] = {"spatial": [], "linear": []}
    for s in range(seeds):
        kinds = stabilizations(1000 * seed + s)
        for name, kept in ratios.items():
            kept.append(float(np.max(kinds[name])) / kinds["claimed"])
    pair = two_tokens(SIGMAS, GAMMA, GROWTH, DEPTH)
    outside = SIGMAS.index(3.1)
    figures = {
        "energy_over_claim_outside_basin": float(pair["energy_ratio"][outside]) / pair["energy_ratio_claimed"],
        "energy_over_claim_inside_basin": float(pair["energy_ratio"][0]) / pair["energy_ratio_claimed"],
        "energy_rate_of_constant_field": rate_of_a_constant_field(GAMMA, GROWTH),
        "energy_rate_claimed_there": -GAMMA,
        "worst_energy_over_claim_v2_9": ratio_over_seeds(ratios["spatial"]),
    }
    corrected = {
        "worst_energy_over_claim_linear_damping": range_over(ratios["linear"]),
        "basin_radius": pair["basin_radius"],
        "basin_radius_error": float(np.max(np.abs(pair["sigma_end"] - pair["sigma_formula"])) / 3.1),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """Holds if no energy exceeds what is claimed and the constant field loses some; conditional if only outside a basin."""
    bounded = high(evidence["energy_over_claim_inside_basin"]) <= 1 + ROUNDING
    flat = evidence["energy_rate_of_constant_field"] < 0
    everywhere = (
        max(high(evidence["energy_over_claim_outside_basin"]), high(evidence["worst_energy_over_claim_v2_9"]))
        <= 1 + ROUNDING
    )
    if bounded and flat and everywhere:
        return HOLDS
    return CONDITIONAL if bounded and flat else FAILS


def bears_out(evidence: Evidence) -> bool:
    """S = −γu keeps what is claimed in every run; with (9) the basin's edge is where its formula says."""
    kept = high(evidence["worst_energy_over_claim_linear_damping"]) <= 1 + ROUNDING
    return bool(kept and evidence["basin_radius_error"] < 1e-4)


def two_tokens(sigmas: Sequence[float], gamma: float, growth: float, t1: float) -> dict[str, Any]:
    """Tokens (σ₀, −σ₀) for each of `sigmas`, A + R = λu with λ = `growth` beyond doubt, S of v2 (9): σ(t1) measured and in closed
    form, E(t1)/E(0) measured and claimed, and the basin's edge."""
    pair = jnp.array([[1.0], [-1.0]])
    # Near σ = 0 v2 (9) decays at rate γ/√ε: explicit steps must resolve it.
    steps = math.ceil(t1 * gamma / math.sqrt(EPS) / 2)
    start = jnp.asarray(sigmas)
    starts = start[:, None, None] * pair[None]
    ends = flow(_linear(gamma, growth), starts, t1, steps)
    return {
        "sigma_end": np.asarray(mesh_norm(ends)),
        "sigma_formula": np.asarray(spatial_norm_growth_radius(start, gamma, growth, t1)),
        "energy_ratio": np.asarray(energy(ends)) / np.asarray(energy(starts)),
        "energy_ratio_claimed": float(claimed_energy(1.0, gamma, growth, t1)),
        "basin_radius": float(spatial_norm_basin_radius(gamma, growth, EPS)),
    }


def rate_of_a_constant_field(gamma: float, growth: float) -> float:
    """What S of v2 (9) adds to dE/dt where all tokens are 1; the claim has −γ there."""
    return float(energy_rates(_linear(gamma, growth), jnp.ones((2, 1)))["stabilization"])


def _linear(gamma: float, growth: float) -> MasterEquation:
    one = jnp.eye(1)
    linear = reaction(one, growth * one, jnp.zeros(1), jnp.zeros(1))
    return MasterEquation(reaction=linear, stabilization=SpatialNorm(gamma, eps=EPS))


def stabilizations(seed: int, n: int = 8, dim: int = 8, margin: float = 2.0, t1: float = 1.0) -> dict[str, Any]:
    """E(t1)/E(0) at three scales of the initial field under each stabilization, γ = L + `margin`, and `claimed`,
    e^{−2·margin·t1}."""
    keys = jax.random.split(jax.random.key(seed), 2)
    interaction, network = Attention(dim, 2, key=keys[0]), FeedForward(dim, 16, key=keys[1])
    bare = MasterEquation(interaction=interaction, reaction=network)
    gamma, eps = growth_bound(bare, n, norm="mesh").rate + margin, 1e-3
    scales = jnp.array([0.01, 1.0, 10.0])
    u0 = normal(5, n, dim) + 0.5
    u0s = scales[:, None, None] * u0[None]
    # v2 (9) is stiff near σ = 0, rate γ/√ε: ε is taken large enough for equal steps to resolve it.
    terms = {
        "spatial": SpatialNorm(gamma, eps=eps),
        "linear": LinearDamping(gamma),
        "relaxation": LayerNormRelaxation(dim, gamma),
        "retraction": None,
    }
    found: dict[str, Any] = {"claimed": math.exp(-2 * margin * t1)}
    for name, term in terms.items():
        equation = bare if term is None else MasterEquation(interaction, network, None, term)
        steps = math.ceil(gamma * t1 / math.sqrt(eps)) if name == "spatial" else 200
        projection = SphereProjection(dim**0.5) if term is None else None
        starts = u0s if projection is None else jax.vmap(projection)(u0s)
        found[name] = np.asarray(energy(flow(equation, starts, t1, jnp.asarray(steps), projection)) / energy(starts))
    return found


def smallest() -> Counterexample:
    """u = (σ, −σ), u′ = λu − γu/σ for ε → 0: σ(t) = γ/λ + (σ₀ − γ/λ)e^{λt}."""
    t = np.linspace(0, 1, 11)
    sigma = GAMMA / GROWTH + (3.1 - GAMMA / GROWTH) * np.exp(GROWTH * t)
    u = sigma[:, None, None] * np.array([[1.0], [-1.0]])
    return Counterexample(
        "two tokens (σ, −σ) of one feature, A + R = u (λ = 1), S of v2 (9) with γ = 3 and ε → 0: from σ = 3.1 the energy "
        "grows, though γ > λ; and u constant over tokens, for which S(u) = 0 whatever γ is.",
        {"t": t, "u": u, "gamma": np.array(GAMMA), "growth": np.array(GROWTH), "constant": np.ones((2, 1))},
    )


C4 = Claim(
    id="C4",
    statement="with S of v2 (9) and γ > L_A + L_R the energy decays like e^{−2(γ−L)t}",
    source="v2 Thm 3.3, (15)",
    quote="A Transformer dynamical system governed by the master equation is exponentially stable if the dissipative strength of "
    "the stabilization operator S is sufficiently large to counteract the energy growth from the interaction and reaction terms "
    "… exceeds a threshold determined by the Lipschitz constants of A and R. (v2 §3.3; App. B.2: ∫⟨u, S(u)⟩ ≤ −2γE)",
    bears_out=bears_out,
    condition="holds for S = −γu if γ is above the growth constant G of the rest and its offset f is 0 (F(0) = 0 is not enough); "
    "else into the ball of radius f/(γ − G). With v2 (9) only deviations from the mean below γ²/λ² − ε in square shrink, those "
    "above grow; the mean is not damped at all",
    headline=(
        "energy_over_claim_outside_basin",
        "energy_rate_of_constant_field",
        "worst_energy_over_claim_linear_damping",
    ),
    measure=measure,
    judge=judge,
)
