"""C13: v2 Thm 3.4, fidelity with and without residual connections."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax._equation import MasterEquation
from pdejax.analysis.residual import fidelity
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, flow, high, low, range_over, share_over_seeds
from pdejax.studies.numerics._verify_cases import reaction
from pdejax.terms import Attention, FeedForward, LinearDamping

TOKENS, DIM, LAYERS = 16, 32, 16
SCALES = (0.5, 1.0, 2.0)
DRAWS = 16  # networks per seed, over which |ρ| is averaged
DAMPING = 2.0  # of the turning field, whose L_R is 1


def measure(seed: int, seeds: int) -> Measured:
    """Layers u ← Attn(u), u ← FFN(u), which are the leaky field at h = 1, and u ← u + Attn(u), u ← u + FFN(u): weights drawn
    anew in each layer, W_O and W_2 times `scale`. The root mean square of ρ over networks by layer; its rate, the fall of its
    logarithm per layer, in the first layer and over the second half of the layers."""
    figures, corrected = {}, {}
    floor = 1 / math.sqrt(TOKENS * DIM)
    for scale in SCALES:
        rates: dict[str, list[float]] = {"first": [], "later": []}
        ends: dict[str, list[float]] = {"leaky": [], "residual": []}
        for s in range(seeds):
            for residual, name in ((False, "leaky"), (True, "residual")):
                rho = np.asarray(fidelities(jax.random.key(1000 * seed + s), jnp.asarray(scale), residual))
                ends[name].append(rho[-1])
                if not residual:
                    logs = np.log(rho)
                    rates["first"].append(logs[0] - logs[1])
                    rates["later"].append(-np.polyfit(np.arange(LAYERS // 2, LAYERS + 1), logs[LAYERS // 2 :], 1)[0])
        figures[f"rate_in_layer_1_without_residual_scale_{scale:g}"] = over_seeds(rates["first"])
        figures[f"rate_in_layers_8_to_16_without_residual_scale_{scale:g}"] = over_seeds(rates["later"])
        figures[f"fidelity_at_16_with_residual_scale_{scale:g}"] = share_over_seeds(ends["residual"])
        corrected[f"fidelity_at_16_without_residual_over_chance_scale_{scale:g}"] = over_seeds(
            np.array(ends["leaky"]) / floor, within=(0.0, 1.0 / floor)
        )
    identity, turned, error = exact()
    figures["fidelity_of_a_stable_rotation"] = turned
    corrected["fidelity_without_residual_identity_values"] = identity
    corrected["stable_rotation_error_against_cosine"] = error
    corrected["share_below_bound_with_small_updates"] = range_over(_small_updates(seed, seeds))
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """ρ is the cosine. (i) Without residual connections ρ of random networks must fall to chance, at most twice 1/√(nd) after 16
    layers: below that, in the nd = 512 dimensions here, no rate can be asked for. (ii) In a residual system that meets Theorem
    3.3 with γ > L_A + L_R it must stay positive. Both: it holds. If (ii) needs ‖I‖ < ‖u₀‖ as well, which the paper does not ask
    for, that is a condition to add; else it fails."""
    forgets = all(high(evidence[f"fidelity_at_16_without_residual_over_chance_scale_{s:g}"]) < 2.0 for s in SCALES)
    if forgets and evidence["fidelity_of_a_stable_rotation"] > 0:
        return HOLDS
    small = high(evidence["share_below_bound_with_small_updates"]) == 0
    return CONDITIONAL if forgets and small else FAILS


def bears_out(evidence: Evidence) -> bool:
    """At chance after one layer, without a rate from there on; with small updates never below √(1 − r²); the turning field as in
    closed form."""
    later = [evidence[f"rate_in_layers_8_to_16_without_residual_scale_{s:g}"] for s in SCALES]
    flat = all(low(rate) < 0.02 for rate in later)
    exact = evidence["stable_rotation_error_against_cosine"] < 1e-6
    return bool(flat and exact and high(evidence["share_below_bound_with_small_updates"]) == 0)


@eqx.filter_jit
def fidelities(key: Array, scale: Array, residual: bool) -> Array:
    """√⟨ρ²⟩ over networks `(LAYERS + 1,)`."""

    def one(key):
        k1, k2 = jax.random.split(key)
        u0 = jax.random.normal(k1, (TOKENS, DIM))

        def layer(u, k):
            a, b = jax.random.split(k)
            attention, network = Attention(DIM, 4, key=a), FeedForward(DIM, 2 * DIM, key=b)
            for term in (attention, network):
                out = scale * term(jnp.zeros(()), u, None)
                u = u + out if residual else out
            # The angle is all that matters: a scale that cannot overflow.
            return u, u / jnp.linalg.norm(u)

        us = jax.lax.scan(layer, u0, jax.random.split(k2, LAYERS))[1]
        return jnp.concatenate([jnp.ones(1), fidelity(us, u0)])

    return jnp.sqrt(jnp.mean(jax.vmap(one)(jax.random.split(key, DRAWS)) ** 2, axis=0))


def exact() -> tuple[float, float, float]:
    """ρ after 16 layers u ← Attn(u) with one token and W_O W_V = 1; ρ at t = π of u′ = uJ − γu with γ = 2 > L_R = 1, which
    Theorem 3.3 calls stable; and its error against cos t, solved by RK4."""
    attention = Attention(1, key=jax.random.key(0))
    ones = tuple(jnp.ones_like(w) for w in (attention.wv, attention.wo))
    attention = eqx.tree_at(lambda a: (a.wv, a.wo), attention, ones)
    u = start = jnp.full((1, 1), 0.7)
    for _ in range(16):
        u = attention(jnp.zeros(()), u, None)
    turn = reaction(jnp.eye(2), jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.zeros(2), jnp.zeros(2))
    equation = MasterEquation(reaction=turn, stabilization=LinearDamping(DAMPING))
    first = jnp.array([[1.0, 0.0]])
    times = np.linspace(0, math.pi, 13)[1:]
    rho = np.array([float(fidelity(flow(equation, first[None], jnp.asarray(t), 200)[0], first)) for t in times])
    return float(fidelity(u, start)), float(rho[-1]), float(np.max(np.abs(rho - np.cos(times))))


def _small_updates(seed: int, seeds: int) -> list[float]:
    """Share of random updates with ‖I‖ = r‖u₀‖, r < 1, for which ρ is below √(1 − r²)."""
    shares = []
    for s in range(seeds):
        rng = np.random.default_rng([seed, s, 3])
        u0, update = rng.standard_normal((2, 400, 8))
        r = rng.uniform(0, 0.99, 400)
        update *= (r * np.linalg.norm(u0, axis=1) / np.linalg.norm(update, axis=1))[:, None]
        u = u0 + update
        rho = np.sum(u * u0, axis=1) / (np.linalg.norm(u, axis=1) * np.linalg.norm(u0, axis=1))
        shares.append(float(np.mean(rho < np.sqrt(1 - r**2) - 1e-12)))
    return shares


def smallest() -> Counterexample:
    t = np.linspace(0, math.pi, 13)
    u = np.exp(-DAMPING * t)[:, None, None] * np.stack([np.cos(t), np.sin(t)], axis=1)[:, None]
    return Counterexample(
        "one token of two features, R(u) = uJ with L_R = 1, A = 0 and S = −γu with γ = 2 > L_A + L_R: residual and exponentially "
        "stable, and ρ = cos t, −1 at t = π.",
        {"t": t, "u": u, "gamma": np.array(DAMPING)},
    )


C13 = Claim(
    id="C13",
    statement="without residual connections ρ decays exponentially; with them, under stable conditions, it is bounded below by a "
    "positive constant",
    source="v2 Thm 3.4",
    quote="Let the representation fidelity at depth t be ρ(t) = sim(u(·, t), u(·, 0)), where sim is a similarity metric like "
    "cosine similarity. In a system without a residual structure (i.e., not formulated as a time derivative), ρ(t) decays "
    "exponentially, leading to catastrophic forgetting of initial information. The residual formulation inherent to our PDE "
    "ensures that under stable conditions, ρ(t) is bounded below by a positive constant, thus preserving input information. (v2 "
    "§3.3, Thm 3.4) The angle between v^(L) and v^(0) will tend towards π/2 in high dimensions, causing ρ(t) → 0 exponentially "
    "fast. … Under the stability conditions from Theorem 3.3, the norm of the update term ‖∫₀ᵗ F(…)‖ is bounded. This ensures "
    "that ρ(t) remains bounded below by a positive constant, preventing catastrophic forgetting. (v2 App. B.3)",
    condition="with them ρ ≥ √(1 − r²) as long as the update stays below ‖u₀‖, r = ‖I‖/‖u₀‖ < 1; not beyond, stable or not. "
    "Without them, with weights drawn anew in each layer, ρ is at chance, 1/√(nd), after one layer, below which no rate can "
    "be seen",
    bears_out=bears_out,
    headline=(
        "rate_in_layer_1_without_residual_scale_1",
        "fidelity_at_16_without_residual_over_chance_scale_1",
        "fidelity_of_a_stable_rotation",
    ),
    measure=measure,
    judge=judge,
)
